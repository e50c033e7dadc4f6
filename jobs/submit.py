"""Run any job on a cluster: python -m jobs.submit -- python -m jobs.evaluate --help."""

from __future__ import annotations

import datetime
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from idol.addresses import without_secrets
from jobs.options import command, places

if TYPE_CHECKING:  # pipelines is imported when the job runs: --help needs none of it
    from pipelines.job_server import Job
    from pipelines.submit import SubmittedJob

_ROOT = Path(__file__).resolve().parent.parent

Address = Annotated[
    str | None,
    tyro.conf.arg(
        help="The cluster's job server. Default: RAY_API_SERVER_ADDRESS or RAY_ADDRESS, else "
        "http://127.0.0.1:8265, where `ray start --head` and `ray dashboard cluster.yaml` put it."
    ),
]
Id = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ID")]


@dataclass(frozen=True, kw_only=True)
class Submit:
    """Run a job on a Ray cluster and wait for it.

    What stands after `--` is run there as it stands, from a copy of this repository without what
    .gitignore and .rayignore name:

        python -m jobs.submit --address http://127.0.0.1:8265 -- python -m jobs.evaluate --out ...

    The job's log goes to stderr and the JSON object of its last line to stdout; the exit status is
    the job's. Interrupting this command leaves the job running. Of the jobs that a cluster has:

        python -m jobs.submit list
        python -m jobs.submit status ID
        python -m jobs.submit logs ID [--follow]
        python -m jobs.submit stop ID
        python -m jobs.submit fetch ID --to DIR
    """

    address: Address = None
    working_dir: Path = _ROOT
    """The folder that is sent to the cluster (at most 100 MiB)."""
    env: tuple[str, ...] = ()
    """Variables for the job, as NAME=VALUE, for example MLFLOW_TRACKING_URI=http://host:5000. Other
    users of this machine can read a command line: for passwords see --secret."""
    secret: command.Repeated = ()
    """Name of a variable that is set here, and is for the job too: its value is neither in the
    command line nor printed. Repeatable. The cluster's dashboard shows a job's variables."""
    secrets_file: Path | None = None
    """File of lines NAME=VALUE for the job, used like --secret; # begins a comment line."""
    wait: bool = True
    """Wait for the end. --no-wait returns once the cluster has the job, printing its name."""


@dataclass(frozen=True, kw_only=True)
class List:
    """Show the jobs that a cluster knows, the newest first."""

    address: Address = None


@dataclass(frozen=True, kw_only=True)
class Status:
    """Show how a job is."""

    id: Id
    address: Address = None


@dataclass(frozen=True, kw_only=True)
class Logs:
    """Print what a job has printed. With --follow until its end, and exit as it did."""

    id: Id
    follow: command.Switch = False
    """Go on to the job's end. Interrupting this command leaves the job running."""
    address: Address = None


@dataclass(frozen=True, kw_only=True)
class Stop:
    """End a job. What it has finished stays; the same command goes on from there."""

    id: Id
    address: Address = None


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """Copy a job's log, its result, and the files that the result names by address (s3://...).

    Paths on the cluster's disks are listed, not copied.
    """

    id: Id
    to: Annotated[Path, places.FOLDER]
    """Folder in which a folder of the job's name is made."""
    address: Address = None


