"""How long a sweep takes, beside an earlier version on the same detections, and its memory.

python -m benchmarks.sweep_time --before ../before --evaluations crowded=runs/crowded
python -m benchmarks.sweep_time --memory --samples 1000 --evaluations crowded=runs/crowded

`before` is a git worktree of the earlier commit. Both run the same random configurations one after
the other, start of Ray and writing of the page included, and take turns. `--memory` sweeps once and
prints what the job, its trials and all of Ray hold at every tenth of the configurations.
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

from benchmarks import machine, processes
from pipelines.sweep.every_sweep import LEDGER

ROOT = Path(__file__).resolve().parent.parent


def main(argv: Sequence[str] | None = None) -> None:
    """Sweep, print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--evaluations", nargs="+", required=True, help="NAME=OUT of jobs.evaluate")
    parser.add_argument("--before", type=Path, help="worktree of the earlier commit")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--samples", type=int, default=199)
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/sweep-time"))
    options = parser.parse_args(argv)
    if options.memory == bool(options.before):
        parser.error("give either --before or --memory")
    print(machine.header(machine.command("benchmarks.sweep_time")))
    options.out.mkdir(parents=True, exist_ok=True)
    if options.memory:
        memory(options)
        return
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
    began = time.monotonic()
    done = subprocess.run(
        words(evaluated, out, samples), cwd=place, check=True, capture_output=True, text=True
    )
    spent = time.monotonic() - began
    return spent, int(json.loads(done.stdout.splitlines()[-1])["configurations"])


def words(evaluated: Path, out: Path, samples: int) -> list[str]:
    """The command of a random sweep into an emptied folder."""
    shutil.rmtree(out, ignore_errors=True)
    places = ["--evaluation", str(evaluated), "--out", str(out)]
    search = ["--search", "random", "--samples", str(samples)]
    return [sys.executable, "-m", "jobs.sweep", *places, *search]


def memory(options: argparse.Namespace) -> None:
    """Sweep once, and print what processes hold at every tenth of the configurations."""
    print("| videos | results | seconds | MiB of the job | of the largest trial | of all of Ray |")
    print("|---" * 6 + "|")
    for named in options.evaluations:
        name, _, folder = named.partition("=")
        out = (options.out / f"{name}-memory").resolve()
        command, began, shown = words(Path(folder).resolve(), out, options.samples), time.time(), 0
        with (options.out / "log").open("w") as log:
            job = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        while job.poll() is None:
            time.sleep(0.5)
            there = out / LEDGER
            done = len(there.read_text().splitlines()) if there.exists() else 0
            if 10 * done // options.samples > shown:
                shown = 10 * done // options.samples
                numbers = (time.time() - began, *held(job.pid))
                # A trial's process may be between two: ended, or not yet named.
                cells = [f"{value:.0f}" if value else "–" for value in numbers]
                print(f"| {name} | {done} | {' | '.join(cells)} |", flush=True)
        if job.returncode:
            raise RuntimeError(f"jobs.sweep ended with {job.returncode}; see {options.out / 'log'}")


def held(job: int) -> tuple[float, float, float]:
    """MiB of the job's own process, of its largest trial, and of all processes below it."""
    there = processes.below(job)
    own = next((process.memory() for process in there if process.pid == job), 0.0)
    trials = [process.memory() for process in there if "Trainable" in process.title]
    return own, max(trials, default=0.0), sum(process.memory() for process in there)


if __name__ == "__main__":
    main()
