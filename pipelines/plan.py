"""What a job would do, without doing it: stages, shards, resources, estimated time and bytes."""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from idol.config import Config
from idol.images.transforms import inference_size
from pipelines import cluster
from pipelines.sources.annotations import Dataset
from pipelines.stages import pairs, shard_plan, track
from pipelines.training import networks
from pipelines.training.workers import Workers

SLOPES = Path(__file__).with_name("slopes.json")
"""What a frame, a pair or a video costs, each with the benchmark that has printed it, and where."""
_STATES = 3  # of each weight a checkpoint keeps: itself, and Adam's two moments


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A part of a job.

    shards:  of what it is done in: files, videos, steps or configurations
    workers: at the same time; cpus, gpus: of each
    seconds: estimated; None: nobody has measured this network on this device
    bytes:   written, estimated
    """

    stage: str
    work: str
    shards: int
    workers: int
    cpus: float
    gpus: float
    seconds: float | None
    bytes: int | None


def prepare(dataset: Dataset, config: Config) -> list[Stage]:
    """The plan of jobs.prepare. Raises: PipelineError: as of pairs.run."""
    shards, _ = pairs.deal(dataset, config.pairs, 1.0)
    rows = sum(piece.stop - piece.start for shard in shards for piece in shard)
    frames = 2 * rows if config.pairs.sampling == "stored" else rows
    known, workers = slopes()["prepare"], min(2 * _there()["cpus"], len(shards))
    scale = _pixels(dataset, lambda size: size) / known["megapixels"]
    return [
        Stage(
            stage="prepare",
            work=f"{rows} rows of {len(dataset.videos)} videos",
            shards=len(shards),
            workers=workers,
            cpus=0.5,
            gpus=0.0,
            seconds=known["start_s"] + frames * known["frame_cpu_s"] * scale / (workers / 2 or 1),
            bytes=int(frames * known["frame_bytes"] * scale),
        )
    ]


def evaluate(
    dataset: Dataset, config: Config, actors: cluster.Pool | None, gpu: bool | None
) -> list[Stage]:
    """The plan of one evaluation of jobs.evaluate."""
    there, known = _there(), slopes()
    on_gpu = bool(there["gpus"]) if gpu is None else gpu
    shards = shard_plan.plan(dataset.videos, config.detect.frames_per_shard)
    frames, count = sum(shard.frames for shard in shards), len(dataset.videos)
    default = (there["gpus"] if on_gpu else there["cpus"] // 2) or 1
    workers = min(actors.most if actors else default, len(shards))
    device = f"gpu {config.detect.speed}" if on_gpu else "cpu"
    slope = known["detect"][device].get(config.model.backbone.name)
    seconds = None
    if slope is not None:
        scale = _pixels(dataset, lambda size: inference_size(size, config.transforms))
        each = slope["frame_s"] * scale / slope["megapixels"]
        seconds = known["detect"]["start_s"] + frames * each / workers
    found = known["detect"]["detections"]
    numbers = config.model.embedding_size + config.model.num_classes + found + 5
    tracks = there["cpus"] if frames > track.FEW_FRAMES else 1
    score = known["score"]
    labelled = dataset.labelled
    common = {"gpus": 0.0, "cpus": 1.0}
    plan = [
        Stage(
            stage="detect",
            work=f"{frames} frames",
            shards=len(shards),
            workers=workers,
            cpus=1.0,
            gpus=float(on_gpu),
            seconds=seconds,
            bytes=frames * found * (4 * numbers + known["detect"]["mask_bytes"]),
        ),
        Stage(
            stage="track",
            work=f"{count} videos",
            shards=count,
            workers=min(tracks, count),
            seconds=frames * known["track"]["frame_s"] / tracks,
            bytes=2 * frames * found * known["detect"]["mask_bytes"],
            **common,
        ),
    ]
    scored = frames * score["frame_s"] / tracks if labelled else 0.0
    last = "score and report" if labelled else "report"
    seconds = score["start_s"] + count * score["video_s"] + scored
    return [
        *plan,
        Stage(
            stage=last, work=f"{count} videos", shards=count, workers=min(tracks, count),
            seconds=seconds, bytes=None, **common,
        ),
    ]  # fmt: skip


def train(config: Config, workers: Workers, validated: bool) -> list[Stage]:
    """The plan of jobs.train."""
    with torch.device("meta"):
        weights = sum(tensor.numel() for tensor in networks.make(config).parameters())
    known, settings, count = slopes()["train"], config.train, max(workers.most, 1)
    slope = None if workers.gpus else known["cpu"].get(config.model.backbone.name)
    seconds = None
    if slope is not None and config.transforms.stretch is not None and not validated:
        height, width = config.transforms.stretch
        each = slope["pair_s"] * height * width / 1e6 / slope["megapixels"]
        seconds = known["start_s"] + settings.steps * settings.pairs_per_batch * each / count
    return [
        Stage(
            stage="train",
            work=f"{settings.steps} steps of {settings.pairs_per_batch} pairs",
            shards=settings.steps,
            workers=count,
            cpus=float(workers.cpus),
            gpus=float(workers.gpus),
            seconds=seconds,
            bytes=4 * weights * (_STATES * settings.keep_checkpoints + 1),
        )
    ]


def sweep(configurations: int, frames: int, workers: int | None) -> list[Stage]:
    """The plan of a sweep of trackers in jobs.sweep; frames: of the stored videos."""
    known, count = slopes()["sweep"], min(workers or _there()["cpus"] // 2 or 1, configurations)
    return [
        Stage(
            stage="sweep",
            work=f"{configurations} configurations of {frames} stored frames",
            shards=configurations,
            workers=count,
            cpus=1.0,
            gpus=0.0,
            seconds=known["start_s"] + configurations * frames * known["frame_s"] / count,
            bytes=None,
        )
    ]


def told(stages: Sequence[Stage], out: Iterable[str]) -> dict[str, Any]:
    """The last line of a dry run; stderr gets the table.

    out: directories that would be written
    """
    there = _there()
    cpus = max((s.workers * s.cpus for s in stages), default=0.0)
    gpus = max((s.workers * s.gpus for s in stages), default=0.0)
    seconds = [stage.seconds for stage in stages]
    return {
        "dry_run": True,
        "out": ", ".join(out),
        "needs": f"{cpus:g} CPUs, {gpus:g} GPUs at most; there are {there['cpus']} and "
        f"{there['gpus']}",
        "seconds": None if None in seconds else round(sum(s or 0.0 for s in seconds), 1),
        "megabytes": round(sum(stage.bytes or 0 for stage in stages) / 1e6, 1),
        "stages": [asdict(stage) for stage in stages],
        "slopes": "pipelines/slopes.json: measured on other machines, so a guess for these",
    }


def table(stages: Sequence[Stage]) -> str:
    """The plan for people."""
    rows: list[tuple[str, ...]] = [
        ("stage", "work", "shards", "workers", "CPUs", "GPUs", "time", "written")
    ]
    for one in stages:
        time = "not measured" if one.seconds is None else f"~{_duration(one.seconds)}"
        size = "–" if one.bytes is None else f"~{one.bytes / 1e6:.0f} MB"
        of_all = (f"{one.workers * each:g}" for each in (one.cpus, one.gpus))
        rows.append((one.stage, one.work, f"{one.shards}", f"{one.workers}", *of_all, time, size))
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, wide, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


@functools.cache
def slopes() -> Mapping[str, Any]:
    """SLOPES, read."""
    content: dict[str, Any] = json.loads(SLOPES.read_text())
    return content


def _there() -> dict[str, int]:
    """CPUs and GPUs of the cluster that would be joined, else of this machine."""
    if cluster.own():
        return {"cpus": os.cpu_count() or 1, "gpus": torch.cuda.device_count()}
    with contextlib.ExitStack() as stack:
        stack.enter_context(cluster.session())
        return {"cpus": cluster.cpus(), "gpus": cluster.gpus()}


def _pixels(dataset: Dataset, shown: Callable[[tuple[int, int]], tuple[int, int]]) -> float:
    """Megapixels of a frame, the mean over the frames; shown: size → size that is computed with."""
    sizes: dict[tuple[int, int], int] = {}
    for video in dataset.videos:
        sizes[video.size] = sizes.get(video.size, 0) + len(video)
    total = 0.0
    for size, frames in sizes.items():
        height, width = shown(size)
        total += frames * height * width / 1e6
    return total / max(sum(sizes.values()), 1)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
