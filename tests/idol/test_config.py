"""Configurations: one home for every number, checked, and exact through JSON."""

import dataclasses
import json
from operator import attrgetter

import pytest

from idol import presets
from idol.config import (
    Config,
    ModelConfig,
    TrackerConfig,
    from_dict,
    override,
    to_dict,
    without_effect,
)


@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_preset_survives_json(name):
    config = presets.by_name(name)
    assert config.name == name
    assert from_dict(Config, json.loads(json.dumps(to_dict(config)))) == config


def test_overrides_replace_one_field_and_leave_the_rest():
    base = presets.by_name("tiny")
    changed = override(
        base,
        [
            "tracker.match_threshold=0.6",
            "train.steps=7",
            "transforms.stretch=[64,96]",
            "tracker.weighting=paper",
            "losses.supervise_reference=false",
        ],
    )
    assert changed.tracker.match_threshold == 0.6
    assert changed.train.steps == 7
    assert changed.transforms.stretch == (64, 96)
    assert changed.tracker.weighting == "paper"
    assert changed.losses.supervise_reference is False
    assert changed.model == base.model
    assert override(changed, ["transforms.stretch=null"]).transforms.stretch is None


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("tracker.match_treshold=0.6", "Did you mean 'match_threshold'"),
        ("tracer.tau=1", "Did you mean 'tracker'"),
        ("tracker.tau", "section.field=value"),
        ("tracker.match_threshold=high", "must be float"),
        ("tracker.match_threshold=7", r"match_threshold must lie in \[-1, 1\]"),
        ("tracker.weighting=papers", "must be one of"),
        ("train.steps=1.5", "must be int"),
        ("name.first=1", "not a section"),
        ("model.backbone.tiny_channels=[1,2]", "5 numbers"),
        ("transforms.stretch=[1,2,3]", "must have 2 entries"),
    ],
)
def test_a_bad_override_is_refused_with_the_rule(assignment, message):
    with pytest.raises(ValueError, match=message):
        override(presets.by_name("tiny"), [assignment])


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'ytvis19_r50'"):
        presets.by_name("ytvis_r50")


def test_tracker_presets_carry_the_released_numbers():
    ovis = TrackerConfig.released("ovis")
    assert (ovis.mask_nms, ovis.new_threshold, ovis.first_threshold) == (0.3, 0.3, 0.2)
    assert TrackerConfig.released("ytvis") == TrackerConfig()
    with pytest.raises(ValueError, match="'ytvis' and 'ovis'"):
        TrackerConfig.released("coco")


@pytest.mark.parametrize(
    ("names", "ids", "classes"), [(("a", "b"), (1,), 2), (("a", "b"), (1, 2), 4), ((), (1, 2), 2)]
)
def test_categories_name_every_class_or_none(names, ids, classes):
    model = ModelConfig(num_classes=classes)
    with pytest.raises(ValueError, match=f"got {len(names)} and {len(ids)} for num_classes="):
        Config(model=model, categories=names, category_ids=ids)
    named = Config(model=ModelConfig(num_classes=2), categories=("a", "b"), category_ids=(7, 3))
    assert from_dict(Config, to_dict(named)) == named


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.num_queries=1000000000", "num_queries must be at most 10000, got 1000000000"),
        ("model.backbone.tiny_channels=[16,32,64,96,80000000]", "tiny_channels must be at most"),
        ("transforms.size_divisor=1000000000", "size_divisor must be at most 1024"),
        ("transforms.train_short_sides=[320,2000000000]", "train_short_sides must be at most"),
        ("transforms.train_short_sides=[0]", "train_short_sides must be positive"),
        ("detect.batch_frames=1000000000", "batch_frames must be at most 10000"),
        ("train.shuffle_rows=1000000000", "shuffle_rows must be at most 100000"),
        ("pairs.clip=1000000000", r"clip must lie in \[2, 1000\]"),
        ("train.learning_rate=Infinity", "learning_rate must be a finite number, got inf"),
        ("losses.ce=NaN", "losses.ce must be a finite number, got nan"),
        pytest.param("losses.ce=1" + 400 * "0", "must be a finite number", id="400 digits"),
        pytest.param("model.width=" + 9999 * "[", "model.width must be int", id="nested"),
        pytest.param("model.width=" + 9999 * "9", "model.width must be int", id="9999 digits"),
    ],
)
def test_absurd_numbers_are_refused_before_memory_is_asked_for(change: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        override(presets.by_name("tiny"), [change])


def test_longer_clips_are_drawn_at_each_visit_and_never_stored():
    with pytest.raises(ValueError, match=r'clips of 5 frames .* need sampling "released"'):
        override(presets.by_name("tiny"), ["pairs.sampling=stored", "pairs.clip=5"])
    assert override(presets.by_name("tiny"), ["pairs.clip=5"]).pairs.clip == 5


@pytest.mark.parametrize(
    ("key", "given", "tried", "needed"),
    [
        ("tracker.tau", [], {}, "tracker.weighting paper, which is momentum here"),
        ("tracker.tau", ["tracker.weighting=paper"], {}, ""),
        ("tracker.tau", [], {"tracker.weighting": ["paper", "released"]}, ""),
        ("tracker.tau", ["tracker.weighting=paper", "tracker.temporal_weight=false"], {},
         "tracker.temporal_weight True, which is False here"),
        ("tracker.size_weight", ["tracker.position_weight=0"], {},
         "tracker.position_weight above 0, which is 0.0 here"),
        ("tracker.size_weight", [], {"tracker.position_weight": (0.0, 2.0)}, ""),
        ("train.final_rate", ["train.schedule=step"], {}, "train.schedule cosine"),
        ("train.shuffle_rows", [], {}, "pairs.sampling stored, which is released here"),
        ("train.group_pairs", ["pairs.sampling=stored"], {}, "pairs.sampling released"),
        ("transforms.test_short_side", ["transforms.stretch=[64,96]"], {}, "stretch None"),
        ("assignment.iou_positive", [], {}, "assignment.selection iou"),
        ("losses.dense", ["model.dense_auxiliary=false"], {}, "model.dense_auxiliary True"),
        ("model.backbone.swin_window", [], {}, "model.backbone.name swin, which is tiny here"),
        ("model.width", [], {}, ""),
    ],
)  # fmt: skip
def test_a_field_says_what_it_needs_to_have_an_effect(key, given, tried, needed):
    found = without_effect(override(presets.by_name("tiny"), given), key, tried)
    assert found.startswith(f"{key} has no effect: it needs ") if needed else found == ""
    assert needed in found


def test_every_field_that_an_option_needs_is_there():
    config = Config()
    for section in ("tracker", "train", "losses", "assignment", "transforms", "model", "detect",
                    "pairs", "model.backbone"):  # fmt: skip
        for field in dataclasses.fields(attrgetter(section)(config)):
            without_effect(config, f"{section}.{field.name}", {})
