"""Stored detections become results, the same ones however they are made."""

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import idol
from idol.config import TrackerConfig
from idol.evaluation import average_precision
from idol.tracker.online import track_video
from idol.ytvis import results
from idol.ytvis.results import to_ytvis
from pipelines.errors import ManifestError, PipelineError
from pipelines.sources import annotations
from pipelines.stages import evaluate, track
from pipelines.storage import claims, layout, manifest, stored
from tests.pipelines import perfect

TRACKER = TrackerConfig.robust()


@pytest.fixture
def detections(make_videos: Callable[..., Any], tmp_path: Path) -> Path:
    """Perfect detections of three videos in shards of four frames."""
    dataset = annotations.read(make_videos([6, 3, 5]).write())
    preset = idol.presets.tiny()
    config = evaluate.with_categories(
        replace(
            preset,
            model=replace(preset.model, num_classes=2),
            detect=replace(preset.detect, frames_per_shard=4),
        ),
        dataset,
    )
    perfect.run(dataset, idol.IDOL(config), tmp_path / "detections", config)
    return tmp_path / "detections"


def test_perfect_detections_track_to_a_perfect_score(detections: Path, tmp_path: Path) -> None:
    found = track.run(detections, tmp_path / "tracks", TRACKER)
    metrics = average_precision.evaluate(
        str(tmp_path / "data" / "instances.json"), tmp_path / "tracks" / layout.RESULTS
    )
    assert metrics.stats["AP"] == pytest.approx(1.0)
    assert found.rows == 6
    assert found.shards == 3


def test_rows_are_those_of_to_ytvis(detections: Path, tmp_path: Path) -> None:
    source = stored.read(detections)
    for video in source.videos:
        frames = [
            replace(frame, masks=tuple(masks))
            for frame, (_, masks) in zip(source.frames(video), source.masks(video), strict=True)
        ]
        expected = to_ytvis(
            track_video(frames, TRACKER),
            frames,
            video_id=video.video_id,
            size=video.size,
            length=video.length,
            category_ids=source.category_ids,
            config=TRACKER,
        )
        rows = track.results_of_video(source, video, TRACKER)
        entries = [
            results.entry(
                r.video_id, source.category_ids[r.label], r.score, r.segmentations, video.size
            )
            for r in rows
        ]
        assert entries == expected


def test_results_are_valid_youtube_vis_json_and_the_archive_holds_them(
    detections: Path, tmp_path: Path
) -> None:
    out = tmp_path / "tracks"
    track.run(detections, out, TRACKER)
    entries = json.loads((out / layout.RESULTS).read_text())
    lengths = {1: 6, 2: 3, 3: 5}
    for entry in entries:
        assert set(entry) == {"video_id", "category_id", "score", "segmentations"}
        assert entry["category_id"] in (3, 7)
        assert len(entry["segmentations"]) == lengths[entry["video_id"]]
    archive = zipfile.ZipFile(io.BytesIO((out / layout.SUBMISSION).read_bytes()))
    assert archive.read("results.json") == (out / layout.RESULTS).read_bytes()


@pytest.mark.ray
def test_tasks_and_a_resumed_run_give_the_bytes_of_the_driver_alone(
    ray_local: None, detections: Path, tmp_path: Path
) -> None:
    alone, tasks = tmp_path / "alone", tmp_path / "tasks"
    track.run(detections, alone, TRACKER)
    # As a kill leaves it: claimed, one video done.
    source = stored.read(detections)
    from idol.config import to_dict

    claims.prepare_output(tasks, "track", to_dict(TRACKER), source.manifest.hash)
    shutil.copy(layout.shard_path(alone, 1), tasks)
    before = layout.shard_path(tasks, 1).stat().st_mtime_ns
    track.run(detections, tasks, TRACKER, few_frames=0)
    assert layout.shard_path(tasks, 1).stat().st_mtime_ns == before
    for path in alone.iterdir():
        if path.name != manifest.MANIFEST:
            assert path.read_bytes() == (tasks / path.name).read_bytes(), path.name


def test_unfinished_detections_are_refused_with_what_to_do(
    detections: Path, tmp_path: Path
) -> None:
    (detections / manifest.MANIFEST).unlink()
    with pytest.raises(ManifestError, match=r"no finished 'detect' output.*jobs\.evaluate"):
        track.run(detections, tmp_path / "tracks", TRACKER)


def test_a_threshold_below_the_stored_floor_is_refused(detections: Path, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"0\.01.*above 0\.05.*detect\.score_floor=0\.01"):
        track.run(detections, tmp_path / "tracks", replace(TRACKER, score_threshold=0.01))
    assert not (tmp_path / "tracks").exists()


def test_a_shard_that_lost_frames_is_noticed(detections: Path, tmp_path: Path) -> None:
    # The second shard holds the end of video 1: put the third in its place.
    shutil.copy(layout.shard_path(detections, 2), layout.shard_path(detections, 1))
    with pytest.raises(ManifestError, match="video 1, 4 of 6 frames"):
        track.run(detections, tmp_path / "tracks", TRACKER)
