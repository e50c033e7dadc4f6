"""Jobs sent to a cluster of hosts while hosts, networks and servers fail: what becomes of them.

python -m benchmarks.cluster_chaos --runs 10
python -m benchmarks.cluster_chaos --table

As root, on Linux. A head and two hosts, each in a network namespace with an address of its own
(tests/hosts.py). From outside, jobs.submit sends prepare, train, evaluate or sweep, each run from
nothing. At a random moment of it one of these happens: a host loses its power and is switched on
again 5 s later; a host joins a cluster of one; the job's supervisor is killed; a host's network is
cut for 20 s; the S3 server that the output goes to is stopped for 10 s. A job that has failed is
sent once more, train with --resume. Then its files are compared with those of an undisturbed run,
byte by byte. Each finished run is a line of benchmarks/cluster_chaos.jsonl; --table prints them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.chaos import STAGES
from benchmarks.processes import below
from idol.images.synthetic import SyntheticConfig
from idol.images.synthetic_dataset import write_dataset
from tests import object_storage
from tests.hosts import Hosts, cluster, missing

ROOT = Path(__file__).resolve().parent.parent
ROWS = Path(__file__).with_suffix(".jsonl")
DEATHS = {
    "node": "a host loses its power",
    "join": "a host joins",
    "supervisor": "the job's supervisor is killed",
    "network": "a host's network is cut for 20 s",
    "storage": "the S3 server stands still for 10 s",
}
NAMES = ("prepare", "train", "evaluate", "sweep")
_INPUTS = {"train": ("prepare",), "sweep": ("evaluate",)}
_LIMIT_S = 420.0  # of one job
_CUT_S, _STILL_S, _OFF_S = 20.0, 10.0, 5.0
_SHORT = ("--set", "train.steps=20")
_OTHERS = ("a", "b")


@dataclass(frozen=True)
class Row:
    """A finished run.

    at:      seconds after the submission at which it happened; lasted: of the whole run
    again:   whether the job failed and was sent once more; told: what it said then
    same:    whether the files are those of an undisturbed run
    """

    stage: str
    death: str
    at: float
    lasted: float
    again: bool
    told: str
    same: bool
    commit: str


class World:
    """The hosts, the data, and what undisturbed jobs have made of it."""

    def __init__(
        self, hosts: Hosts, s3: object_storage.S3Server, folder: Path, stage: str | None
    ) -> None:
        self.hosts, self.s3, self.folder = hosts, s3, folder
        self.annotations = write_dataset(folder / "videos", SyntheticConfig.easy(), 12, 95_000)
        self.seconds: dict[str, float] = {}
        self.code = _output("git", "rev-parse", *(f"HEAD:{r}" for r in ("ops", "idol", "jobs")))
        self.code += _output("git", "rev-parse", "HEAD:pipelines")
        hosts.start("head", cpus=1)
        for name in _OTHERS:
            hosts.begin(name)
        for name in _OTHERS:
            hosts.wait(name)
        for name in NAMES if stage is None else (*_INPUTS.get(stage, ()), stage):
            self._calm(name)

    def words(self, stage: str, out: str) -> list[str]:
        """The job, as a user gives it."""
        calm, log = self.folder / "calm", ("--log-to", str(self.folder / "log"))
        given = {
            "prepare": ["--annotations", str(self.annotations), *STAGES["prepare"].words],
            "train": ["--pairs", str(calm / "prepare"), *STAGES["train"].words, *_SHORT, *log],
            "evaluate": [
                *("--annotations", str(self.annotations), *STAGES["evaluate"].words, *log),
            ],
            "sweep": [
                *("--evaluation", str(calm / "evaluate"), "--search", "random", "--samples", "10"),
                *("--max-concurrent", "2", *log),
            ],
        }[stage]
        return ["--", "python", "-m", f"jobs.{stage}", *given, "--out", out]

    def submit(self, words: Sequence[str]) -> subprocess.Popen[str]:
        """Send a job from outside."""
        return subprocess.Popen(
            [sys.executable, "-m", "jobs.submit", *words],
            cwd=ROOT, env=self.hosts.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def _calm(self, stage: str) -> None:
        """Run a job undisturbed, or take what an earlier call with this code has made."""
        out, note = self.folder / "calm" / stage, self.folder / "calm" / f"{stage}.json"
        known = json.loads(note.read_text()) if note.exists() else {}
        words = self.words(stage, str(out))
        made_by = [self.code, *words]
        if known.get("by") != made_by:
            shutil.rmtree(out, ignore_errors=True)
            began = time.monotonic()
            job = self.submit(words)
            told, _ = job.communicate(timeout=_LIMIT_S)
            if job.returncode:
                sys.exit(f"the undisturbed {stage} failed:\n{told}")
            known = {"by": made_by, "seconds": time.monotonic() - began}
            note.write_text(json.dumps(known))
        self.seconds[stage] = known["seconds"]
        print(f"undisturbed {stage}: {known['seconds']:.0f} s", file=sys.stderr, flush=True)

    def all_on(self) -> None:
        """Switch on what is off: a host whose Ray has ended, or that was taken out."""
        for name in _OTHERS:
            self.hosts.cut(name, connected=True)
            if self.hosts.processes[name].poll() is not None:
                self.hosts.begin(name)
        for name in _OTHERS:
            self.hosts.wait(name)


def main(argv: Sequence[str] | None = None) -> None:
    """Disturb, compare, note; or print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/cluster-chaos"))
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--stage", choices=NAMES)
    parser.add_argument("--death", choices=DEATHS)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args(argv)
    if options.table:
        print(table(rows()))
        return
    if reason := missing():
        sys.exit(reason)
    folder = options.out.resolve()
    with cluster(folder / "hosts") as hosts, object_storage.server(hosts.outside) as s3:
        hosts.tell(s3.environment)
        os.environ.update(s3.environment)
        world = World(hosts, s3, folder, options.stage)
        for number in range(options.runs):
            kind = next_kind(options.stage, options.death)
            row = run(world, *kind, random.Random(f"{number} {len(rows())}"))
            if row is not None:  # else the job was over before anything happened
                with ROWS.open("a") as file:
                    file.write(json.dumps(asdict(row)) + "\n")
            print(f"{number}: {row}", file=sys.stderr, flush=True)
            world.all_on()


