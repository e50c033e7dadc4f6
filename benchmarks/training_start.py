"""How long jobs.train takes from its command to its first step, and what the time goes to.

python -m benchmarks.training_start

Every run is a process of its own, on pairs that were made before, with Ray started by the job. The
first step is over when its report has come to the progress bar. The least of several runs, for a
busy machine only adds.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import machine
from idol.images.synthetic import SyntheticConfig
from idol.images.synthetic_dataset import write_dataset

_FIRST = re.compile(rb"train: .*[ |][123]/3 ")  # the bar looks twice a second


def first_step(pairs: Path, out: Path, workers: int) -> tuple[float, float]:
    """Seconds to the end of the first step, and to the end of the job, of three steps."""
    words = ["--pairs", str(pairs), "--out", str(out), "--workers", str(workers)]
    words += ["--set", "train.steps=3", "--set", "train.report_every=1", "--overwrite"]
    command = [sys.executable, "-m", "jobs.train", *words]
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    told, reached = b"", 0.0
    while part := process.stderr.read1(4096):  # type: ignore[attr-defined]
        told += part
        if not reached and _FIRST.search(told.replace(b"\r", b"\n")):
            reached = time.monotonic() - started
    if process.wait() or not reached:
        sys.exit(told.decode(errors="replace"))
    return reached, time.monotonic() - started


def main(argv: Sequence[str] | None = None) -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args(argv)
    print(machine.header(machine.command("benchmarks.training_start")))
    print("| workers | seconds to the first step | to the end of the third |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        labels = write_dataset(root / "videos", SyntheticConfig.easy(), 4, 5)
        prepare = ["--annotations", str(labels), "--out", str(root / "pairs"), "--preset", "tiny"]
        subprocess.run(
            [sys.executable, "-m", "jobs.prepare", *prepare], check=True, capture_output=True
        )
        for workers in options.workers:
            found = [
                first_step(root / "pairs", root / f"run-{workers}", workers)
                for _ in range(options.runs)
            ]
            print(
                f"| {workers} | {min(a for a, _ in found):.1f} | {min(b for _, b in found):.1f} |"
            )


if __name__ == "__main__":
    main()
