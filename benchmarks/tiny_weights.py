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

from idol import checkpoint
from idol.synthetic import SyntheticConfig, write_dataset

DIALS = {"easy": SyntheticConfig.easy(), "crowded": SyntheticConfig.crowded()}
TRAINING_SEED, HELD_OUT_SEED = 1, 1001
"""Video i of a set is drawn from (seed, i): no held-out video is among those trained on."""


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
    options = parser.parse_args(argv)
    out: Path = options.out
    training = datasets(out, "train", options.videos, TRAINING_SEED)
    held_out = datasets(out, "held-out", options.held_out, HELD_OUT_SEED)
    settings = [word for entry in options.set for word in ("--set", entry)]
    job("prepare", "--annotations", *training, "--out", str(out / "pairs"), "--preset", "tiny")
    trained = job(
        "train", "--pairs", str(out / "pairs"), "--out", str(out / "train"), "--preset", "tiny",
        "--workers", str(options.workers), *(["--gpus"] if options.gpus else []), *settings,
    )  # fmt: skip
    weights = str(trained["checkpoint"])
    scores = job(
        "evaluate", "--annotations", *held_out, "--checkpoint", weights,
        "--out", str(out / "evaluate"),
    )  # fmt: skip
    if options.install:  # asked for, so that a trial of the recipe does not replace them
        shipped = checkpoint.shipped()
        shipped.parent.mkdir(exist_ok=True)
        shutil.copyfile(weights, shipped)
        print(f"Installed {shipped.name} ({shipped.stat().st_size / 1e6:.1f} MB).")
    print(json.dumps(scores))


if __name__ == "__main__":
    main()