def rows() -> list[Row]:
    """What was noted so far."""
    lines = ROWS.read_text().splitlines() if ROWS.exists() else []
    return [Row(**json.loads(line)) for line in lines]


def next_kind(stage: str | None, death: str | None) -> tuple[str, str]:
    """Of all that is allowed, what has been done least so far."""
    done = Counter((row.stage, row.death) for row in rows())
    every = [(s, d) for d in DEATHS for s in NAMES if stage in (None, s) and death in (None, d)]
    return min(every, key=lambda kind: done[kind])


def run(world: World, stage: str, death: str, rng: random.Random) -> Row | None:
    """One job and what happens to it; None where it had ended before."""
    name = f"{stage}-{death}-{time.time():.0f}"
    out = f"s3://{object_storage.BUCKET}/{name}" if death == "storage" else f"{world.folder}/{name}"
    if death == "join":
        world.hosts.leave("b")
    words = world.words(stage, out)
    began = time.monotonic()
    at, hit = rng.uniform(0.1, 0.9) * world.seconds[stage], []
    job = world.submit(words)

    def strike(victim: str) -> None:
        if job.poll() is None:
            hit.append(victim)
            _happen(world, death, victim)

    timer = threading.Timer(at, strike, (rng.choice(_OTHERS),))
    timer.daemon = True  # Ctrl-C does not wait for it
    timer.start()
    told = _ended(job)
    timer.join()
    if not hit:
        return None
    again, said = job.returncode != 0, ""
    if again:
        said = last_words(told)
        world.all_on()
        job = world.submit([*words, *STAGES[stage].again] if stage in STAGES else words)
        told = _ended(job)
    lasted = time.monotonic() - began
    same = job.returncode == 0 and content(stage, out) == content(
        stage, str(world.folder / "calm" / stage)
    )
    if job.returncode:
        said = f"{said} | {last_words(told)}"
    if same and not out.startswith("s3:"):
        shutil.rmtree(out)
    commit = _output("git", "rev-parse", "--short", "HEAD")
    return Row(stage, death, round(at, 1), round(lasted, 1), again, said, same, commit)


