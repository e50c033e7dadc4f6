"""A made-up segmenter whose instances are known, so that what is written of them can be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from idol.config import Config, ModelConfig, TrackerConfig
from idol.images import live
from idol.images.visualize import Image
from idol.instances import Instances
from idol.masks import rle
from idol.structures import FrameDetections, Track
from idol.ytvis import results
from pipelines import stream

SIZE, LENGTH = (48, 64), 12
NAMES = ("pedestrian", "car", "kite & <tail>")
CAR, KITE = 5, 1200
"""Identities; the second is larger than MOTS's numbering of classes has room for."""


class Known:
    """A car that moves right and is gone in frames 4 and 5, and a kite over it that is less certain
    and covers a part of it."""

    settings = Config(
        model=ModelConfig(num_classes=3), categories=NAMES, category_ids=tuple(range(1, 4))
    )

    def __init__(self) -> None:
        self.frames = 0

    def __call__(self, frame: Image, *, number: int, time: float) -> Instances:
        masks = np.zeros((2, *SIZE), bool)
        masks[0, 10:30, 2 + 2 * self.frames : 22 + 2 * self.frames] = True
        masks[0, 15:18, 8 + 2 * self.frames : 12 + 2 * self.frames] = False  # a window
        masks[1, 25:40, 10:40] = True
        counts = tuple(rle.encode_masks(masks))
        found = Instances(
            frame_index=self.frames,
            size=SIZE,
            track_ids=np.array([CAR, KITE]),
            labels=np.array([1, 2 if self.frames > 2 else 0]),
            scores=np.array([0.9, 0.5], np.float32),
            class_scores=np.zeros((2, 3), np.float32),
            boxes=rle.boxes(counts, SIZE),
            counts=counts,
            # What it is is known from the fourth frame on.
            names=("car", NAMES[2 if self.frames > 2 else 0]),
            image=frame,
            number=number,
            time=time,
        )
        gone = self.frames in (4, 5)
        self.frames += 1
        return found.chosen(np.array([1])) if gone else found

    def finish(self) -> list[Track]:
        return []

    def entries(self, video_id: int = 1) -> Iterator[results.Entry]:
        return iter(())


class Newcomers:
    """A tracker for --tracker: every row is a new identity, except that of the best one."""

    def __init__(self, config: TrackerConfig) -> None:
        self.next = 1

    def update(self, frame: FrameDetections) -> list[int]:
        assert frame.time is not None, "a folder of images has times"
        ids = [0, *range(self.next, self.next + len(frame) - 1)][: len(frame)]
        self.next += max(0, len(frame) - 1)
        return ids


def images(at: Path, length: int = LENGTH) -> Path:
    """A folder of grey images."""
    at.mkdir(parents=True, exist_ok=True)
    for t in range(length):
        cv2.imwrite(str(at / f"{t:03d}.png"), np.full((*SIZE, 3), 40 + t, np.uint8))
    return at


def follow(at: Path, every: int = 1, **wanted: Any) -> stream.Summary:
    """Follow such a folder into at/out."""
    source = live.open_source(str(images(at / "clip")), every)
    summary = stream.Summary()
    stream.prepare(at / "out")
    config = stream.StreamConfig(**wanted)
    stream.run(source, Known(), at / "out", config, summary)
    return summary
