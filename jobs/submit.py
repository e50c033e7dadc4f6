"""Run any job on a cluster: python -m jobs.submit -- python -m jobs.evaluate --help."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs import command
from pipelines.errors import PipelineError

_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class Submit:
    """Run a job on a Ray cluster and wait for it.

    What stands after `--` is run there as it stands, from a copy of this repository without what
    .gitignore and .rayignore name:

        python -m jobs.submit --address http://127.0.0.1:8265 -- python -m jobs.evaluate --out ...

    The job's log goes to stderr and the JSON object of its last line to stdout; the exit status is
    the job's. Interrupting this command leaves the job running.
    """

    address: str | None = None
    """The cluster's job server. Default: RAY_API_SERVER_ADDRESS or RAY_ADDRESS, else
    http://127.0.0.1:8265, where `ray start --head` and `ray dashboard cluster.yaml` put it."""
    working_dir: Path = _ROOT
    """The folder that is sent to the cluster (at most 100 MiB packed)."""
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


def main(argv: Sequence[str] | None = None) -> None:
    """Submit what stands after `--`, follow it, and exit as it did."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    options, words = arguments[:cut], arguments[cut + 1 :]
    command.run("submit", Submit, lambda job: _submit(job, words), options)


def _submit(job: Submit, words: Sequence[str]) -> None:
    if not words:
        sys.exit(
            "Nothing to submit: give the job after `--`, as in "
            "`python -m jobs.submit -- python -m jobs.evaluate --help`."
        )
    for entry in job.env:
        if not entry.partition("=")[0] or "=" not in entry:
            sys.exit(f"--env wants NAME=VALUE, got {entry!r}.")
    environment = {**dict(entry.split("=", 1) for entry in job.env), **_secrets(job)}
    from pipelines import submit

    try:
        done = submit.submit(
            words,
            job.working_dir,
            address=job.address,
            environment=environment,
            wait=job.wait,
            on_log=_show,
        )
    except PipelineError as error:
        sys.exit(str(error))
    if done.exit_code != 0:
        print(f"{done.submission_id} {done.status}: {done.message}", file=sys.stderr)
    without = {"submission_id": done.submission_id, "status": done.status}
    print(json.dumps(without if done.result is None else done.result))
    sys.exit(done.exit_code)


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


def _show(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


if __name__ == "__main__":
    main()