def _happen(world: World, death: str, victim: str) -> None:
    hosts = world.hosts
    if death == "node":
        hosts.kill(victim)
        time.sleep(_OFF_S)
        hosts.begin(victim)
    elif death == "join":
        hosts.begin("b")
    elif death == "network":
        hosts.cut(victim)
        time.sleep(_CUT_S)
        hosts.cut(victim, connected=True)
    elif death == "storage":
        world.s3.stop()
        time.sleep(_STILL_S)
        world.s3.start()
    else:
        for process in below(hosts.processes["head"].pid):
            if "JobSupervisor" in process.title:
                os.kill(process.pid, signal.SIGKILL)


def content(stage: str, out: str) -> dict[str, Any]:
    """What has to be the same: all but how long it took, and where it lies."""
    from pipelines.storage import paths

    place = paths.at(out)
    if stage == "evaluate":
        names: tuple[str, ...] = ("results.json", "results.zip", "report.json")
    elif stage == "train":
        names = ("checkpoint.safetensors", "losses.json")
    elif stage == "sweep":
        names = ("best.json",)
    else:
        names = tuple(sorted(p.name for p in place.iterdir() if p.name != _MANIFEST))
    found: dict[str, Any] = {name: (place / name).read_bytes() for name in names}
    told = json.loads((place / _MANIFEST).read_text())
    return found | {name: told[name] for name in ("rows", "rejects", "input_hash")}


_MANIFEST = "_manifest.json"


def last_words(told: str) -> str:
    """The sentence with which a job has ended, of all that was printed."""
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    said = [line for line in lines if "Error:" in line and "Traceback" not in line]
    return (said or lines or [""])[-1][:240]


def _ended(job: subprocess.Popen[str]) -> str:
    """All that it printed, once it has ended."""
    try:
        return job.communicate(timeout=_LIMIT_S)[0]
    except subprocess.TimeoutExpired:
        job.kill()
        return f"Error: it did not end in {_LIMIT_S:.0f} s"


def table(done: Sequence[Row]) -> str:
    """Markdown: of each stage and each death, what became of the runs."""

    def cell(part: Sequence[Row]) -> str:
        alone = sum(row.same and not row.again for row in part)
        again = sum(row.same and row.again for row in part)
        wrong = len(part) - alone - again
        said = [f"{alone} by itself"] * bool(alone) + [f"{again} sent again"] * bool(again)
        return ", ".join([*said, *[f"**{wrong} wrong**"] * bool(wrong)]) or "–"

    lines = [machine.header("python -m benchmarks.cluster_chaos --table")]
    lines += [f"| what happens | {' | '.join(NAMES)} |", f"|---{'|---' * len(NAMES)}|"]
    for death, title in DEATHS.items():
        parts = ([r for r in done if (r.stage, r.death) == (s, death)] for s in NAMES)
        lines.append(f"| {title} | {' | '.join(map(cell, parts))} |")
    right = sum(row.same for row in done)
    lines.append(f"\n{right} of {len(done)} runs ended with the bytes of an undisturbed one.")
    return "\n".join(lines)


def _output(*words: str) -> str:
    return subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


if __name__ == "__main__":
    main()
