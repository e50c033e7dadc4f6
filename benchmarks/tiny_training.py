"""Train the tiny network in one process, without Ray, and score it on held-out synthetic videos.

python -m benchmarks.tiny_training --device cuda --steps 20000

For a GPU, where the recipe of the shipped weights (benchmarks.tiny_weights) can run far longer. The
videos are drawn in memory; AP is that of idol.evaluation, as in every job.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import machine
from idol import presets
from idol.config import Config, override
from idol.detection.detector import Detector
from idol.evaluation.average_precision import Metrics, evaluate
from idol.images.synthetic import SyntheticConfig, SyntheticVideo, make_video
from idol.images.transforms import Clip, Frame, augment, collate
from idol.learning.training import Trainer
from idol.masks import rle
from idol.network.model import IDOL
from idol.structures import PairBatch
from idol.tracker.online import track_video
from idol.weights import checkpoint
from idol.ytvis.results import to_ytvis

DIALS = {"easy": SyntheticConfig.easy(), "crowded": SyntheticConfig.crowded()}
TRAINING_SEED, HELD_OUT_SEED = 1, 1001
"""Video i of a set is drawn from (seed, i): no held-out video is among those trained on."""


def batch_of(
    videos: Sequence[SyntheticVideo], config: Config, rng: np.random.Generator
) -> PairBatch:
    """Random key/reference pairs of random videos, the earlier frame as the key."""
    examples = []
    for index in rng.integers(len(videos), size=config.train.pairs_per_batch):
        video = videos[index]
        first = int(rng.integers(len(video.frames) - 1))
        last = min(first + config.pairs.max_gap, len(video.frames) - 1)
        second = int(rng.integers(first + 1, last + 1))
        frames = tuple(Frame(video.frames[t], video.masks[t]) for t in (first, second))
        examples.append(augment(Clip(frames, video.labels), config.transforms, rng))
    return collate(examples, config.transforms.size_divisor).pairs()


def truth_of(videos: Sequence[SyntheticVideo], classes: int) -> dict[str, Any]:
    """YouTube-VIS truth of the videos, numbered from 1."""
    truth: dict[str, Any] = {"videos": [], "annotations": []}
    truth["categories"] = [{"id": k + 1, "name": str(k)} for k in range(classes)]
    for video_id, video in enumerate(videos, start=1):
        length, height, width, _ = video.frames.shape
        truth["videos"].append({"id": video_id, "height": height, "width": width, "length": length})
        for g, label in enumerate(video.labels):
            shown = video.masks[:, g]
            areas = [int(mask.sum()) for mask in shown]
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1, "video_id": video_id, "iscrowd": 0,
                    "category_id": int(label) + 1, "areas": [a or None for a in areas],
                    "segmentations": [
                        {"size": [height, width], "counts": counts.decode()} if area else None
                        for counts, area in zip(rle.encode_masks(shown), areas, strict=True)
                    ],
                }
            )  # fmt: skip
    return truth


def score(model: IDOL, videos: Sequence[SyntheticVideo]) -> Metrics:
    """Detect, track and score every video."""
    config = model.config
    detector = Detector(model)
    truth = truth_of(videos, config.model.num_classes)
    entries: list[dict] = []
    for video_id, video in enumerate(videos, start=1):
        prepared = [detector.prepare(frame) for frame in video.frames]
        frames = detector.detect(prepared, range(len(prepared)))
        entries += to_ytvis(
            track_video(frames, config.tracker), frames, video_id=video_id,
            size=video.frames.shape[1:3], length=len(frames),
            category_ids=[c["id"] for c in truth["categories"]], config=config.tracker,
        )  # fmt: skip
    return evaluate(truth, entries)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw, train, score, print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, default=5500)
    parser.add_argument("--videos", type=int, default=400, help="training videos of each dial")
    parser.add_argument("--held-out", type=int, default=30, help="test videos of each dial")
    parser.add_argument("--set", action="append", default=[], help="section.field=value")
    parser.add_argument("--save", type=Path, help="write the weights here")
    options = parser.parse_args(argv)
    config = override(presets.by_name("tiny"), [f"train.steps={options.steps}", *options.set])
    print(
        machine.header(
            f"python -m benchmarks.tiny_training {' '.join(sys.argv[1:])}", options.device
        )
    )
    training = [
        make_video(dial, (TRAINING_SEED, i))
        for dial in DIALS.values()
        for i in range(options.videos)
    ]
    torch.manual_seed(config.train.seed)
    rng = np.random.default_rng(config.train.seed)
    trainer = Trainer(IDOL(config).to(options.device), config)
    started = time.perf_counter()
    for _ in range(config.train.steps):
        trainer.step(batch_of(training, config, rng).to(options.device))
    minutes = (time.perf_counter() - started) / 60
    trainer.model.load_state_dict(trainer.weights())
    model = trainer.model.eval()
    if options.save:
        checkpoint.save(model, options.save)
    print(f"{config.train.steps} steps in {minutes:.1f} minutes\n")
    print("| held-out videos | AP | AP50 | AP75 | AR1 | AR10 |\n|---|---|---|---|---|---|")
    for name, dial in DIALS.items():
        videos = [make_video(dial, (HELD_OUT_SEED, i)) for i in range(options.held_out)]
        stats = score(model, videos).stats
        cells = [f"{100 * stats[key]:.1f}" for key in ("AP", "AP50", "AP75", "AR1", "AR10")]
        print(f"| {name}, {len(videos)} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
