"""Tracking ahead of the end of detection changes when, and nothing else."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines import cluster
from pipelines.sources import annotations
from pipelines.stages import evaluate, shard_plan, stored_metrics, track
from pipelines.stages.track_ahead import TrackAhead
from pipelines.storage import layout, manifest, stored
from tests.pipelines import perfect


@pytest.mark.ray
def test_videos_are_tracked_as_soon_as_their_shards_are_there_with_the_same_bytes(
    ray_local: None, make_videos: Callable[..., Any], tmp_path: Path
) -> None:
    import idol
    from idol.config import override

    file = make_videos([6, 3, 5, 9]).write()
    dataset = annotations.read(file)
    model = idol.load(perfect.weights(tmp_path / "w.safetensors"))
    config = evaluate.with_categories(model.config, dataset)
    config = override(config, ["detect.frames_per_shard=4"])
    detections = tmp_path / "detections"
    perfect.run(dataset, model, detections, config)
    whole, early = tmp_path / "whole", tmp_path / "early"
    track.run(detections, whole, config.tracker)

    shards = shard_plan.plan(dataset.videos, 4)
    sized = replace(config, model=replace(config.model, embedding_size=perfect.EMBEDDING_SIZE))
    ahead = TrackAhead(shards, detections, sized, tmp_path / "ahead")
    kept = tmp_path / "kept"
    kept.mkdir()
    # As if detection were still at work: no manifest, and the last shard is missing.
    for path in (detections / manifest.MANIFEST, layout.shard_path(detections, len(shards) - 1)):
        shutil.move(path, kept)
    for number in range(len(shards) - 1):
        ahead.shard(number)
    ahead.finish()
    done = sorted(path.name for path in (tmp_path / "ahead").glob("video-*.parquet"))
    assert done == ["video-1.parquet", "video-2.parquet", "video-3.parquet"]
    for path in kept.iterdir():
        shutil.move(path, detections)
    track.run(detections, early, config.tracker, ahead=tmp_path / "ahead")
    assert not (tmp_path / "ahead").exists()
    for path in whole.iterdir():
        if path.name != manifest.MANIFEST:
            assert path.read_bytes() == (early / path.name).read_bytes(), path.name

    # Scored by tasks or by the driver: the same numbers.
    truth = dataset.truth()
    assert truth is not None
    source = stored.read(detections)
    alone = stored_metrics.measure(truth, source, config.tracker)
    spread = stored_metrics.measure(truth, source, config.tracker, few_frames=0)
    assert alone.oracles.to_dict() == spread.oracles.to_dict()
    assert sorted(alone.per_video, key=str) == sorted(spread.per_video, key=str)


def test_long_videos_are_detected_first_and_together(make_videos: Callable[..., Any]) -> None:
    dataset = annotations.read(make_videos([3, 9, 4, 9, 2]).write())
    shards = shard_plan.plan(dataset.videos, 4)
    order = shard_plan.longest_first(shards, range(len(shards)))
    videos = [{piece.video_id for piece in shards[i]} for i in order]
    assert sorted(order) == list(range(len(shards)))
    assert [v for v in videos if 2 in v] == videos[:3]
    assert videos[-1] <= {1, 3, 5}


@pytest.mark.ray
def test_tasks_come_back_each_with_its_item_and_survive_their_process(
    ray_local: None, tmp_path: Path
) -> None:
    found = dict(cluster.tasks(_dies_once, str(tmp_path), range(20)))
    assert found == {n: n * n for n in range(20)}


def _dies_once(folder: str, item: int) -> int:
    import os

    mark = Path(folder) / "died"
    if item == 7 and not mark.exists():
        mark.touch()
        os._exit(1)
    return item * item
