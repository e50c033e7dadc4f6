"""python -m jobs.submit, against a cluster that was started by somebody else."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs import submit
from tests.jobs.job_api import TOKEN, JobApi, serving
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
    from pipelines import job_server

    sent: dict[str, object] = {}

    class Client:
        def submit_job(self, entrypoint: str, runtime_env: dict[str, object], **_: object) -> str:
            sent.update(runtime_env, entrypoint=entrypoint)
            return "job-1"

    monkeypatch.setattr(job_server, "connect", lambda address: Client())
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


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[JobApi]:
    """A job server that is no Ray, of which a process of its own knows by its environment."""
    # Ray keeps for the life of a process which way of authentication it has.
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "absent"))
    with serving(JobApi()) as server:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", server.address)
        yield server


@pytest.fixture
def code(tmp_path: Path) -> list[str]:
    """Options that send a folder of one file."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("print(1)")
    (tmp_path / "code" / ".rayignore").write_text("data/\n")
    (tmp_path / "code" / "data").mkdir()
    (tmp_path / "code" / "data" / "x.bin").write_bytes(bytes(10))
    return ["--working-dir", str(tmp_path / "code")]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """jobs.submit in a process of its own, with this environment less other Rays' settings."""
    names = ("RAY_AUTH_TOKEN_PATH", "RAY_API_SERVER_ADDRESS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return _submit({**kept, **{name: os.environ[name] for name in names}}, *words)


def here(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[object, str, str]:
    """jobs.submit in this process: exit status, stdout, stderr."""
    status: object = 0
    try:
        submit.main(words)
    except SystemExit as stopped:
        status = stopped.code
    return status, *capfd.readouterr()


@pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning")  # Ray's own
def test_a_job_is_sent_followed_and_ends_when_it_does(
    api: JobApi, code: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    """Not when the stream of its lines does, seconds later; the rest of the log is shown."""
    words = ("python", "-m", "jobs.train", "--out", "/x y")
    status, told, shown = here(capfd, *code, "--", *words)
    assert (status, json.loads(told)) == (0, {"AP": 0.5})
    assert "2 files, 0.0 MiB; data/ stay here" in shown
    assert shown.count("working\n") == 1
    ((name, job),) = api.jobs.items()
    assert re.fullmatch(r"idol-train-\d{8}-\d{6}-[0-9a-f]{4}", name)
    assert job["entrypoint"] == "python -m jobs.train --out '/x y'"
    assert len(api.packages) == 1
    assert api.streams == 0, "it waited for the end of the stream"


@pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning")  # Ray's own
def test_the_verbs_on_a_job(
    api: JobApi, code: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    api.seconds, api.exit_code = 600.0, 1
    _, told, _ = here(capfd, *code, "--no-wait", "--", "true")
    name = json.loads(told)["submission_id"]
    assert json.loads(here(capfd, "status", name)[1])["status"] == "RUNNING"
    assert here(capfd, "logs", name)[1] == api.log
    assert json.loads(here(capfd, "stop", name)[1])["status"] == "STOPPED"
    _, told, shown = here(capfd, "list")
    assert [job["submission_id"] for job in json.loads(told)["jobs"]] == [name]
    assert f"{name}  STOPPED" in shown
    assert here(capfd, "logs", name, "--follow")[:2] == (1, api.log)
    got = json.loads(here(capfd, "fetch", name, "--to", str(tmp_path / "here"))[1])
    assert got["files"] == ["log.txt", "result.json"]
    assert (tmp_path / "here" / name / "log.txt").read_text() == api.log
    status, _, _ = here(capfd, "status", "idol-x")
    assert "knows no job 'idol-x'" in str(status)


def test_ctrl_c_leaves_the_job_and_says_how_to_come_back(api: JobApi, code: list[str]) -> None:
    api.seconds = 600.0
    following = subprocess.Popen(
        [sys.executable, "-m", "jobs.submit", *code, "--", "true"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert following.stderr is not None
    shown = ""
    while "worki" not in shown:  # the log has begun
        piece = following.stderr.read(1)
        assert piece, shown
        shown += piece
    following.send_signal(signal.SIGINT)
    _, told = following.communicate(timeout=120)
    assert following.returncode == 130
    (name,) = api.jobs
    assert f"{name} goes on: come back to it with `python -m jobs.submit logs {name}" in told
    assert "Traceback" not in told
    assert "stopped" not in api.jobs[name]


def test_nobody_gets_in_without_the_token(api: JobApi, code: list[str], tmp_path: Path) -> None:
    api.token = TOKEN
    for token, message in ((None, "wants a token, none is here"), ("f" * 64, "refuses the token")):
        if token:
            (tmp_path / "absent").write_text(token)
        done = run(*code, "--", "true")
        assert (done.returncode, done.stdout) == (1, "")
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert not api.packages
    (tmp_path / "absent").write_text(TOKEN)
    done = run(*code, "--", "true")
    assert done.returncode == 0, done.stderr


def test_a_package_that_is_too_large_is_not_sent(
    api: JobApi, code: list[str], tmp_path: Path
) -> None:
    with (tmp_path / "code" / "weights.pth").open("wb") as file:
        file.truncate(200 * 2**20)
    with pytest.raises(SystemExit, match="package of 200 MiB, but a job server takes 100") as stop:
        submit.main([*code, "--", "true"])
    assert "weights.pth (200.0 MiB)" in str(stop.value)
    assert not api.packages


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
    assert re.search(r"^idol-python-\S+ FAILED: Job entrypoint .* 7$", done.stderr, re.MULTILINE)
    assert done.stderr.splitlines().count("no") == 1, "the log is shown twice"
    assert json.loads(done.stdout.splitlines()[-1])["status"] == "FAILED"


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_is_left_found_again_and_stopped(head: dict[str, str], tmp_path: Path) -> None:
    done = _submit(head, "--no-wait", "--", "python", "-c", "import time; time.sleep(600)")
    name = json.loads(done.stdout)["submission_id"]
    assert re.fullmatch(r"idol-python-\d{8}-\d{6}-[0-9a-f]{4}", name)
    assert "tests/" in done.stderr.split("MiB; ")[1].split(" stay here")[0]
    following = subprocess.Popen(
        [sys.executable, "-m", "jobs.submit", "logs", name, "--follow"],
        cwd=ROOT, env=head, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while json.loads(_submit(head, "status", name).stdout)["status"] != "RUNNING":
        pass
    following.send_signal(signal.SIGINT)
    _, told = following.communicate(timeout=60)
    assert following.returncode == 130
    assert f"{name} goes on" in told
    assert "Traceback" not in told
    assert json.loads(_submit(head, "stop", name).stdout)["status"] == "STOPPED"
    listed = json.loads(_submit(head, "list").stdout)["jobs"]
    assert listed[0]["submission_id"] == name
    assert _submit(head, "logs", name, "--follow").returncode == 1
    got = json.loads(_submit(head, "fetch", name, "--to", str(tmp_path)).stdout)
    assert (tmp_path / name / "log.txt").is_file()
    assert got["files"] == ["log.txt"]


@pytest.mark.ray
@pytest.mark.slow
def test_rays_own_command_submits_as_well(head: dict[str, str]) -> None:
    words = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--working-dir", "."]
    environment = {**head, "RAY_AUTH_MODE": "token"}
    done = subprocess.run(
        [*words, "--", "python", "-m", "jobs.train", "--help"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Train IDOL on key/reference pairs" in done.stdout


@pytest.mark.ray
@pytest.mark.slow
def test_a_wrong_token_is_one_sentence(head: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "token").write_text("fedcba9876543210" * 4)
    done = _submit({**head, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}, "list")
    assert done.returncode == 1
    assert "refuses the token that is set here" in done.stderr
    assert "Traceback" not in done.stderr


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
