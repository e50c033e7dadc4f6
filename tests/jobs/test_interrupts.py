"""Ctrl-C ends every job with status 130 and one line, and leaves nothing that looks finished.

Those of jobs.track and jobs.demo are in test_track.py and test_command.py.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from idol.images import SyntheticConfig, write_dataset
from jobs import prepare
from pipelines.stages import detect, evaluate
from pipelines.storage import manifest
from tests.foreground import foreground
from tests.pipelines import perfect

ROOT = Path(__file__).resolve().parents[2]


def interrupted(
    *command: str, begun: Callable[[], bool], environment: dict[str, str] | None = None
) -> None:
    """Run `python COMMAND`, send SIGINT to it and all its children once it has begun."""
    process = subprocess.Popen(
        foreground(*command),
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not begun() and process.poll() is None:
        time.sleep(0.05)  # pytest-timeout ends it where nothing comes
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate()
    assert process.returncode == 130, stderr
    assert stdout == ""
    assert stderr.count("Interrupted.") == 1
    assert "Traceback" not in stderr


def unfinished(out: Path) -> bool:
    return (out / manifest.STARTED).exists() and not (out / manifest.MANIFEST).exists()


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An annotation file."""
    folder = tmp_path_factory.mktemp("interrupts") / "videos"
    return str(write_dataset(folder, SyntheticConfig(size=(32, 48), length=(6, 6)), 4, 0))


@pytest.mark.slow
@pytest.mark.ray
def test_prepare_and_train(ray_local: None, videos: str, tmp_path: Path) -> None:
    out = tmp_path / "pairs"
    words = ["--annotations", videos, "--out", str(out), "--preset", "tiny"]
    started = out / manifest.STARTED
    interrupted("-m", "jobs.prepare", *words, begun=started.exists)
    assert unfinished(out)
    prepare.main(words)  # goes on
    run = tmp_path / "run"
    interrupted(
        *("-m", "jobs.train", "--pairs", str(out), "--out", str(run), "--workers", "1"),
        *("--set", "train.steps=1000000", "--set", "train.checkpoint_every=1"),
        *("--set", "train.pairs_per_batch=1", "--set", "transforms.stretch=[32,64]"),
        begun=lambda: any(run.glob("step-*")),
    )
    assert unfinished(run)
    assert any(run.glob("step-*")), "what the same command goes on from"


@pytest.mark.slow
@pytest.mark.ray
def test_evaluate(videos: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    interrupted(
        *("-m", "jobs.evaluate", "--annotations", videos, "--checkpoint", "shipped"),
        *("--out", str(out), "--actors", "1"),
        begun=(out / "detections" / "_network.safetensors").exists,
    )
    assert unfinished(out)
    assert unfinished(out / "detections")


@pytest.mark.slow
@pytest.mark.ray
def test_sweep(videos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "run", perfect.run)
    request = evaluate.Request(annotations=videos, checkpoint="shipped")
    evaluate.run(request, tmp_path / "run", log=False)
    out = tmp_path / "sweep"
    ledger = out / "ledger.jsonl"
    interrupted(
        *("-m", "jobs.sweep", "--evaluation", str(tmp_path / "run"), "--out", str(out)),
        *("--search", "random", "--samples", "100000", "--folds", "0"),
        begun=lambda: ledger.exists() and len(ledger.read_bytes().splitlines()) > 2,
    )
    assert unfinished(out)
    assert not (out / "best.json").exists()


@pytest.mark.parametrize(
    ("job", "module", "words"),
    [
        ("score", "tqdm", ["--truth", "a.json", "--results", "b.json"]),
        ("report", "pyarrow", ["--evaluate", "run"]),
        ("export", "cv2", ["--weights", "shipped"]),
        ("track", "tyro", []),  # before the job has read its options
    ],
)
def test_a_job_without_processes(tmp_path: Path, job: str, module: str, words: list[str]) -> None:
    # In place of a library that the job imports on its way, so that it is met half way.
    begun = tmp_path / "begun"
    source = f"import pathlib, time; pathlib.Path({str(begun)!r}).touch(); time.sleep(600)"
    (tmp_path / f"{module}.py").write_text(source)
    out = {"export": tmp_path / "n.pt2", "report": tmp_path / "r.html"}.get(job, tmp_path / "o")
    interrupted(
        *("-m", f"jobs.{job}", *words, "--out", str(out)),
        begun=begun.exists,
        environment={"PYTHONPATH": str(tmp_path)},
    )
    assert not out.exists()


def test_submit() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        accepted: list[socket.socket] = []

        def asked() -> bool:
            with contextlib.suppress(BlockingIOError):
                accepted.append(server.accept()[0])
            return bool(accepted)

        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        interrupted("-m", "jobs.submit", "--address", address, "--", "true", begun=asked)
        accepted[0].close()
