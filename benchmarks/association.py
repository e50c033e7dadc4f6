"""Time of one tracker update, beside the same decisions made pair by pair on masks.

    python -m benchmarks.association

The plain version restates the released tracker the way it is usually written: masks compared two
by two, memory embeddings built instance by instance, a loop over detections on torch tensors.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import machine
from idol.masks import iou
from idol.structures import FrameDetections
from idol.tracker.online import Tracker, TrackerConfig

MASK_SIZE = (90, 160)  # of a 360 x 640 input


def make_video(count: int, length: int, seed: int = 0) -> list[tuple[FrameDetections, Tensor]]:
    """Frames of count moving ellipses with noisy embeddings, and their masks (N, h, w)."""
    rng = np.random.default_rng(seed)
    height, width = MASK_SIZE
    y, x = np.mgrid[:height, :width]
    places = rng.uniform(0, 1, (count, 2)) * MASK_SIZE
    radii = rng.uniform(4, 16, (count, 2))
    identities = rng.normal(0, 0.5, (count, 256))
    video = []
    for t in range(length):
        places += rng.normal(0, 1, places.shape)
        order = rng.permutation(count)
        bits = np.stack(
            [
                ((y - places[i, 0]) / radii[i, 0]) ** 2 + ((x - places[i, 1]) / radii[i, 1]) ** 2
                < 1
                for i in order
            ]
        )
        scores = torch.from_numpy(np.sort(rng.uniform(0.3, 0.99, count))[::-1].copy()).float()
        vectors = identities[order] + rng.normal(0, 0.1, (count, 256))
        shapes = torch.from_numpy(bits)
        frame = FrameDetections(
            frame_index=t,
            scores=scores,
            class_scores=scores[:, None],
            embeddings=torch.from_numpy(vectors).float(),
            overlaps=iou.mask_iou(shapes),
            boxes=torch.zeros(count, 4),
        )
        video.append((frame, shapes))
    return video


class PlainTracker:
    """The released decisions, one pair and one instance at a time."""

    def __init__(self, config: TrackerConfig) -> None:
        self.config = config
        self.memory: dict[int, dict[str, Any]] = {}
        self.next_id = 0
        self.clock = 0

    def update(self, frame: FrameDetections, shapes: Tensor) -> list[int]:
        """Track ids of one frame, -1 for none."""
        kept: list[int] = []
        for i in range(len(frame)):
            suppressed = False
            for k in kept:
                inter = (shapes[i] & shapes[k]).sum()
                union = (shapes[i] | shapes[k]).sum()
                if (inter + 1e-6) / (union + 1e-6) > self.config.mask_nms:
                    suppressed = True
                    break
            if not suppressed:
                kept.append(i)
        ids = {i: -1 for i in kept}
        known = list(self.memory)
        if known:
            means = []
            for j in known:
                weights = torch.stack(self.memory[j]["scores"])
                count = len(weights)
                weights = weights + torch.arange(1, count + 1) * (1.0 / count)
                stack = torch.stack(self.memory[j]["vectors"])
                means.append((stack * weights[:, None]).sum(0) / weights.sum())
            existence = torch.tensor([float(self.memory[j]["exist"]) for j in known])
            products = frame.embeddings[kept] @ torch.stack(means).T
            scores = (products.softmax(1) + products.softmax(0)) / 2
            for n, i in enumerate(kept):
                row = scores[n]
                candidates = row > self.config.match_threshold
                if candidates.sum() > 1:
                    row = row * torch.where(candidates, existence, existence[candidates].mean())
                best, column = row.max(0)
                if best > self.config.match_threshold:
                    ids[i] = known[int(column)]
                    scores[:n, column] = 0
                    scores[n + 1 :, column] = 0
        threshold = self.config.new_threshold if known else self.config.first_threshold
        for i in kept:
            if ids[i] < 0 and frame.scores[i] > threshold:
                ids[i] = self.next_id
                self.next_id += 1
            if ids[i] >= 0:
                one = self.memory.setdefault(ids[i], {"vectors": [], "scores": [], "exist": 0})
                length = self.config.memory_length
                one["vectors"] = [*one["vectors"], frame.embeddings[i]][-length:]
                one["scores"] = [*one["scores"], frame.scores[i]][-length:]
                one["exist"] += 1
                one["seen"] = self.clock
        for j in list(self.memory):
            if self.clock - self.memory[j]["seen"] >= self.config.memory_lifetime:
                del self.memory[j]
        self.clock += 1
        return [ids.get(i, -1) for i in range(len(frame))]


Times = list[float]


def timed(
    config: TrackerConfig, video: list[tuple[FrameDetections, Tensor]]
) -> tuple[Times, Times, list[list[int]]]:
    """Seconds of every frame's overlaps and of its update, and the identities."""
    tracker, counted, updated, ids = Tracker(config), [], [], []
    for frame, shapes in video:
        start = time.perf_counter()
        iou.mask_iou(shapes)
        between = time.perf_counter()
        given = tracker.update(frame)
        end = time.perf_counter()
        counted.append(between - start)
        updated.append(end - between)
        ids.append(given.tolist())
    return counted, updated, ids


def main() -> None:
    """Print one table: milliseconds a frame."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=40, help="frames per video")
    parser.add_argument("--rounds", type=int, default=20, help="times that ours sees it")
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 30, 100], help="detections")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(machine.header(machine.command("benchmarks.association")))
    print(
        "| detections | overlaps, ms | update, ms | both | robust: update, ms | "
        "pair by pair (both), ms | ratio | same ids |"
    )
    print("|---" * 8 + "|")
    for count in arguments.counts:
        video = make_video(count, arguments.frames)
        plain, expected, pairwise = PlainTracker(TrackerConfig.released()), [], []
        for frame, shapes in video:
            start = time.perf_counter()
            expected.append(plain.update(frame, shapes))
            pairwise.append(time.perf_counter() - start)
        overlap, update, robust = [], [], []
        same = True
        for _ in range(arguments.rounds):
            counted, updated, ids = timed(TrackerConfig.released(), video)
            same &= ids == expected
            overlap.append(statistics.median(counted[3:]))
            update.append(statistics.median(updated[3:]))
            robust.append(statistics.median(timed(TrackerConfig.robust(), video)[1][3:]))
        # Of every round the median frame, of all rounds the least, of pair by pair the least frame:
        # the machine is not ours alone.
        a, b, c = (1e3 * min(values) for values in (overlap, update, robust))
        slow = 1e3 * min(pairwise[3:])
        print(
            f"| {count} | {a:.2f} | {b:.2f} | {a + b:.2f} | {c:.2f} | {slow:.1f} | "
            f"{slow / (a + b):.0f} | {'yes' if same else 'NO'} |"
        )


if __name__ == "__main__":
    main()
