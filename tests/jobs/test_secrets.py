"""No job prints or stores what may be a secret of an address."""

from __future__ import annotations

import logging
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import evaluate
from jobs.options import command
from pipelines.errors import DatasetError, ManifestError, PipelineError, VideoError
from pipelines.report import compare
from pipelines.stages.evaluate import Request
from pipelines.sweep.training_sweep import TrainingSweep
from tests.jobs.test_command import Options

ROOT = Path(__file__).resolve().parents[2]
SIGNED = "https://user:hush@host/data/a.json?X-Amz-Signature=hush"


@pytest.mark.parametrize(
    "error",
    [
        PipelineError(f"{SIGNED}: no"),
        ValueError(f"{SIGNED}: no"),
        DatasetError(SIGNED, f"cannot be read (GET {SIGNED}).", "Give another."),
        VideoError(1, SIGNED, f"the file cannot be read ({SIGNED})"),
        ManifestError(SIGNED, "is none", "Give another."),
    ],
)
def test_what_ends_a_job_shows_no_secret(error: Exception) -> None:
    def work(job: Options) -> None:
        error.add_note(f"See {SIGNED}")
        raise error

    with pytest.raises(SystemExit) as stopped:
        command.run("nothing", Options, work, [])
    assert "https://host/data/a.json" in str(stopped.value.code)
    assert "hush" not in str(stopped.value.code)


def test_rejects_are_stored_without_secrets() -> None:
    error = VideoError(1, SIGNED + "#12", f"cannot be read ({SIGNED})")
    assert "hush" not in repr(error.args)
    assert error.path == "https://host/data/a.json#12"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_warnings_and_the_traceback_of_a_bug_show_no_secret() -> None:
    code = (
        "import logging; from jobs.options import command\n"
        "from tests.jobs.test_command import Options\n"
        "def work(job):\n"
        f"    logging.getLogger('x').warning('slow: %s', {SIGNED!r})\n"
        f"    raise KeyError({SIGNED!r})\n"
        "command.run('nothing', Options, work, [])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "slow: https://host/data/a.json\n" in done.stderr
    assert "KeyError: 'https://host/data/a.json'" in done.stderr
    assert "X-Amz" not in done.stderr.split("KeyError: ")[1]


def test_what_is_stored_of_a_request_has_no_secret(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from idol import presets

    request = Request(annotations=SIGNED, checkpoint=SIGNED, frames=SIGNED)
    selection = request.selection(SimpleNamespace(input_hash="h"))  # type: ignore[arg-type]
    assert "hush" not in repr(selection)
    sweep = TrainingSweep(
        base=presets.tiny(), space={}, pairs=tmp_path, annotations=SIGNED, weights=SIGNED
    )
    assert "hush" not in repr(sweep.to_dict())
    assert compare.names([SIGNED]) == {"a.json": SIGNED}


def test_a_job_whose_annotations_cannot_be_read_says_so_without_secrets(tmp_path: Path) -> None:
    words = ["--annotations", "s3://user:hush@/a.json?sig=hush", "--checkpoint", "shipped"]
    with pytest.raises(SystemExit) as stopped:
        evaluate.main([*words, "--out", str(tmp_path / "out")])
    assert "cannot be read" in str(stopped.value.code)
    assert "hush" not in str(stopped.value.code)
    assert logging.root.handlers
