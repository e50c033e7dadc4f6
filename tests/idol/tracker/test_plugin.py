"""Another tracker behind the same interface: it gets every frame, and its answers are checked."""

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from idol.config import TrackerConfig
from idol.structures import FrameDetections
from idol.tracker import plugin
from idol.tracker.online import Tracker, start, track_video
from pipelines import configuration

NAME = "tests.idol.tracker.test_plugin:Rows"


class Rows:
    """The n-th row is the n-th object."""

    defaults: ClassVar = {"score_threshold": 0.4, "prune_short": 0}
    seen: ClassVar[list[FrameDetections]] = []

    def __init__(self, config: TrackerConfig) -> None:
        self.config = config
        self.seen.clear()

    def update(self, frame: FrameDetections) -> Any:
        self.seen.append(frame)
        return torch.arange(len(frame))


class Wrong(Rows):
    def update(self, frame: FrameDetections) -> NDArray[np.float64]:
        return np.zeros(len(frame) + 1)


class Floats(Rows):
    def update(self, frame: FrameDetections) -> NDArray[np.float64]:
        return np.zeros(len(frame))


def frames(counts: list[int]) -> list[FrameDetections]:
    rng = np.random.default_rng(0)
    found = []
    for index, n in enumerate(counts):
        found.append(
            FrameDetections(
                index,
                torch.linspace(0.9, 0.3, n),
                torch.from_numpy(rng.random((n, 2), dtype=np.float32)),
                torch.from_numpy(rng.random((n, 4), dtype=np.float32)),
                torch.eye(n),
                torch.tensor([[10.0 * k + index, 0, 10.0 * k + index + 8, 8] for k in range(n)])
                if n
                else torch.zeros(0, 4),
                tuple(b"%d" % k for k in range(n)),
                time=index / 25,
            )
        )
    return found


def test_a_class_by_name_gets_the_admitted_rows_of_every_frame() -> None:
    config = configuration.tracker_config(NAME)
    assert config == TrackerConfig(plugin=NAME, score_threshold=0.4, prune_short=0)
    tracks = track_video(frames([3, 0, 3, 2]), config)
    # Scores are 0.9, 0.6 and 0.3; the last does not enter.
    assert [len(frame) for frame in Rows.seen] == [2, 0, 2, 1]
    assert [frame.time for frame in Rows.seen] == [0.0, 0.04, 0.08, 0.12]
    assert Rows.seen[2].masks == (b"0", b"1")
    assert {track.track_id: track.detections for track in tracks} == {
        0: {0: 0, 2: 0, 3: 0},
        1: {0: 1, 2: 1},
    }


def test_without_a_plug_in_the_tracker_is_ours() -> None:
    assert isinstance(start(TrackerConfig()), Tracker)
    other = start(TrackerConfig(plugin=NAME))
    assert isinstance(other, plugin.PlugIn)
    other.follow(frames([3])[0])
    assert list(other.alive) == [0, 1, 2]


@pytest.mark.parametrize("name", ["Wrong", "Floats"])
def test_an_answer_that_is_none_is_refused(name: str) -> None:
    config = TrackerConfig(plugin=NAME.replace("Rows", name))
    with pytest.raises(ValueError, match=r"must give a whole number for each of 3 rows of frame 0"):
        track_video(frames([3]), config)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no.such.module:Class", "cannot be imported"),
        ("tests.idol.tracker.test_plugin:Missing", "cannot be imported"),
        ("builtins:dict", None),
        ("builtins:int", "is no tracker"),
        ("nothing", "there is no tracker"),
    ],
)
def test_what_is_no_tracker_is_refused_before_the_work(name: str, message: str | None) -> None:
    if message is None:
        configuration.tracker_config(name)  # has an update: its answers will be checked
        return
    with pytest.raises(ValueError, match=message):
        configuration.tracker_config(name)
    with pytest.raises(ValueError, match=r"package\.module:Class"):
        TrackerConfig(plugin="nothing")


ADAPTERS = ("Sort", "ByteTrack", "OcSort", "BotSort", "CBiou")


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_box_tracker_follows_objects_that_move_slowly(name: str) -> None:
    pytest.importorskip("trackers", reason="the library `trackers` is an extra")
    config = configuration.tracker_config(f"idol.tracker.adapters:{name}")
    config = replace(config, new_threshold=0.2, first_threshold=0.2)
    tracks = track_video(frames([3] * 8), config)
    assert sorted(tuple(sorted(set(t.detections.values()))) for t in tracks) == [(0,), (1,), (2,)]
    assert all(len(track.detections) >= 7 for track in tracks)


def test_mask_nms_comes_before_a_box_tracker() -> None:
    pytest.importorskip("trackers", reason="the library `trackers` is an extra")
    config = configuration.tracker_config("idol.tracker.adapters:Sort")
    doubled = [
        replace(frame, overlaps=torch.tensor([[1, 0.9, 0], [0.9, 1, 0], [0, 0, 1.0]]))
        for frame in frames([3] * 6)
    ]
    found = track_video(doubled, replace(config, new_threshold=0.2, mask_nms=0.5))
    assert {row for track in found for row in track.detections.values()} == {0, 2}
    both = track_video(doubled, replace(config, new_threshold=0.2, mask_nms=1.0))
    assert {row for track in both for row in track.detections.values()} == {0, 1, 2}
