"""Train the shipped tiny weights anew, on synthetic videos only, and score them on other seeds.

make tiny-weights    = python -m benchmarks.tiny_weights --out runs/tiny-weights --install

Every step is a job that can be run by hand; interrupted, the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import machine
from benchmarks.tiny_training import DIALS, HELD_OUT_SEED, TRAINING_SEED
from idol.images.synthetic_dataset import write_dataset
from idol.weights import checkpoint
from pipelines.report import charts, run_page
from pipelines.storage import layout, manifest

CURVE = Path("docs/tiny-training.svg")
METRICS = ("AP", "AP50", "AP75", "AR1", "AR10")
TRACKERS = ("released", "paper", "robust")


def job(name: str, *arguments: str) -> dict[str, object]:
    """Run a job as a user would, its log on this terminal, and return its JSON."""
    command = [sys.executable, "-m", f"jobs.{name}", *arguments]
    print("$ python -m " + " ".join(command[2:]), flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"jobs.{name} ended with status {done.returncode}; its message stands above.")
    return json.loads(done.stdout.splitlines()[-1])


def datasets(out: Path, kind: str, videos: int, seed: int) -> list[str]:
    """One dataset of each dial; the paths of their annotations."""
    return [
        str(
            write_dataset(
                out / f"{kind}-{dial}", config, videos, seed, processes=None, progress=True
            )
        )
        for dial, config in DIALS.items()
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Generate, prepare, train, install the weights, evaluate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/tiny-weights"))
    parser.add_argument("--videos", type=int, default=400, help="training videos of each dial")
    parser.add_argument("--held-out", type=int, default=30, help="test videos of each dial")
    parser.add_argument("--workers", type=int, default=2, help="training processes")
    parser.add_argument("--gpus", action="store_true", help="one GPU for each of them")
    parser.add_argument("--install", action="store_true", help="make these the shipped weights")
    parser.add_argument("--set", action="append", default=[], help="section.field=value")
    parser.add_argument(
        "--score", metavar="WEIGHTS", help="train nothing, score these (or shipped)"
    )
    parser.add_argument("--trackers", nargs="+", default=TRACKERS, help="rows of the table")
    options = parser.parse_args(argv)
    out: Path = options.out
    held_out = datasets(out, "held-out", options.held_out, HELD_OUT_SEED)
    trained = ""
    weights = options.score
    if weights is None:
        weights, trained = training(options)
    for tracker in options.trackers:
        job(
            "evaluate", "--annotations", *held_out, "--checkpoint", weights,
            "--tracker", tracker, "--out", str(out / f"evaluate-{tracker}"), "--overwrite",
        )  # fmt: skip
    print(machine.header(f"python -m benchmarks.tiny_weights {' '.join(sys.argv[1:])}".strip()))
    print(trained)
    print(table(out, options.trackers))
    # Only where asked for, so that a trial of the recipe does not replace them.
    if options.install and options.score is None:
        shipped = checkpoint.shipped()
        shipped.parent.mkdir(exist_ok=True)
        shutil.copyfile(weights, shipped)
        CURVE.write_text(loss_curve(out / "train"))
        print(f"\nInstalled {shipped.name} ({shipped.stat().st_size / 1e6:.1f} MB), {CURVE}.")


def training(options: argparse.Namespace) -> tuple[str, str]:
    """Prepare and train; the checkpoint, and a line about how long it took."""
    out: Path = options.out
    videos = datasets(out, "train", options.videos, TRAINING_SEED)
    settings = [word for entry in options.set for word in ("--set", entry)]
    job("prepare", "--annotations", *videos, "--out", str(out / "pairs"), "--preset", "tiny")
    trained = job(
        "train", "--pairs", str(out / "pairs"), "--out", str(out / "train"), "--preset", "tiny",
        "--workers", str(options.workers), *(["--gpus"] if options.gpus else []), *settings,
    )  # fmt: skip
    made = manifest.read(out / "train", layout.TRAIN)
    line = (
        f"{made.extra['steps']} steps of {made.config['config']['train']['pairs_per_batch']} pairs "
        f"on {made.extra['workers']} workers in {made.extra['seconds_training'] / 60:.1f} minutes\n"
    )
    return str(trained["checkpoint"]), line


def table(out: Path, trackers: Sequence[str]) -> str:
    """The scores of every held-out set and tracker, in percent, as a Markdown table."""
    lines = [f"| held-out videos | tracker | {' | '.join(METRICS)} | identity switches |"]
    lines.append("|---" * (len(METRICS) + 3) + "|")
    for dial in DIALS:
        for tracker in trackers:
            folder = out / f"evaluate-{tracker}" / f"held-out-{dial}"
            summary = json.loads((folder / layout.REPORT).read_text())
            switches = sum(row["switches"] for row in summary["per_video"])
            lines.append(f"| {dial} | {tracker} | {cells(summary['metrics'])} | {switches} |")
        lines.append(f"| {dial} | frame oracle | {cells(summary['frame_oracle'])} | |")
        lines.append(f"| {dial} | upper bound | {cells(summary['upper_bound'])} | |")
    return "\n".join(lines)


def cells(stats: dict[str, float]) -> str:
    """The metrics in percent, as cells of a table's row."""
    return " | ".join(f"{100 * stats[name]:.1f}" for name in METRICS)


def loss_curve(training: Path) -> str:
    """The total loss over the steps, as an SVG file that stands alone."""
    style = (
        "<style>.raw{fill:none;stroke:#9ab;stroke-width:1}.mean{fill:none;stroke:#246;"
        "stroke-width:2}.grid,.axis{stroke:#ddd}text{font:12px sans-serif;fill:#555}</style>"
    )
    drawn = str(charts.curve(run_page.curves(training)["loss"], "loss"))
    head, body = drawn.split(">", 1)
    return f'{head} xmlns="http://www.w3.org/2000/svg">{style}{body}\n'


if __name__ == "__main__":
    main()
