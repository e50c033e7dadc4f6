"""How well trackers associate: on detections simulated from true masks, and on the network's own.

python -m benchmarks.association_quality --annotations REAL/instances.json COMPOSITE/instances.json
python -m benchmarks.association_quality --ablation
python -m benchmarks.association_quality --network shipped

Simulated: seeded errors in boxes, masks, scores, classes, misses, false positives, duplicates and
embeddings (benchmarks/simulated_detections.py). A seed draws new synthetic videos too; of real
clips the videos stay and the errors change. The thresholds of `robust` were chosen on synthetic
videos and errors of other seeds (--seed 9000; for the network 3001), never on real clips.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks import machine, replay
from benchmarks.replay import Clip
from benchmarks.simulated_detections import NoiseConfig, simulate
from benchmarks.tiny_training import DIALS, HELD_OUT_SEED
from idol.config import TrackerConfig
from idol.images.synthetic import SyntheticConfig, make_video
from idol.masks import rle
from idol.weights import checkpoint
from idol.ytvis import truth

BASE = "released"
LONG = dataclasses.replace(SyntheticConfig.crowded(), length=(50, 60), leaving=0.5)
"""What ten frames cannot show: who returns after many, and what a memory turns into."""
SYNTHETIC = {**DIALS, "long": LONG}
_SIDE = 192  # true masks of real clips are shrunk to this longest side: errors are relative

Video = tuple[NDArray[np.bool_], list[int], int]
"""(T, G, H, W) true masks, G labels, number of categories."""


def trackers() -> dict[str, TrackerConfig]:
    """The presets."""
    return {
        BASE: TrackerConfig.released(),
        "paper": TrackerConfig.paper(),
        "multi_cue": TrackerConfig.multi_cue(),
        "robust": TrackerConfig.robust(),
    }


def ablation() -> dict[str, TrackerConfig]:
    """robust less one of its parts at a time, and with the released or another choice instead."""
    full, released = TrackerConfig.robust(), TrackerConfig.released()
    instead: dict[str, dict[str, object]] = {
        "without the place": {"position_weight": 0.0},
        "without the size": {"size_weight": 0.0},
        "without the newest": {"newest_too": False},
        "without both, momentum 0.8": {"newest_too": False, "momentum": 0.8},
        "with class_weight 0.5": {"class_weight": 0.5},
        "with softmax_weight 0.5": {"softmax_weight": 0.5},
        "with same_class": {"same_class": True},
        "with min_cosine 0.3": {"min_cosine": 0.3},
        "memory similarity_guided": {"weighting": "similarity_guided"},
        "memory paper": {"weighting": "paper"},
        "greedy": {"assignment": "greedy"},
        "new_overlap off": {"new_overlap": 1.0},
        "memory_lifetime 10": {"memory_lifetime": released.memory_lifetime},
        "keep_best": {"keep_best": True},
        "released pruning": {
            name: getattr(released, name) for name in ("prune_after", "prune_short", "prune_at_end")
        },
        "new_threshold 0.2": {
            name: getattr(released, name) for name in ("new_threshold", "first_threshold")
        },
        "mask_nms 0.5": {"mask_nms": released.mask_nms},
    }
    changed = {
        name: dataclasses.replace(full, **fields)  # type: ignore[arg-type]
        for name, fields in instead.items()
    }
    cosine = dataclasses.replace(released, similarity="cosine")
    return {
        "robust": full,
        **changed,
        BASE: released,
        "released, cosine": cosine,
        "released, cosine, momentum": dataclasses.replace(cosine, weighting="momentum"),
        "released, cosine, guided": dataclasses.replace(cosine, weighting="similarity_guided"),
    }


def synthetic(dial: str, count: int, seed: int) -> list[Video]:
    """True masks of synthetic videos."""
    config = SYNTHETIC[dial]
    drawn = (make_video(config, (seed, i)) for i in range(count))
    return [(video.masks, video.labels.tolist(), config.num_categories) for video in drawn]


def real(path: Path) -> list[Video]:
    """True masks of a YouTube-VIS file, shrunk."""
    known = truth.read(path)
    ids = list(known.categories)
    videos = []
    for video in known.videos.values():
        height, width = video.size
        scale = min(1.0, _SIDE / max(video.size))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        bits = np.zeros((video.length, len(video), size[1], size[0]), bool)
        for g, track in enumerate(video.masks):
            for t, mask in enumerate(track):
                if mask is not None:
                    counts = mask["counts"]
                    whole = rle.decode_masks([counts], video.size)[0]
                    bits[t, g] = cv2.resize(whole, size, interpolation=cv2.INTER_AREA) > 0
        labels = [ids.index(int(c)) for c in video.category_ids]
        videos.append((bits, labels, len(ids)))
    return videos


def simulated(videos: Sequence[Video], noise: NoiseConfig, seed: int) -> list[Clip]:
    """A clip of each video."""
    return [
        simulate(i + 1, bits, labels, classes, noise, (seed, i))
        for i, (bits, labels, classes) in enumerate(videos)
    ]


def sets(options: argparse.Namespace) -> Iterator[tuple[str, list[list[Clip]]]]:
    """Name, and clips of every seed, of every set of videos asked for."""
    seeds = range(options.seed, options.seed + options.seeds)
    files = {Path(f).resolve().parent.name: real(Path(f)) for f in options.annotations}
    # Drawn once for all dials of likeness.
    drawn = {
        dial: [synthetic(dial, options.videos, s) for s in tqdm(seeds, dial, leave=False)]
        for dial in options.dials
    }
    for name in [*options.dials, *files]:
        for alike in options.alike:
            noise = NoiseConfig(alike=alike, length=options.length)
            clips = [
                simulated(drawn[name][i] if name in drawn else files[name], noise, seed)
                for i, seed in enumerate(tqdm(seeds, f"{name} {alike}", leave=False))
            ]
            yield f"{name}, alike {alike:g}", clips


def network(options: argparse.Namespace) -> Iterator[tuple[str, list[list[Clip]]]]:
    """The network's detections on held-out videos; blocks of them stand for seeds."""
    model = checkpoint.load(options.network)
    for dial in options.dials:
        for every in (1, 3):
            low, high = SYNTHETIC[dial].length
            # As long as the others once two frames of three are left out.
            config = dataclasses.replace(SYNTHETIC[dial], length=(low * every, high * every))
            blocks = []
            for block in tqdm(range(options.seeds), f"{dial}, every {every}", leave=False):
                first = block * options.videos
                blocks.append(
                    [
                        replay.detect(model, make_video(config, (options.seed, i)), i + 1, every)
                        for i in range(first, first + options.videos)
                    ]
                )
            yield dial if every == 1 else f"{dial}, every {every}rd frame", blocks


