"""python -m jobs.submit, against a cluster that was started by somebody else."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs import submit
from tests.ports import free_ports

ROOT = Path(__file__).resolve().parents[2]
PROBE = "import idol, json; print('found', idol.__file__); print(json.dumps({'here': True}))"


def test_a_missing_job_is_explained() -> None:
    with pytest.raises(SystemExit, match="give the job after `--`"):
        submit.main([])


def test_an_environment_entry_without_a_value_is_explained() -> None:
    with pytest.raises(SystemExit, match="NAME=VALUE, got 'MLFLOW'"):
        submit.main(["--env", "MLFLOW", "--", "true"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--secret", "IDOL_NOT_SET"], "name of a variable that is set here, not IDOL_NOT_SET"),
        (["--secret", "TOKEN=hush"], r"set here, not NAME=\.\.\."),
        (["--secrets-file", "{file}"], r"secrets, line 3: it must be NAME=VALUE"),
        (["--secrets-file", "none"], "No such file"),
    ],
)
def test_secrets_that_cannot_be_used_are_said_without_their_value(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "secrets").write_text("# ours\nA=1\nhush\n")
    words = [word.format(file=tmp_path / "secrets") for word in arguments]
    with pytest.raises(SystemExit, match=message) as stopped:
        submit.main([*words, "--", "true"])
    assert "hush" not in str(stopped.value)


def test_secrets_reach_the_jobs_environment_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from pipelines import submit as pipeline

    sent: dict[str, object] = {}

    class Client:
        def submit_job(self, entrypoint: str, runtime_env: dict[str, object]) -> str:
            sent.update(runtime_env, entrypoint=entrypoint)
            return "job-1"

    monkeypatch.setattr(pipeline, "_connect", lambda address: Client())
    monkeypatch.setenv("IDOL_TOKEN", "hush-a")
    (tmp_path / "secrets").write_text("# ours\n\nKEY = hush-b=c\n")
    words = ["--secret", "IDOL_TOKEN", "--secrets-file", str(tmp_path / "secrets"), "--env", "A=1"]
    with pytest.raises(SystemExit) as stopped:
        submit.main([*words, "--no-wait", "--", "python", "-m", "jobs.train"])
    assert stopped.value.code == 0
    variables = {"A": "1", "IDOL_TOKEN": "hush-a", "KEY": "hush-b=c"}
    assert sent["env_vars"] == {**variables, "IDOL_SUBMITTED_FROM": os.getcwd()}
    assert sent["entrypoint"] == "python -m jobs.train"
    told = capfd.readouterr()
    assert "hush" not in told.out + told.err


def test_an_unreachable_cluster_is_one_sentence_and_no_traceback() -> None:
    with pytest.raises(SystemExit, match="No Ray job server answers"):
        submit.main(["--address", "http://127.0.0.1:9", "--", "true"])


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of someone who knows a separately started cluster and its token."""
    folder = tmp_path_factory.mktemp("head")
    token = folder / "auth_token"
    token.write_text("0123456789abcdef" * 4)
    ports = free_ports(3)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    command += [f"--port={ports[0]}", f"--dashboard-port={ports[1]}", "--num-cpus=2"]
    command += ["--dashboard-host=127.0.0.1", "--disable-usage-stats"]
    # Its agent takes jobs. At the usual port may listen that of the Ray which other tests share.
    command += [f"--dashboard-agent-listen-port={ports[2]}"]
    # --block keeps the cluster's processes children of this one, so stopping it stops them and no
    # other Ray of this machine, which `ray stop` would.
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, env={**environment, "RAY_AUTH_MODE": "token"}, stdout=log, stderr=log
        )
        try:
            address = f"http://127.0.0.1:{ports[1]}"
            _wait_until_answering(ports[1], process, folder / "log")
            yield {**environment, "RAY_API_SERVER_ADDRESS": address}
        finally:
            process.terminate()
            process.wait(timeout=60)


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_runs_from_a_copy_of_the_code_and_returns_its_json(head: dict[str, str]) -> None:
    done = _submit(head, "--env", "GREETING=hello", "--", "python", "-c", PROBE)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"here": True}
    (found,) = [line for line in done.stderr.splitlines() if line.startswith("found ")]
    assert str(ROOT) not in found, "the job imported this checkout, not what was sent"


@pytest.mark.ray
@pytest.mark.slow
def test_a_secret_reaches_the_job_and_no_list_of_processes(head: dict[str, str]) -> None:
    code = (
        "import json, os, subprocess\n"
        "shown = subprocess.run(['ps', 'axww', '-o', 'args'], capture_output=True, text=True)\n"
        "secret = os.environ['IDOL_TOKEN']\n"
        "print(json.dumps({'length': len(secret), 'shown': secret in shown.stdout}))"
    )
    environment = {**head, "IDOL_TOKEN": "hush-7f3a"}
    done = _submit(environment, "--secret", "IDOL_TOKEN", "--", "python", "-c", code)
    assert json.loads(done.stdout) == {"length": 9, "shown": False}
    assert "hush-7f3a" not in done.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_a_submitted_job_that_would_write_into_the_copy_of_the_code_is_refused(
    head: dict[str, str],
) -> None:
    words = ("jobs.prepare", "--annotations", "a.json", "--out", "runs/pairs")
    done = _submit(head, "--", "python", "-m", *words)
    assert done.returncode == 1
    assert "--out runs/pairs is relative, but this job was sent to a cluster" in done.stderr
    assert f"such as {ROOT}/runs/pairs, or an address" in done.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_the_exit_status_is_the_jobs(head: dict[str, str]) -> None:
    done = _submit(head, "--", "python", "-c", "print('no'); raise SystemExit(7)")
    assert done.returncode == 7
    assert "FAILED" in done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["status"] == "FAILED"


def _submit(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jobs.submit", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def _wait_until_answering(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    import time

    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"`ray start --head` ended:\n{log.read_text()}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    pytest.fail(f"`ray start --head` did not open its job server:\n{log.read_text()}")
