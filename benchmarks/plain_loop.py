"""What a script would do in place of jobs.evaluate, for benchmarks to compare with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from idol.config import Config
from idol.evaluation import average_precision
from idol.structures import FrameDetections
from idol.tracker.online import track_video
from idol.ytvis import results
from pipelines.sources import frames
from pipelines.sources.annotations import Dataset


def plain_loop(
    dataset: Dataset, detect_one: Callable[[Any, int], FrameDetections], config: Config, path: Path
) -> float:
    """Video after video, frame after frame, then score the file; its AP.

    detect_one: of an (H, W, 3) uint8 RGB frame and its place in the video
    """
    entries: list[dict[str, Any]] = []
    for video in dataset.videos:
        images = frames.read_many(video.frames, video_id=video.video_id, size=video.size)
        found = [detect_one(image, index) for index, image in enumerate(images)]
        entries += results.to_ytvis(
            track_video(found, config.tracker),
            found,
            video_id=video.video_id,
            size=video.size,
            length=len(video.frames),
            category_ids=dataset.category_ids,
            config=config.tracker,
        )
    results.write(path, entries)
    truth = dataset.truth()
    assert truth is not None
    return average_precision.evaluate(truth, path).stats["AP"]
