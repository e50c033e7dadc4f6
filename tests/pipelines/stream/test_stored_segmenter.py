"""Kept detections give the same identities again, another tracker others, without a network."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from idol.images import synthetic, synthetic_dataset
from pipelines.errors import ManifestError, PipelineError
from pipelines.storage import stored
from pipelines.stream import many, places
from pipelines.stream.following import StreamConfig, Summary
from pipelines.stream.many import Following, Plan
from tests.pipelines.stream.drawn import images

MADE = StreamConfig(film=False, min_score=0.0)
FILES = (places.ROWS, places.RESULTS, places.COCO, places.MOT, places.MOTS, places.CVAT)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The frames of a crowded synthetic video."""
    at = tmp_path_factory.mktemp("clip")
    drawn = synthetic.SyntheticConfig.crowded()
    synthetic_dataset.write_dataset(at, drawn, 1, 5)
    return at / "JPEGImages/video_0000"


@pytest.fixture(scope="module")
def first(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the network and the tracker robust make of it, with its detections."""
    out = tmp_path_factory.mktemp("first")
    follow(clip, out, Following(weights="shipped", tracker="robust", keep=True, made=MADE))
    return out


def follow(source: Path, out: Path, how: Following) -> Summary:
    summary = Summary()
    many.follow(Plan(source=str(source), out=out), how, lambda: many.load(how), summary)
    return summary


def again(first: Path, tracker: str, **others: object) -> Following:
    detections = str(first / many.DETECTIONS)
    return Following(weights=None, detections=detections, tracker=tracker, made=MADE, **others)  # type: ignore[arg-type]


def test_the_same_tracker_gives_the_same_bytes(clip: Path, first: Path, tmp_path: Path) -> None:
    summary = follow(clip, tmp_path, again(first, "robust"))
    assert summary.tracks > 1
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (first / name).read_bytes()


def test_another_tracker_gives_what_the_network_and_it_would(
    clip: Path, first: Path, tmp_path: Path
) -> None:
    follow(clip, tmp_path / "a", again(first, "released", overrides=("tracker.memory_length=1",)))
    whole = Following(
        weights="shipped", tracker="released", overrides=("tracker.memory_length=1",), made=MADE
    )
    follow(clip, tmp_path / "b", whole)
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "a" / places.RESULTS).read_bytes() != (first / places.RESULTS).read_bytes()


def test_a_tracker_of_somebody_else_is_followed_too(
    clip: Path, first: Path, tmp_path: Path
) -> None:
    name = "tests.pipelines.stream.drawn:Newcomers"
    follow(clip, tmp_path / "a", again(first, name))
    whole = Following(weights="shipped", tracker=name, made=MADE)
    follow(clip, tmp_path / "b", whole)
    rows = (tmp_path / "a" / places.ROWS).read_text()
    assert rows == (tmp_path / "b" / places.ROWS).read_text()
    ids = [json.loads(line)["track_id"] for line in rows.splitlines()]
    length = len(list(clip.iterdir()))
    assert ids.count(0) == length
    assert sorted(set(ids)) == list(range(len(ids) - length + 1))


def test_detections_are_those_of_the_stage_down_to_the_score_floor(first: Path) -> None:
    source = stored.read(first / many.DETECTIONS)
    (video,) = source.videos
    frames = list(source.frames(video))
    assert [frame.frame_index for frame in frames] == list(range(video.length))
    assert min(float(frame.scores.min()) for frame in frames if len(frame)) < 0.1
    assert source.score_floor == 0.05


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"every": 2}, "made with --every 1 --start 0, got --every 2 --start 0"),
        ({"start": 0.2}, r"got --every 1 --start 0\.2: the frames are others\. Give the same"),
        ({"video_id": 7}, "has no video 7. Name one with --video-id: 1"),
        ({"overrides": ("transforms.test_short_side=64",)}, "--set transforms.* has no effect on"),
    ],
)
def test_what_the_detections_are_not_of_is_told(
    clip: Path, first: Path, tmp_path: Path, others: dict[str, Any], message: str
) -> None:
    with pytest.raises((PipelineError, ValueError), match=message):
        follow(clip, tmp_path, again(first, "robust", **others))


def test_a_source_with_fewer_frames_is_told_unless_its_end_was_asked_for(
    clip: Path, first: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    length = len(list(clip.iterdir()))
    fewer = tmp_path / "fewer"
    shutil.copytree(clip, fewer)
    sorted(fewer.iterdir())[-1].unlink()
    with pytest.raises(
        PipelineError, match=f"ended after {length - 1} frames, but .* has {length}"
    ):
        follow(fewer, tmp_path / "a", again(first, "robust"))
    assert "made of video_0000, not of fewer" in caplog.text
    some = replace(again(first, "robust"), made=replace(MADE, max_frames=3))
    assert follow(clip, tmp_path / "b", some).frames == 3


def test_a_source_with_more_or_other_frames_is_told(
    clip: Path, first: Path, tmp_path: Path
) -> None:
    fewer = replace(MADE, max_frames=2)
    follow(clip, tmp_path / "short", Following(weights="shipped", keep=True, made=fewer))
    with pytest.raises(PipelineError, match=r"the source has more\. Is it the same"):
        follow(clip, tmp_path / "a", again(tmp_path / "short", "robust"))
    with pytest.raises(PipelineError, match=r"frames of \(48, 64\)"):
        follow(images(tmp_path / "other"), tmp_path / "b", again(first, "robust"))
    with pytest.raises(ManifestError, match="holds no"):
        follow(clip, tmp_path / "c", again(tmp_path, "robust"))
