"""How long a sweep takes, beside an earlier version of this repository on the same detections.

python -m benchmarks.sweep_time --before ../before --evaluations crowded=runs/crowded

`before` is a git worktree of the earlier commit. Both run the same random configurations one after
the other, start of Ray and writing of the page included, and take turns.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import machine

ROOT = Path(__file__).resolve().parent.parent


def main(argv: Sequence[str] | None = None) -> None:
    """Sweep, print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--evaluations", nargs="+", required=True, help="NAME=OUT of jobs.evaluate")
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=199)
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/sweep-time"))
    options = parser.parse_args(argv)
    print(machine.header(machine.command("benchmarks.sweep_time")))
    print(
        "| videos | configurations | seconds before | seconds now | ratio |\n|---|---|---|---|---|"
    )
    for named in options.evaluations:
        name, _, folder = named.partition("=")
        spent: dict[str, list[float]] = {"before": [], "now": []}
        for _ in range(options.turns):
            for kind, place in (("before", options.before), ("now", ROOT)):
                out = (options.out / f"{name}-{kind}").resolve()
                seconds, count = sweep(place, Path(folder).resolve(), out, options.samples)
                spent[kind].append(seconds)
        before, now = (statistics.median(values) for values in spent.values())
        print(f"| {name} | {count} | {before:.0f} | {now:.0f} | {now / before:.2f} |", flush=True)


def sweep(place: Path, evaluated: Path, out: Path, samples: int) -> tuple[float, int]:
    """Seconds of one sweep by the code at a place, and its configurations."""
    shutil.rmtree(out, ignore_errors=True)
    words = ["--evaluation", str(evaluated), "--out", str(out), "--search", "random"]
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "jobs.sweep", *words, "--samples", str(samples)],
        cwd=place,
        check=True,
        capture_output=True,
        text=True,
    )
    spent = time.monotonic() - began
    return spent, int(json.loads(done.stdout.splitlines()[-1])["configurations"])


if __name__ == "__main__":
    main()