def main(argv: Sequence[str] | None = None) -> None:
    """Submit what stands after `--`, follow it, and exit as it did; or do what a verb says."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in _VERBS:
        options, work = _VERBS[arguments[0]]
        command.run(f"submit {arguments[0]}", options, work, arguments[1:], table=False)
        return
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    given, words = arguments[:cut], arguments[cut + 1 :]
    command.run("submit", Submit, lambda job: _submit(job, words), given)


def _submit(job: Submit, words: Sequence[str]) -> None:
    if not words:
        sys.exit(
            "Nothing to submit: give the job after `--`, as in "
            "`python -m jobs.submit -- python -m jobs.evaluate --help`; or list, status, logs, "
            "stop or fetch (see --help)."
        )
    for entry in job.env:
        if not entry.partition("=")[0] or "=" not in entry:
            sys.exit(f"--env wants NAME=VALUE, got {entry!r}.")
    environment = {**dict(entry.split("=", 1) for entry in job.env), **_secrets(job)}
    from pipelines import submit

    done = submit.submit(
        words,
        job.working_dir,
        address=job.address,
        environment=environment,
        wait=job.wait,
        on_log=_show,
        on_start=_tell,
    )
    without = {"submission_id": done.submission_id, "status": done.status}
    print(json.dumps(without if done.result is None else done.result))
    _exit_as(done)


def _secrets(job: Submit) -> dict[str, str]:
    """What --secret and --secrets-file name. Raises: ValueError, OSError, which show no value."""
    found: dict[str, str] = {}
    lines = job.secrets_file.read_text().splitlines() if job.secrets_file else ()
    for number, line in enumerate(map(str.strip, lines), start=1):
        name, equals, value = line.partition("=")
        if line and not line.startswith("#"):
            if not equals or not name.strip().isidentifier():
                raise ValueError(f"{job.secrets_file}, line {number}: it must be NAME=VALUE")
            found[name.strip()] = value.strip()
    for name in job.secret:
        if name not in os.environ:
            told = "NAME=..." if "=" in name else name
            raise ValueError(f"--secret wants the name of a variable that is set here, not {told}")
        found[name] = os.environ[name]
    return found


def _list(job: List) -> Mapping[str, Any]:
    from pipelines import job_server

    found = job_server.jobs(job_server.connect(job.address))
    for one in found:
        _tell(_row(one))
    return {"jobs": [_facts(one) for one in found]}


def _status(job: Status) -> Mapping[str, Any]:
    from pipelines import job_server

    found = job_server.job(job_server.connect(job.address), job.id)
    _tell(_row(found))
    _tell(found.message)
    return _facts(found)


def _logs(job: Logs) -> None:
    from pipelines import job_server, submit

    client = job_server.connect(job.address)
    if not job.follow:
        sys.stdout.write(job_server.log(client, job.id))
        return
    job_server.job(client, job.id)  # an unknown one is an error now
    _exit_as(submit.follow(client, job.id, lambda text: print(text, end="", flush=True)))


def _stop(job: Stop) -> Mapping[str, Any]:
    from pipelines import job_server

    found = job_server.stop(job_server.connect(job.address), job.id)
    _tell(_row(found))
    return _facts(found)


def _fetch(job: Fetch) -> Mapping[str, Any]:
    from pipelines import fetch, job_server

    got = fetch.fetch(job_server.connect(job.address), job.id, job.to)
    for place, reason in got.kept:
        _tell(f"{place}: {reason}")
    return {
        "out": str(got.folder),
        "files": [str(path.relative_to(got.folder)) for path in got.files],
        "left": [place for place, _ in got.kept],
    }


_VERBS: dict[str, tuple[type[Any], Callable[[Any], Mapping[str, Any] | None]]] = {
    "list": (List, _list),
    "status": (Status, _status),
    "logs": (Logs, _logs),
    "stop": (Stop, _stop),
    "fetch": (Fetch, _fetch),
}


def _facts(job: Job) -> dict[str, Any]:
    facts = {name: value for name, value in asdict(job).items() if name != "message"}
    return {**facts, "command": without_secrets(job.command)}


def _row(job: Job) -> str:
    when = None if job.started is None else datetime.datetime.fromtimestamp(job.started)
    since = f"{when:%Y-%m-%d %H:%M:%S}" if when else "not yet"
    took = "" if job.seconds is None else str(datetime.timedelta(seconds=int(job.seconds)))
    return f"{job.submission_id}  {job.status:9}  {since:19}  {took:>9}  {job.command}"


def _exit_as(done: SubmittedJob) -> None:
    """End this process with the exit status of the job."""
    if done.exit_code != 0:
        # Ray repeats the end of the log there, which has been shown.
        reason = done.message.partition(", last available logs")[0]
        _tell(f"{done.submission_id} {done.status}: {reason}")
    sys.exit(done.exit_code)


def _tell(text: str) -> None:
    print(without_secrets(text), file=sys.stderr, flush=True)


def _show(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


if __name__ == "__main__":
    main()
