"""Presets: the numbers of the released files, and of the paper where it differs."""

from dataclasses import replace

import pytest

from idol import presets
from idol.config import AssignmentConfig, Config, TrackerConfig
from idol.weights import checkpoint

YTVIS_SIDES = (320, 352, 392, 416, 448, 480, 512, 544, 576, 608, 640)
OVIS_SIDES = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)

# Specification 6: steps at which the rate drops, steps, steps between checkpoints.
VIS = ((8000,), 12000, 1000)
COCO_R50 = ((22200, 44400), 59200, 3700)
COCO_SWIN = ((59200, 118400), 148000, 2000)
# A row for every released file: backbone, K, pairs in a batch, learning rate, the three above,
# training sides, longest training side, test side, NMS_PRE, ADD_NEW.
RELEASED = {
    "ytvis19_r50": ("resnet50", 40, 32, 1e-4, *VIS, YTVIS_SIDES, 768, 480, 0.5, 0.2),
    "ytvis19_r101": ("resnet101", 40, 32, 1e-4, *VIS, YTVIS_SIDES, 768, 480, 0.5, 0.2),
    "ytvis19_swin_l": ("swin", 40, 32, 1e-4, *VIS, YTVIS_SIDES, 768, 480, 0.5, 0.2),
    "ytvis21_r50": ("resnet50", 40, 32, 1e-4, *VIS, YTVIS_SIDES, 768, 480, 0.5, 0.2),
    "ytvis21_r101": ("resnet101", 40, 32, 1e-4, *VIS, YTVIS_SIDES, 768, 480, 0.5, 0.2),
    "ytvis21_swin_l": ("swin", 40, 32, 1e-4, *VIS, YTVIS_SIDES, 768, 480, 0.5, 0.2),
    "ovis_r50": ("resnet50", 25, 16, 1e-4, *VIS, OVIS_SIDES, 1333, 720, 0.3, 0.3),
    "ovis_swin_l": ("swin", 25, 16, 1e-4, *VIS, OVIS_SIDES, 1333, 720, 0.3, 0.3),
    "coco_r50": ("resnet50", 80, 32, 2e-4, *COCO_R50, YTVIS_SIDES, 1333, 640, 0.5, 0.2),
    # Not released: the former with the other backbone.
    "coco_r101": ("resnet101", 80, 32, 2e-4, *COCO_R50, YTVIS_SIDES, 1333, 640, 0.5, 0.2),
    "coco_swin_l": ("swin", 80, 16, 2e-4, *COCO_SWIN, YTVIS_SIDES, 1333, 800, 0.5, 0.2),
}
# What all files share: specification 1.2, 1.4 to 1.9, 3.4, 4, 5.2 and 6.
SHARED = {
    "model.num_queries": 300,
    "model.width": 256,
    "model.num_heads": 8,
    "model.num_points": 4,
    "model.encoder_layers": 6,
    "model.decoder_layers": 6,
    "model.feedforward": 1024,
    "model.dropout": 0.1,
    "model.embedding_size": 256,
    "model.mask_channels": 8,
    "model.mask_coordinate_scale": 1.0,
    "model.class_head": "linear",
    "model.dense_auxiliary": False,
    "model.num_identities": 0,
    "transforms.test_max_side": 1333,
    "transforms.stretch": None,
    "transforms.flip_probability": 0.5,
    "transforms.crop_probability": 0.5,
    "transforms.crop_range": (384, 600),
    "transforms.shared_crop": False,
    "transforms.color_jitter": 0.0,
    "transforms.size_divisor": 32,
    "pairs.max_gap": 10,
    "pairs.order": "released",
    "pairs.sampling": "released",
    "pairs.clip": 2,
    "detect.max_detections": 300,  # all queries: the released code has no limit
    "assignment.cost": "released",
    "assignment.giou_weight": 3.0,
    "assignment.center_radius": 0.078125,
    "assignment.candidates": 10,
    "assignment.negative_candidates": 100,
    "assignment.repair": "released",
    "assignment.selection": "optimal_transport",
    "assignment.positives": "released",
    "assignment.negatives": "released",
    "losses.ce": 2.0,
    "losses.bbox": 5.0,
    "losses.giou": 2.0,
    "losses.mask": 2.0,
    "losses.dice": 5.0,
    "losses.reid": 2.0,
    "losses.reid_aux": 3.0,
    "losses.identity": 0.0,
    "losses.focal_alpha": 0.25,
    "losses.focal_gamma": 2.0,
    "losses.negatives_per_positive": 10,
    "losses.supervise_reference": False,
    "losses.normaliser": "local",
    "train.backbone_rate": 0.1,
    "train.weight_decay": 1e-4,
    "train.clip_norm": 0.01,
    "train.schedule": "step",
    "train.warmup_steps": 0,
    "train.ema_decay": 0.0,
    "detect.score_floor": 0.1,
    "detect.box_nms": 0.9,
    "detect.mask_resize": "released",
    "tracker.weighting": "released",
    "tracker.similarity": "released",
    "tracker.assignment": "greedy",
    "tracker.memory_length": 3,
    "tracker.match_threshold": 0.5,
    "tracker.score_threshold": 0.1,
    "tracker.first_threshold": 0.2,
    "tracker.memory_lifetime": 10,
    "tracker.class_score_threshold": 0.05,
    "tracker.multi_class": True,
    "tracker.prune_short": 3,
    "tracker.prune_after": 8,
}


