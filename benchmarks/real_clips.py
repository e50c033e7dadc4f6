"""The main job on real clips: prepare, train, evaluate on the same clips, sweep, one page.

python -m benchmarks.real_clips --annotations REAL/instances.json REAL/composite/instances.json

Trains the tiny network from the shipped weights, with new class heads, and scores it on the clips
it was trained on: a check that the pipeline learns real pictures, not of generalisation. Every
step is a job that can be run by hand; interrupted, the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks import machine
from benchmarks.tiny_weights import METRICS, cells, job
from pipelines.stages import train
from pipelines.storage import layout, manifest

SETTINGS = ("train.steps=2600", "train.learning_rate=0.0015", "transforms.stretch=[160,256]")
"""Larger pictures than the preset's, for small objects; a lower rate, for it is fine-tuning."""
GRID = (
    "tracker.position_weight=0,0.5,1",
    "tracker.match_threshold=0.5,0.6,0.7,0.8",
    "tracker.momentum=0.3,0.8",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the jobs, print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--annotations", nargs="+", required=True, help="YouTube-VIS JSON")
    parser.add_argument("--out", type=Path, default=Path("runs/real"))
    parser.add_argument("--workers", default="2", help="training processes")
    parser.add_argument("--score", metavar="WEIGHTS", help="train nothing, score these")
    options = parser.parse_args(argv)
    out: Path = options.out
    files = options.annotations
    weights = options.score or training(options)
    folders = []
    for number, path in enumerate(files):
        # Named by its folder, as jobs.evaluate names them; frames of all sizes are read.
        folder = out / f"{number}-{Path(path).resolve().parent.name}"
        job("evaluate", "--annotations", path, "--checkpoint", weights, "--tracker", "robust",
            "--out", str(folder), "--log-to", str(out))  # fmt: skip
        job("evaluate", "--annotations", path, "--checkpoint", weights, "--tracker", "released",
            "--out", f"{folder}-released", "--log-to", str(out))  # fmt: skip
        folders.append(folder)
    grid = [word for entry in GRID for word in ("--grid", entry)]
    job("sweep", "--evaluation", str(folders[-1]), "--out", str(out / "sweep"), *grid,
        "--log-to", str(out))  # fmt: skip
    trained = [] if options.score else ["--train", str(out / "train")]
    job("report", *trained, "--evaluate", *map(str, folders),
        "--sweep", str(out / "sweep"), "--out", str(out / "report.html"))  # fmt: skip
    print(machine.header(machine.command("benchmarks.real_clips")))
    if trained:
        made = manifest.read(out / "train", layout.TRAIN)
        minutes = made.extra["seconds_training"] / 60
        print(f"{made.extra['steps']} steps in {minutes:.1f} minutes\n")
    print(f"| clips | tracker | {' | '.join(METRICS)} | identity switches |")
    print("|---" * (len(METRICS) + 3) + "|")
    for folder in folders:
        for name, place in (("released", Path(f"{folder}-released")), ("robust", folder)):
            summary = json.loads((place / layout.REPORT).read_text())
            switches = sum(row["switches"] for row in summary["per_video"])
            set_name = f"{folder.name[2:]}, {summary['videos']} videos"
            print(f"| {set_name} | {name} | {cells(summary['metrics'])} | {switches} |")
        print(f"| {set_name} | frame oracle | {cells(summary['frame_oracle'])} | |")
        print(f"| {set_name} | upper bound | {cells(summary['upper_bound'])} | |")
    swept = manifest.read(out / "sweep", layout.SWEEP).extra
    best = swept["best"]
    value = 100 * best["metrics"]["AP"]
    print(f"\nSweep on {folders[-1].name[2:]}: best AP {value:.1f} with {best['values']}")


def training(options: argparse.Namespace) -> str:
    """Prepare and train; the checkpoint."""
    out: Path = options.out
    settings = [word for entry in SETTINGS for word in ("--set", entry)]
    job(
        "prepare", "--annotations", *options.annotations, "--out", str(out / "pairs"),
        "--preset", "tiny", "--set", "pairs.max_side=320",
    )  # fmt: skip
    job(
        "train", "--pairs", str(out / "pairs"), "--out", str(out / "train"), "--preset", "tiny",
        "--weights", "shipped", "--reset-classes", "--workers", options.workers, *settings,
    )  # fmt: skip
    return str(out / "train" / train.WEIGHTS)


if __name__ == "__main__":
    main()
