"""The command line of jobs.sweep: what is asked for, and mistakes said in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
import tyro

from idol.config import TrackerConfig, to_dict
from jobs import sweep as job
from pipelines.storage import claims
from pipelines.storage.reports import EvaluationReport, Selection
from pipelines.sweep import space
from pipelines.sweep.search import SearchConfig
from pipelines.sweep.space import Choices, Range


@pytest.fixture
def evaluated(tmp_path: Path) -> Path:
    """The directory of a finished evaluation, as far as the command line looks at it."""
    out = tmp_path / "run"
    output = claims.prepare_output(out, "evaluate", {}, "")
    EvaluationReport(
        videos=0,
        frames=0,
        sources=[],
        rejects=[],
        config={"tracker": to_dict(TrackerConfig.paper())},
        selection=Selection(annotations="", frames=None, videos=None, stride=1, input_hash=""),
        metrics={},
        frame_oracle={},
        upper_bound={},
        per_category=[],
        per_video=[],
        missing_videos=[],
    ).write(out)
    output.finish(rows=0)
    return out


def asked(evaluated: Path, *flags: str) -> Any:
    arguments = ["--evaluation", str(evaluated), "--out", str(evaluated.parent / "sweep"), *flags]
    return job.asked_for(tyro.cli(job.Sweep, args=arguments))


def test_lists_are_a_grid_and_ranges_are_searched(evaluated: Path) -> None:
    found = asked(evaluated, "--grid", "tracker.tau=0,1", "--grid", "tracker.same_class=false,true")
    assert found.base == TrackerConfig.paper()
    assert found.space == {
        "tracker.tau": Choices((0.0, 1.0)),
        "tracker.same_class": Choices((False, True)),
    }
    assert found.search == SearchConfig(method="grid")
    found = asked(
        evaluated, "--uniform", "tracker.tau=0,1", "--choice", "tracker.memory_length=1,3",
        "--samples", "7", "--objective", "HOTA", "--scheduler", "asha", "--grace-period", "4",
        "--reduction-factor", "2", "--tracker", "robust", "--set", "tracker.same_class=true",
    )  # fmt: skip
    assert found.space == {
        "tracker.memory_length": Choices((1, 3)),
        "tracker.tau": Range(0.0, 1.0),
    }
    assert found.search == SearchConfig(
        method="bayes", samples=7, objective="HOTA", scheduler="asha", grace_period=4,
        reduction_factor=2,
    )  # fmt: skip
    assert found.base == TrackerConfig(**{**to_dict(TrackerConfig.robust()), "same_class": True})


def test_without_a_space_the_numbers_that_matter_are_searched(evaluated: Path) -> None:
    found = asked(evaluated)
    assert found.space == space.association(TrackerConfig.paper())
    assert "tracker.tau" in found.space
    assert found.search.method == "bayes"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--grid", "tracker.tua=1"], "Did you mean 'tau'"),
        (["--grid", "train.steps=10,20"], "cannot be swept on stored detections"),
        (["--search", "grid", "--uniform", "tracker.tau=0,1"], "has a range"),
        (["--samples", "0"], "samples must be 1 or more"),
        (["--resume"], "leave out the flags"),
    ],
)
def test_mistakes_are_said_in_one_line(
    evaluated: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = evaluated.parent / "sweep"
    with pytest.raises(SystemExit) as exit:
        asked_or_run(evaluated, out, flags)
    assert message in str(exit.value)
    assert "\n" not in str(exit.value)
    assert not out.exists()


def asked_or_run(evaluated: Path, out: Path, flags: list[str]) -> None:
    try:
        wanted = asked(evaluated, *flags)
        list(space.combinations(wanted.space))
    except ValueError as error:
        raise SystemExit(f"ValueError: {error}") from error


def test_resuming_reads_what_was_asked_for_from_the_directory(
    evaluated: Path, tmp_path: Path
) -> None:
    wanted = asked(evaluated, "--log-uniform", "tracker.tau=0.1,1", "--seed", "3")
    out = tmp_path / "sweep"
    out.mkdir()
    (out / "settings.json").write_text(json.dumps(wanted.to_dict()))
    again = job.asked_for(tyro.cli(job.Sweep, args=["--out", str(out), "--resume"]))
    assert again == wanted
    with pytest.raises(ValueError, match="give --evaluation"):
        job.asked_for(tyro.cli(job.Sweep, args=["--out", str(out)]))


@pytest.mark.ray
@pytest.mark.slow
def test_a_sweep_killed_half_way_goes_on_and_repeats_nothing(tmp_path: Path) -> None:
    import os
    import signal
    import subprocess
    import sys
    import time

    from idol.images import synthetic, synthetic_dataset
    from pipelines.cluster import ROOT

    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    annotations = synthetic_dataset.write_dataset(
        tmp_path / "videos", synthetic.SyntheticConfig.crowded(), 10, 91
    )
    run, out = tmp_path / "run", tmp_path / "sweep"

    def python(*words: str) -> list[str]:
        return [sys.executable, "-m", *words]

    subprocess.run(
        python(
            "jobs.evaluate", "--annotations", str(annotations), "--checkpoint", "shipped",
            "--out", str(run),
        ),
        cwd=ROOT, env=environment, check=True, capture_output=True,
    )  # fmt: skip
    command = python(
        "jobs.sweep", "--evaluation", str(run), "--out", str(out), "--search", "random",
        "--samples", "60",
    )  # fmt: skip
    first = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    ledger = out / "ledger.jsonl"
    deadline = time.monotonic() + 240
    while not ledger.exists() or len(ledger.read_bytes().splitlines()) < 25:
        assert first.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = ledger.read_bytes()
    again = python("jobs.sweep", "--out", str(out), "--resume")
    done = subprocess.run(again, cwd=ROOT, env=environment, check=True, capture_output=True)
    assert ledger.read_bytes().startswith(before)
    rows = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert len({row["hash"] for row in rows}) == len(rows) == 61
    assert json.loads(done.stdout.splitlines()[-1])["configurations"] == 61
