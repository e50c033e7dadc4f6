"""What sweeping the tracker gains, on the videos it was chosen on and on held-out ones.

python -m benchmarks.sweeps --evaluations crowded=runs/crowded real=runs/real/0-real

Sweeps the released tracker and ours on stored detections of finished evaluations, and prints one
table. Held out: each of five folds is scored with what was best on the other four. Interrupted, the
same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.tiny_weights import job

TRACKERS = ("released", "robust")


def main(argv: Sequence[str] | None = None) -> None:
    """Sweep, print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--evaluations", nargs="+", required=True, help="NAME=OUT of jobs.evaluate")
    parser.add_argument("--samples", type=int, default=120)
    parser.add_argument("--objective", default="AP")
    parser.add_argument("--out", type=Path, default=Path("runs/sweeps"))
    options = parser.parse_args(argv)
    rows = []
    for named in options.evaluations:
        name, _, folder = named.partition("=")
        for tracker in TRACKERS:
            found = job(
                "sweep", "--evaluation", folder, "--tracker", tracker, "--samples",
                str(options.samples), "--objective", options.objective,
                "--out", str(options.out / f"{name}-{tracker}"), "--log-to", str(options.out),
            )  # fmt: skip
            rows.append(row(name, tracker, found))
    print(machine.header(machine.command("benchmarks.sweeps")))
    print(
        f"| videos | tracker | {options.objective} as it comes | best of the sweep | held out, "
        "95 % interval | gain held out, interval | configurations, failed | seconds |"
    )
    print("|---" * 8 + "|")
    print("\n".join(rows))


def row(name: str, tracker: str, found: dict[str, Any]) -> str:
    """A line of the table from the last line of jobs.sweep."""
    held = found["held_out"]
    gap = held["difference"]
    return (
        f"| {name} | {tracker} | {100 * held['base']:.1f} | {100 * found['best']['value']:.1f} | "
        f"{points(held['value'], held['interval'])} | {points(gap['value'], gap['interval'], '+')} "
        f"| {found['configurations']}, {found['failed']} | {found['seconds']:.0f} |"
    )


def points(value: float, interval: Sequence[float], sign: str = "") -> str:
    """A value and its interval in percent."""
    low, high = interval
    return f"{100 * value:{sign}.1f} ({100 * low:{sign}.1f} to {100 * high:{sign}.1f})"


if __name__ == "__main__":
    main()
