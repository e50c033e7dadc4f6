"""Spaces say what they mean, or are refused with what could have been meant."""

import numpy as np
import pytest

from idol.config import Config, TrackerConfig
from pipelines.sweep import space as search_space
from pipelines.sweep.space import TRACKER, TRAINING, Choices, Range


def test_lists_and_ranges_have_the_types_of_the_fields() -> None:
    assert search_space.parse(
        {
            "grid": ["tracker.tau=0,0.5", "tracker.weighting=paper,released"],
            "choice": ["tracker.same_class=true,false"],
            "uniform": ["tracker.match_threshold=0.3,0.8", "tracker.memory_length=1,10"],
            "log_uniform": ["tracker.class_score_threshold=0.001,0.1"],
        },
        Config(),
        TRACKER,
    ) == {
        "tracker.tau": Choices((0.0, 0.5)),
        "tracker.weighting": Choices(("paper", "released")),
        "tracker.same_class": Choices((True, False)),
        "tracker.match_threshold": Range(0.3, 0.8),
        "tracker.memory_length": Range(1, 10, integer=True),
        "tracker.class_score_threshold": Range(0.001, 0.1, log=True),
    }
    assert search_space.parse(
        {"choice": ["transforms.stretch=[128,192],[160,256]"], "uniform": ["losses.mask=1,4"]},
        Config(),
        TRAINING,
    ) == {
        "transforms.stretch": Choices(([128, 192], [160, 256])),
        "losses.mask": Range(1.0, 4.0),
    }


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("grid", "tracker.tau=", "--grid is SECTION.FIELD=VALUES"),
        ("log_uniform", "tracker.tau", "--log-uniform is SECTION.FIELD=VALUES"),
        ("grid", "tracker.tua=1", "Did you mean 'tau'"),
        ("grid", "detect.box_nms=0.5", "cannot be swept on stored detections"),
        ("grid", "tau=0.5", "cannot be swept on stored detections"),
        ("choice", "tracker.tau=-1", "tau must be >= 0"),
        ("uniform", "tracker.tau=-1,2", "tau must be >= 0"),
        ("uniform", "tracker.tau=2,1", "LOW < HIGH"),
        ("uniform", "tracker.tau=1", "LOW,HIGH"),
        ("uniform", "tracker.tau=0,1,2", "LOW,HIGH"),
        ("uniform", "tracker.same_class=false,true", "of numbers"),
        ("log_uniform", "tracker.tau=0,1", "above 0"),
        ("grid", "tracker.memory_length=1.5", "must be int"),
        ("uniform", "tracker.memory_length=1.5,3", "must be int"),
        ("grid", "tracker.tau=1,1.0", "repeats"),
    ],
)
def test_what_cannot_be_meant_is_refused(kind: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search_space.parse({kind: [text]}, Config(), TRACKER)


def test_a_field_is_given_once_and_belongs_to_what_is_swept() -> None:
    with pytest.raises(ValueError, match="repeats a field"):
        search_space.parse(
            {"grid": ["tracker.tau=1"], "choice": ["tracker.tau=2"]}, Config(), TRACKER
        )
    with pytest.raises(ValueError, match="cannot be swept by training"):
        search_space.parse({"grid": ["tracker.tau=1"]}, Config(), TRAINING)


@pytest.mark.parametrize(
    "config", [TrackerConfig(), TrackerConfig.paper(), TrackerConfig.robust(),
               TrackerConfig.multi_cue()]
)  # fmt: skip
def test_the_usual_space_of_every_tracker_can_be_drawn_from(config: TrackerConfig) -> None:
    base = Config(tracker=config)
    space = search_space.association(config)
    drawn = [search_space.draw(space, 0, number) for number in range(50)]
    assert len({str(values) for values in drawn}) == 50
    for values in drawn:
        applied = search_space.applied(base, values).tracker
        for key, value in values.items():
            assert getattr(applied, key.removeprefix("tracker.")) == value
    assert drawn[7] == search_space.draw(space, 0, 7)
    assert search_space.from_dict(search_space.to_dict_of(space)) == space


def test_both_ends_of_a_range_of_whole_numbers_are_as_likely_as_the_middle() -> None:
    rng = np.random.default_rng(0)
    drawn = [Range(1, 4, integer=True).draw(rng) for _ in range(4000)]
    counts = np.bincount(drawn, minlength=5)[1:]
    assert counts.min() > 900
    logs = [Range(1, 100, log=True).draw(rng) for _ in range(4000)]
    assert 0.45 < np.mean(np.array(logs) < 10) < 0.55


def test_a_grid_of_a_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tracker\.tau has a range"):
        list(search_space.combinations({"tracker.tau": Range(0, 1)}))
