"""What sweeping the training gains: eight trials under ASHA, then the best against the default.

python -m benchmarks.training_sweep --out runs/training-sweep

Crowded synthetic videos. The sweep chooses on other videos than the last table scores. For that
table, default and best are trained again with other seeds. Every step is a job that can be run by
hand; interrupted, the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine, replay
from benchmarks.tiny_training import DIALS, HELD_OUT_SEED, TRAINING_SEED
from benchmarks.tiny_weights import job
from idol.images.synthetic_dataset import write_dataset
from pipelines.storage import layout

CHOICE_SEED = 3001
SPACE = (
    ("--log-uniform", "train.learning_rate=5e-4,1e-2"),
    ("--choice", "losses.reid=0.1,0.25,1,2"),
    ("--choice", "losses.mask=1,2,4"),
    ("--choice", "train.ema_decay=0.99,0.998"),
)
METRICS = ("AP", "AP50", "AP75", "AR10")


def main(argv: Sequence[str] | None = None) -> None:
    """Sweep, train again, print two tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/training-sweep"))
    parser.add_argument("--steps", type=int, default=600, help="of a whole training")
    parser.add_argument("--samples", type=int, default=8, help="trials")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of the last table")
    parser.add_argument("--videos", type=int, default=150, help="to train on")
    parser.add_argument("--held-out", type=int, default=60, help="to score")
    parser.add_argument("--choice", type=int, default=30, help="videos that the sweep chooses on")
    options = parser.parse_args(argv)
    out: Path = options.out
    sets = {"train": TRAINING_SEED, "choice": CHOICE_SEED, "held_out": HELD_OUT_SEED}
    counts = {"train": options.videos, "choice": options.choice, "held_out": options.held_out}
    files = {
        name: str(write_dataset(out / name, DIALS["crowded"], counts[name], seed))
        for name, seed in sets.items()
    }
    pairs = str(out / "pairs")
    job("prepare", "--annotations", files["train"], "--out", pairs, "--preset", "tiny")
    job(
        "sweep", "--pairs", pairs, "--annotations", files["choice"], "--out", str(out / "sweep"),
        "--preset", "tiny", "--set", f"train.steps={options.steps}", "--workers", "0",
        "--samples", str(options.samples), "--scheduler", "asha", "--grace-period",
        str(options.steps // 9), *[word for entry in SPACE for word in entry],
    )  # fmt: skip
    report = json.loads((out / "sweep" / layout.REPORT).read_text())
    best = json.loads((out / "sweep" / "best.json").read_text())["set"]
    print(machine.header(machine.command("benchmarks.training_sweep")))
    print(trials(report))
    print("\nbest:", " ".join(best), "\n")
    found = {
        name: [trained(out, name, words, seed, options.steps, pairs, files["held_out"])
               for seed in range(1, options.seeds + 1)]
        for name, words in (("default", []), ("best", best))
    }  # fmt: skip
    print(comparison(found))


def trials(report: dict[str, Any]) -> str:
    """What every trial had, and how far it came."""
    names = [entry[1].partition("=")[0] for entry in SPACE]
    lines = [f"| trial | {' | '.join(names)} | steps | AP |", "|---" * (len(names) + 3) + "|"]
    for trial in report["trials"]:
        values = [trial["values"].get(name) for name in names]
        told = ["default" if value is None else f"{value:.3g}" for value in values]
        cells = [str(trial["number"]), *told, str(trial["budget"]), f"{100 * trial['value']:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def trained(
    out: Path, name: str, words: Sequence[str], seed: int, steps: int, pairs: str, held_out: str
) -> dict[str, float]:
    """Train with these settings and a seed, and score on the held-out videos."""
    folder = out / f"{name}-{seed}"
    settings = [f"train.steps={steps}", f"train.seed={seed}", *words]
    job(
        "train", "--pairs", pairs, "--out", str(folder / "train"), "--preset", "tiny",
        "--workers", "0", "--resume", *[w for text in settings for w in ("--set", text)],
    )  # fmt: skip
    done = job(
        "evaluate", "--annotations", held_out, "--out", str(folder / "evaluate"),
        "--checkpoint", str(folder / "train" / "checkpoint.safetensors"),
    )  # fmt: skip
    return {metric: float(str(done[metric])) for metric in METRICS}


def comparison(found: dict[str, list[dict[str, float]]]) -> str:
    """Means over seeds, and the paired gain in AP with its interval."""
    lines = [f"| training | seeds | {' | '.join(METRICS)} |", "|---" * (len(METRICS) + 2) + "|"]
    for name, runs in found.items():
        cells = [f"{100 * sum(run[m] for run in runs) / len(runs):.1f}" for m in METRICS]
        lines.append(f"| {name} | {len(runs)} | {' | '.join(cells)} |")
    gaps = [100 * (b["AP"] - d["AP"]) for b, d in zip(found["best"], found["default"], strict=True)]
    mean, half = replay.interval(gaps)
    lines.append(f"\nbest − default: {mean:+.1f} ± {half:.1f} AP over {len(gaps)} seeds")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