INSTANCE = ("coco_instance_r50", "coco_instance_r101", "coco_instance_swin_l")


def field(config, path):
    for name in path.split("."):
        config = getattr(config, name)
    return config


@pytest.mark.parametrize("name", RELEASED)
def test_released_presets_carry_the_numbers_of_their_files(name):
    config = presets.by_name(name)
    got = (
        config.model.backbone.name, config.model.num_classes, config.train.pairs_per_batch,
        config.train.learning_rate, config.train.milestones, config.train.steps,
        config.train.checkpoint_every, config.transforms.train_short_sides,
        config.transforms.train_max_side, config.transforms.test_short_side,
        config.tracker.mask_nms, config.tracker.new_threshold,
    )  # fmt: skip
    assert got == RELEASED[name]
    assert {path: field(config, path) for path in SHARED} == SHARED
    # Specification 5.3: independent images of one picture, the crop after a resize of its own.
    coco = name.startswith("coco_")
    assert 8 * config.train.group_pairs == config.train.pairs_per_batch  # of 8 GPUs
    assert config.pairs.pseudo is config.transforms.independent is coco
    assert config.transforms.crop_short_sides == ((400, 500, 600) if coco else ())


def test_swin_l_has_the_released_sizes_and_freezes_nothing():
    backbone = presets.by_name("ovis_swin_l").model.backbone
    sizes = (backbone.swin_embed, backbone.swin_depths, backbone.swin_heads, backbone.swin_window)
    assert sizes == (192, (2, 2, 18, 2), (6, 12, 24, 48), 12)
    assert backbone.swin_drop_path == 0.3
    assert not backbone.frozen_stages


def test_every_preset_is_known_by_its_name_and_differs_from_all_others():
    paper = {f"{name}_paper" for name in RELEASED}
    assert set(presets.PRESETS) == {*RELEASED, *paper, *INSTANCE, "tiny", "small"}
    made = [presets.by_name(name) for name in presets.PRESETS]
    assert [config.name for config in made] == list(presets.PRESETS)
    # 2019 and 2021 differ in their data only.
    unnamed = {replace(c, name="") for c in made if not c.name.startswith("ytvis21")}
    assert len(unnamed) == len(made) - 6


