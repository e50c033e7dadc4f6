"""Damaged files given to every reader: no crash, no unclear error, no other number in silence.

python -m benchmarks.fuzz --seconds 300
python -m benchmarks.fuzz --only rle --seed 4711 --count 1

A process of its own reads one damaged file after the other and says what became of each; one
that dies or is silent for a minute is a failure of the file that it was at. Prints for each kind:
files; accepted, those with other content that no checksum or decoder could have seen (changed),
refused with a documented error, and failures, each with the command that repeats it. A failure is
an undocumented exception, a crash, a hang, two readers that disagree, or content that is another
although the format has a checksum. Exits with 1 if there is any.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import logging
import os
import queue
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import machine
from benchmarks.fuzz_readers import KINDS, REFUSALS, Reader

_SILENCE_S = 60.0
_MEMORY = 8 << 30  # bytes that a reader may take
_SHOWN = 10  # failures of a kind


def executions(kind: str, seeds: Iterable[int]) -> Iterator[tuple[int, str, str]]:
    """(seed, outcome or "failure", why) of one file after the other."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pycocotools of numpy
        try:
            one = KINDS[kind](Path(folder))
            for seed in seeds:
                yield seed, *_outcome(one, random.Random(f"{kind} {seed}"))
        finally:
            logging.disable(before)


def _outcome(one: Reader, rng: random.Random) -> tuple[str, str]:
    try:
        return one(rng), ""
    except REFUSALS:
        return "refused", ""
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        return "failure", f"{type(error).__name__} at {where}: {error}"[:300]


@dataclass
class Tally:
    """What became of the files of one kind; failures: (seed, why)."""

    counts: collections.Counter[str]
    failures: list[tuple[int, str]]


def fuzz(kind: str, seed: int, seconds: float, count: int | None) -> Tally:
    """Read damaged files in processes of their own until the time is over."""
    tally = Tally(collections.Counter(), [])
    deadline, first, last = (
        time.monotonic() + seconds,
        seed,
        None if count is None else seed + count,
    )
    while time.monotonic() < deadline and (last is None or first < last):
        first = _one_process(kind, first, last, deadline, tally)
    return tally


def _one_process(kind: str, first: int, last: int | None, deadline: float, tally: Tally) -> int:
    """Run one process until it ends or the time is over; the first seed that is left."""
    words = ["-m", "benchmarks.fuzz", "--worker", kind, "--seed", str(first)]
    words += [] if last is None else ["--count", str(last - first)]
    lines: queue.Queue[str | None] = queue.Queue()

    def listen(stream: Iterable[str]) -> None:
        for line in stream:
            lines.put(line)
        lines.put(None)

    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            [sys.executable, *words], stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        assert process.stdout is not None
        listener = threading.Thread(target=listen, args=(process.stdout,))
        listener.start()
        try:
            while time.monotonic() < deadline:
                line = lines.get(timeout=_SILENCE_S)
                if line is None:
                    break
                seed, outcome, why = json.loads(line)
                first = seed + 1
                tally.counts[outcome] += 1
                if outcome == "failure":
                    tally.failures.append((seed, why))
            else:
                return first
            if process.wait() == 0:
                return first
            errors.seek(0)
            last_words = errors.read()[-200:].decode(errors="replace").strip()
            why = f"the process ended with {process.returncode}: {last_words}"
        except queue.Empty:
            why = f"nothing for {_SILENCE_S:.0f} s"
        finally:
            process.kill()
            listener.join()
    tally.counts["failure"] += 1
    tally.failures.append((first, why))
    return first + 1


def main(argv: Sequence[str] | None = None) -> None:
    """Run the kinds one after the other, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seconds", type=float, default=300.0, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, help="files of each kind at most")
    parser.add_argument("--worker", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.worker:
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        seeds = itertools.count(options.seed)
        for found in executions(options.worker, itertools.islice(seeds, options.count)):
            print(json.dumps(found), flush=True)
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    print(machine.header(machine.command("benchmarks.fuzz")))
    columns = ("accepted", "changed", "refused", "failure")
    print(f"| kind | files | {' | '.join(columns)} |\n{'|---' * (len(columns) + 2)}|", flush=True)
    failures = []
    for kind in options.only:
        tally = fuzz(kind, options.seed, options.seconds, options.count)
        cells = " | ".join(str(tally.counts[column]) for column in columns)
        print(f"| {kind} | {tally.counts.total()} | {cells} |", flush=True)
        failures += [(kind, *failure) for failure in tally.failures[:_SHOWN]]
    for kind, seed, why in failures:
        print(
            f"\n{kind}: {why}\n    python -m benchmarks.fuzz --only {kind} --seed {seed} --count 1"
        )
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
