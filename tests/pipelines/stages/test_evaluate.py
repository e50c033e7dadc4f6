"""A checkpoint and a dataset become metrics, a page and an experiment log."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import idol
from idol.config import Config, override
from idol.evaluation import identities
from idol.evaluation.overlaps import FrameOverlap
from idol.structures import Track
from pipelines import configuration
from pipelines.errors import PipelineError
from pipelines.report import experiment_log
from pipelines.sources import annotations
from pipelines.sources.annotations import Dataset
from pipelines.stages import detect, evaluate
from pipelines.storage import layout, manifest
from tests.pipelines import perfect


@pytest.fixture
def perfect_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "run", perfect.run)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def request_of(videos: Any, folder: Path) -> evaluate.Request:
    weights = perfect.weights(folder / "w.safetensors")
    return evaluate.Request(annotations=videos.write(), checkpoint=weights)


def test_everything_found_scores_everything_and_is_reported_and_logged(
    make_videos: Callable[..., Any], perfect_detector: None, tmp_path: Path
) -> None:
    request, out = request_of(make_videos([6, 3, 5]), tmp_path), tmp_path / "out"
    found = evaluate.run(request, out)
    assert found.extra["metrics"]["AP"] == pytest.approx(1.0)
    for name in evaluate.FILES.values():
        assert (out / name).exists(), name
    summary = json.loads((out / layout.REPORT).read_text())
    assert summary["frame_oracle"]["AP"] == summary["upper_bound"]["AP"] == pytest.approx(1.0)
    assert [row["name"] for row in summary["per_category"]] == ["person", "car"]
    assert [(row["video_id"], row["switches"]) for row in summary["per_video"]] == [
        (1, 0), (2, 0), (3, 0)
    ]  # fmt: skip
    page = (out / layout.PAGE).read_text()
    assert page.count('id="clip-') == 3 * 3  # film, masks and truth of each video
    (run,) = experiment_log.runs(out)
    assert run.data.metrics["AP"] == pytest.approx(1.0)
    assert run.data.params["tracker.similarity"] == "cosine"
    # The same call again finds it done; another tracker does not fit into the same place.
    assert evaluate.run(request, out) == found
    with pytest.raises(manifest.ManifestError, match="configuration differs: tracker"):
        evaluate.run(replace(request, tracker="paper"), out)


@pytest.mark.parametrize("finished", [True, False])
def test_an_evaluation_belongs_to_its_frames_wherever_they_lie(
    make_videos: Callable[..., Any], perfect_detector: None, tmp_path: Path, finished: bool
) -> None:
    videos, out = make_videos([6, 3]), tmp_path / "out"
    request = request_of(videos, tmp_path)
    found = evaluate.run(request, out)
    if not finished:  # as a kill after detection leaves it
        (out / manifest.MANIFEST).rename(out / manifest.STARTED)
    root = videos.folder / "JPEGImages"
    other = shutil.copytree(root, tmp_path / "other")
    image = other / "v1" / "000.jpg"
    image.write_bytes((other / "v1" / "001.jpg").read_bytes())
    with pytest.raises(manifest.ManifestError, match=r"its frames were 9 files .*now are 9 files"):
        evaluate.run(replace(request, frames=str(other)), out)
    with pytest.raises(manifest.ManifestError, match=r"its frames were 9 files .*now are 0 files"):
        evaluate.run(replace(request, frames=str(tmp_path)), out, reject_limit=1)
    root.rename(tmp_path / "moved")
    again = evaluate.run(replace(request, frames=str(tmp_path / "moved")), out)
    assert again.hash == found.hash


def test_videos_without_frames_count_as_missed_and_are_listed(
    make_videos: Callable[..., Any], perfect_detector: None, tmp_path: Path, caplog: Any
) -> None:
    videos = make_videos([4, 4, 4])
    videos.frame(2, 1).unlink()
    # Of another video the truth is at fault. Neither fault may change what the other does.
    del videos.content["annotations"][4]["segmentations"][0]
    out = tmp_path / "out"
    request = request_of(videos, tmp_path)
    with pytest.raises(PipelineError, match=r"2 of 3 videos have a fault.*--reject-limit"):
        evaluate.run(request, out)
    assert not out.exists()
    found = evaluate.run(request, out, reject_limit=0.7)
    assert found.rejects == 2
    assert found.extra["metrics"]["AR100"] == pytest.approx(0.5)
    summary = json.loads((out / layout.REPORT).read_text())
    assert summary["missing_videos"] == [2]
    assert {row["video_id"]: row["effect"] for row in summary["rejects"]} == {
        2: "counted as missed",
        3: "not scored",
    }
    assert summary["rejects"][0]["path"].endswith("001.jpg")
    entries = json.loads((out / layout.RESULTS).read_text())
    assert {entry["video_id"] for entry in entries} == {1}
    told = "1 of 3 videos counted as missed, 1 of 3 videos not scored; the first is video 2: "
    assert told in caplog.text
    caplog.clear()
    assert evaluate.run(request, out, reject_limit=0.7) == found
    assert told in caplog.text, "a finished output says so again"
    assert "1 of 3 videos are not scored, for their truth cannot be read: video 3" in caplog.text
    assert "1 video counted as missed, 1 video not scored." in (out / layout.PAGE).read_text()


@pytest.mark.parametrize("lost", ["frames", "objects"])
def test_where_no_video_with_an_object_can_be_seen_there_are_scores_all_the_same(
    make_videos: Callable[..., Any], perfect_detector: None, tmp_path: Path, lost: str
) -> None:
    videos = make_videos([4, 4])
    if lost == "frames":
        videos.content["annotations"] = videos.content["annotations"][2:]
        videos.frame(2, 1).unlink()
    else:
        videos.content["annotations"] = []
    found = evaluate.run(request_of(videos, tmp_path), tmp_path / "out", reject_limit=0.5)
    assert found.extra["metrics"]["AP"] == (0 if lost == "frames" else -1)


def test_videos_whose_truth_cannot_be_read_are_not_scored(
    make_videos: Callable[..., Any], perfect_detector: None, tmp_path: Path
) -> None:
    videos = make_videos([4, 4])
    del videos.content["annotations"][2]["segmentations"][0]
    found = evaluate.run(request_of(videos, tmp_path), tmp_path / "out", reject_limit=0.5)
    assert found.rejects == 1
    assert found.extra["metrics"]["AP"] == pytest.approx(1.0)


def test_odd_names_are_repaired_told_and_scored_like_others(
    make_videos: Callable[..., Any], perfect_detector: None, tmp_path: Path, caplog: Any
) -> None:
    videos = make_videos([4, 4])
    for category in videos.content["categories"]:
        category["name"] = "half \ud800"  # of a character; and one name for both
    for video in videos.content["videos"]:
        video["name"] = "clip \udfff"
        video["file_names"] = [name.replace("/", "\\") for name in video["file_names"]]
    # One frame's name cannot be on any disk: that video alone has no frames.
    videos.content["videos"][1]["file_names"][0] = "v2\\\ud83d.jpg"
    out = tmp_path / "out"
    found = evaluate.run(request_of(videos, tmp_path), out, reject_limit=0.5)
    assert found.extra["metrics"]["AR100"] == pytest.approx(0.5)
    summary = json.loads((out / layout.REPORT).read_text())
    assert [row["name"] for row in summary["per_category"]] == ["half ?", "half ? (2)"]
    assert summary["rejects"][0]["path"].endswith("v2/?.jpg")
    for words in ("replaced by '?'", "with backslashes", "with the name of another"):
        assert words in caplog.text
    assert "instances.json was repaired" in caplog.text


def test_without_truth_there_are_results_and_no_scores(
    make_videos: Callable[..., Any], tmp_path: Path
) -> None:
    videos = make_videos([2])
    videos.content["annotations"] = None
    assert annotations.read(videos.write()).truth() is None


def test_a_subset_at_a_stride_is_scored_against_the_same_subset(
    make_videos: Callable[..., Any], perfect_detector: None, tmp_path: Path
) -> None:
    request = replace(
        request_of(make_videos([6, 3, 5]), tmp_path),
        video_ids=[1, 3],
        stride=2,
        overrides=["tracker.match_threshold=0.2"],
    )
    found = evaluate.run(request, tmp_path / "out")
    assert found.extra["metrics"]["AP"] == pytest.approx(1.0)
    summary = json.loads((tmp_path / "out" / layout.REPORT).read_text())
    assert (summary["videos"], summary["frames"]) == (2, 6)


def categories(**named: int) -> Dataset:
    kept = {i: name for name, i in sorted(named.items(), key=lambda item: item[1])}
    return Dataset((), kept, (), "", ())


def test_labels_are_given_the_categories_of_the_dataset() -> None:
    preset = idol.presets.tiny()
    config = replace(preset, model=replace(preset.model, num_classes=2))
    mapped = evaluate.with_categories(config, categories(person=3, car=7))
    assert (mapped.category_ids, mapped.categories) == ((3, 7), ("person", "car"))
    assert evaluate.with_categories(mapped, categories(person=3, car=7)) == mapped
    assert evaluate.with_categories(mapped, categories(Person=3, CAR=7)) == mapped


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"person": 3, "truck": 7}, "category_id 7 is 'car' in the checkpoint and 'truck'"),
        ({"person": 3}, "category_id 7 is 'car' in the checkpoint and 'absent'"),
        ({"person": 3, "car": 7, "dog": 8}, "category_id 8 is 'absent' in the checkpoint"),
    ],
)
def test_other_categories_than_those_trained_on_are_refused(
    given: dict[str, int], message: str
) -> None:
    preset = idol.presets.tiny()
    config = replace(preset, model=replace(preset.model, num_classes=2))
    trained = evaluate.with_categories(config, categories(person=3, car=7))
    with pytest.raises(ValueError, match=message):
        evaluate.with_categories(trained, categories(**given))
    with pytest.raises(ValueError, match="4 classes, the dataset 2"):
        evaluate.with_categories(preset, categories(person=3, car=7))


def test_the_network_cannot_be_changed_nor_the_floor_be_undercut(tmp_path: Path) -> None:
    preset = override(idol.presets.tiny(), ["model.num_classes=2"])
    config = evaluate.with_categories(preset, categories(person=3, car=7))
    changed: Config = configuration.changed(config, ["transforms.test_short_side=360"], None)
    assert changed.transforms.test_short_side == 360
    with pytest.raises(ValueError, match="trained network"):
        configuration.changed(config, ["model.num_queries=10"], None)
    with pytest.raises(PipelineError, match=r"detect\.score_floor=0\.01"):
        configuration.changed(config, ["tracker.score_threshold=0.01"], None)


def test_an_identity_switch_is_counted_when_another_track_takes_over() -> None:
    import torch

    def overlap(index: int, rows: list[tuple[float, float]]) -> FrameOverlap:
        # Two true instances of 10 pixels; a row says how many of each a detection of 10 covers.
        shared = np.array(rows, np.float32).reshape(-1, 2)
        return FrameOverlap(
            index, shared, np.full(len(rows), 10, np.float32), np.full(2, 10, np.float32)
        )

    def track_of(track_id: int, **rows: int) -> Track:
        return Track(track_id, {int(k[1:]): v for k, v in rows.items()}, torch.zeros(1))

    overlaps = [
        overlap(0, [(9, 0), (0, 9)]),
        overlap(1, [(0, 9), (9, 0)]),  # the same rows show the other instance: two switches
        overlap(2, [(3, 0)]),  # too little to show anything
        overlap(3, [(9, 0)]),  # instance 0 again by track 1, as in frame 1: no switch
        overlap(4, [(9, 0)]),  # by a new track: one switch
    ]
    tracks = [track_of(0, f0=0, f1=0, f2=0), track_of(1, f0=1, f1=1, f3=0), track_of(2, f4=0)]
    assert identities.identity_switches(tracks, overlaps) == 3