@pytest.mark.parametrize("name", RELEASED)
def test_paper_presets_differ_from_the_released_ones_where_the_text_does_and_nowhere_else(name):
    released, text = presets.by_name(name), presets.by_name(f"{name}_paper")
    # Eq. 2 with lambda_1 = 2 and lambda_2 = 1.
    losses = text.losses
    assert (losses.ce, losses.bbox, losses.giou, losses.mask, losses.dice) == (1, 2, 2, 2, 2)
    assert (losses.reid, losses.reid_aux) == (1, 0)
    assert text.model == replace(released.model, class_head="mlp")
    assert text.assignment == AssignmentConfig.paper()
    assert text.pairs == replace(released.pairs, order="any")
    # Sec. 4.2: 8 GPUs with 2 pairs each, AdamW at 1e-4.
    assert text.train == replace(
        released.train,
        pairs_per_batch=16,
        group_pairs=2,
        learning_rate=1e-4,
        steps=text.train.steps,
        milestones=text.train.milestones,
    )
    # Where the text gives no number of steps, as many images are seen.
    seen = 32 // 16 if name in ("coco_r50", "coco_r101") else 1
    assert text.train.steps == seen * released.train.steps
    assert text.train.milestones == tuple(seen * step for step in released.train.milestones)
    # Sec. 3.3: Eq. 5 to 7 and a single NMS at 0.5.
    assert text.detect == replace(released.detect, box_nms=1.0)
    assert text.tracker == replace(
        TrackerConfig.paper(), mask_nms=0.5, new_threshold=released.tracker.new_threshold
    )
    assert (text.tracker.tau, text.tracker.memory_length) == (0.5, 3)
    if name.startswith("ytvis"):
        expected = replace(released.transforms, test_short_side=360)
    elif name.startswith("ovis"):
        expected = replace(released.transforms, crop_probability=0.0)
        assert text.transforms.test_short_side == 720
    else:
        expected = replace(released.transforms, crop_probability=1.0, train_short_sides=OVIS_SIDES)
    assert text.transforms == expected


@pytest.mark.parametrize("config", [Config(), presets.tiny(), presets.by_name("ovis_r50_paper")])
def test_the_paper_says_nothing_about_other_configurations(config):
    with pytest.raises(ValueError, match=f"not {config.name!r}. Start from one of: ytvis19_r50"):
        presets.paper(config)


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [
        ("ytvis_r50", "ytvis19_r50"),
        ("YTVIS19-SwinL", "ytvis19_swin_l"),
        ("ovis_swinl", "ovis_swin_l"),
        ("coco-r50-paper", "coco_r50_paper"),
    ],
)
def test_an_unknown_name_gets_the_nearest_ones_and_the_list(asked, nearest):
    with pytest.raises(ValueError, match=rf"called {asked!r}\. Did you mean {nearest!r}"):
        presets.by_name(asked)


def test_a_name_like_none_gets_the_list_only():
    with pytest.raises(
        ValueError, match=r"'xyz'\. There are: ytvis19_r50.*<name>_paper, .* and tiny"
    ):
        presets.by_name("xyz")


def test_the_shipped_weights_associate_as_our_own_tracker_does_today() -> None:
    # A checkpoint carries its configuration: a change of robust() must reach the shipped file.
    assert checkpoint.load("shipped").config.tracker == TrackerConfig.robust()


@pytest.mark.parametrize("name", INSTANCE)
def test_step_1_learns_instances_alone_and_on_both_views(name: str) -> None:
    config, pairs = presets.by_name(name), presets.by_name("coco_r50")
    assert config.model.backbone == presets.by_name(f"ytvis19_{name[14:]}").model.backbone
    assert (config.losses.reid, config.losses.reid_aux, config.losses.identity) == (0, 0, 0)
    assert config.losses.supervise_reference
    assert (config.transforms, config.pairs) == (pairs.transforms, pairs.pairs)
    images = 2 * config.train.pairs_per_batch
    assert (images, config.train.learning_rate) == (32, 2e-4)
    assert round(config.train.steps * images / 117_266, 2) == 50.0
    assert round(config.train.milestones[0] * images / 117_266, 2) == 40.0


@pytest.mark.parametrize("name", ["r50", "r101", "swin_l"])
def test_step_2_has_a_name_beside_that_of_step_1(name: str) -> None:
    assert presets.by_name(f"coco_pairs_{name}") == presets.by_name(f"coco_{name}")
    paper = presets.by_name(f"coco_{name}_paper")
    assert presets.by_name(f"coco_pairs_{name}_paper") == paper