def main(argv: Sequence[str] | None = None) -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--annotations", nargs="*", default=[], help="YouTube-VIS JSON, real clips")
    parser.add_argument("--dials", nargs="*", default=["easy", "crowded"], choices=SYNTHETIC)
    parser.add_argument("--alike", nargs="+", type=float, default=[0.3, 0.7, 0.9])
    parser.add_argument(
        "--length", type=float, default=NoiseConfig().length, help="of simulated embeddings"
    )
    parser.add_argument("--videos", type=int, default=15, help="synthetic videos a seed and dial")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--seed", type=int, default=HELD_OUT_SEED, help="the first")
    parser.add_argument("--ablation", action="store_true", help="robust less each of its parts")
    parser.add_argument("--network", metavar="WEIGHTS", help="detect with these (or shipped)")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(machine.header(machine.command("benchmarks.association_quality")))
    configs = ablation() if options.ablation else trackers()
    base = "robust" if options.ablation else BASE
    print(replay.heading(base), flush=True)
    for name, clips in network(options) if options.network else sets(options):
        runs = {
            tracker: [replay.score(block, config) for block in clips]
            for tracker, config in configs.items()
        }
        if not options.ablation:
            full = TrackerConfig.robust()
            runs[replay.TRUE_IDENTITIES] = [
                replay.score(block, full, cheat=True) for block in clips
            ]
        print(replay.table(name, runs, base), flush=True)


if __name__ == "__main__":
    main()
