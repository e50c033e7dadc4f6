"""Real clips of sources that training has not seen: every source is held out once.

python -m benchmarks.leave_one_out --annotations REAL/instances.json
python -m benchmarks.leave_one_out --table

A source is what stands before the first "_" of a video's name. For every arm and seed one network
is trained for each source, on the clips of the others, and detects and tracks those of its source;
all clips together are then scored, with their categories and class-agnostic (most categories are in
few clips of one source). A row of --rows is an arm and a seed; an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import machine, recipe_steps, replay
from benchmarks.ablation import real_clips, stored
from benchmarks.real_clips import SETTINGS
from benchmarks.replay import Clip
from idol import presets
from idol.config import Config, override
from idol.weights import checkpoint
from pipelines.sources import annotations
from pipelines.stages import pairs, train
from pipelines.training.initial_model import Start
from pipelines.training.workers import Workers

ROWS = Path(__file__).with_suffix(".jsonl")
ARMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "tiny, shipped weights": ("tiny", SETTINGS),
    "tiny, random weights": ("tiny", SETTINGS),
    "small, ImageNet": ("small", ()),
}
"""Preset and settings; real_clips has the first."""
METRICS = ("AP", "AP50", "IDF1")


def config_of(arm: str, seed: int, steps: int) -> Config:
    """The configuration of an arm."""
    preset, settings = ARMS[arm]
    own = (f"train.steps={steps}", f"train.seed={seed}", "train.checkpoint_every=200")
    return override(presets.by_name(preset), [*settings, "pairs.max_side=320", *own])


def start_of(arm: str, backbone: str | None) -> Start:
    """The weights that an arm starts from."""
    if arm == "tiny, shipped weights":
        return Start(weights=str(checkpoint.shipped()), reset_classes=True)
    return Start(backbone_weights=backbone) if "ImageNet" in arm else Start()


def divided(source: Path, out: Path) -> dict[str, tuple[Path, Path]]:
    """Of every source the annotations of all other clips, and of its own."""
    known = json.loads(source.read_text())
    of = {video["id"]: video["name"].partition("_")[0] for video in known["videos"]}
    frames = source.resolve().parent / recipe_steps.FRAMES_FOLDER
    found = {}
    for name in sorted(set(of.values())):
        own = {video_id for video_id, one in of.items() if one == name}
        parts = (("others", of.keys() - own), ("own", own))
        others, mine = (
            recipe_steps.write_part(out / name / kind, known, wanted, frames)
            for kind, wanted in parts
        )
        found[name] = (others, mine)
    return found


def row_of(arm: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train for every source, score all clips."""
    began = time.monotonic()
    clips: dict[str, list[Clip]] = {}
    config = config_of(arm, seed, options.steps)
    for name, (others, own) in divided(options.annotations, options.out).items():
        made = options.out / name / "pairs"
        pairs.run(annotations.read(str(others)), made, config.pairs)
        folder = options.out / name / f"{arm.replace(' ', '-').replace(',', '')}-{seed}"
        start = start_of(arm, options.backbone)
        weights = train.advance(made, folder, config, options.steps, start, Workers(count=0))
        clips[name] = list(real_clips(checkpoint.load(Path(str(weights))), own))
        print(f"{arm}, seed {seed}: without {name} is done", flush=True)
    every = [clip for part in clips.values() for clip in part]
    return {
        "arm": arm,
        "seed": seed,
        "steps": options.steps,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "all": scores(every),
        "agnostic": scores([agnostic(clip) for clip in every]),
        "sources": {n: scores([agnostic(clip) for clip in part]) for n, part in clips.items()},
    }


def agnostic(clip: Clip) -> Clip:
    """The clip with one category, of which a detection has its best score."""
    frames = tuple(
        dataclasses.replace(frame, class_scores=frame.scores[:, None]) for frame in clip.frames
    )
    ones = np.ones_like(clip.truth.category_ids)
    known = dataclasses.replace(clip.truth, categories=(1,), category_ids=ones)
    return Clip(frames, clip.overlaps, known)


def scores(clips: Sequence[Clip]) -> dict[str, float]:
    """METRICS of the preset's tracker, in percent."""
    found = replay.score(clips, presets.tiny().tracker)
    return {metric: round(found[metric], 2) for metric in METRICS}


def table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Means over the seeds of each arm."""
    sources = list(rows[0]["sources"]) if rows else []
    head = ["arm", "seeds", "steps", "AP", "AP50", "class-agnostic AP", "AP50", "IDF1"]
    yield "| " + " | ".join([*head, *(f"agnostic AP, {name}" for name in sources)]) + " |"
    yield "|---" * (len(head) + len(sources)) + "|"
    for arm in ARMS:
        mine = [row for row in rows if row["arm"] == arm]
        if not mine:
            continue
        picked = [("all", "AP"), ("all", "AP50")]
        picked += [("agnostic", metric) for metric in METRICS]
        values = [[row[part][metric] for row in mine] for part, metric in picked]
        values += [[row["sources"][name]["AP"] for row in mine] for name in sources]
        cells = [f"{sum(v) / len(v):.1f}" for v in values]
        yield "| " + " | ".join([arm, str(len(mine)), str(mine[0]["steps"]), *cells]) + " |"


def main(argv: Sequence[str] | None = None) -> None:
    """Make the rows that are not there yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--annotations", type=Path, help="YouTube-VIS JSON of real clips")
    parser.add_argument("--backbone", help="ImageNet weights of EfficientNet-Lite0")
    parser.add_argument("--out", type=Path, default=Path("runs/leave-one-out"))
    parser.add_argument("--rows", type=Path, default=ROWS, help="JSON lines, a finished row each")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--table", action="store_true", help="train nothing")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(machine.header(machine.command("benchmarks.leave_one_out")), flush=True)
    for seed in () if options.table else range(options.seeds):
        for arm in options.arms:
            if any((row["arm"], row["seed"]) == (arm, seed) for row in stored(options.rows)):
                continue
            row = row_of(arm, seed, options)
            with options.rows.open("a") as file:
                file.write(json.dumps(row) + "\n")
    print("\n".join(table(stored(options.rows))))


if __name__ == "__main__":
    main()
