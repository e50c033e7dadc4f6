"""jobs.evaluate and jobs.sweep from the command line, on an untrained network."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import idol
from idol.config import override
from idol.images import synthetic, synthetic_dataset
from idol.segmenter import OnlineSegmenter
from idol.weights import checkpoint
from idol.ytvis import results
from jobs import evaluate, score, sweep
from pipelines import configuration
from pipelines.cluster import ROOT
from pipelines.sources import frames

LOW = [
    word
    for name in ("score_threshold", "new_threshold", "first_threshold", "class_score_threshold")
    for word in ("--set", f"tracker.{name}=0")
]
"""The untrained network is sure of nothing."""
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100")


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An annotation file, and weights that find something in everything."""
    folder = tmp_path_factory.mktemp("walk")
    config = synthetic.SyntheticConfig(
        size=(64, 96), length=(4, 6), num_objects=(1, 3), num_categories=2
    )
    annotations = synthetic_dataset.write_dataset(folder / "val", config, 4, 0)
    torch.manual_seed(0)
    preset = idol.presets.tiny()
    network = override(
        replace(
            preset,
            model=replace(preset.model, num_classes=2, num_queries=6, width=32, feedforward=32),
            transforms=replace(preset.transforms, stretch=(64, 96)),
            categories=config.categories,
            category_ids=(1, 2),
        ),
        [
            "detect.score_floor=0",
            "detect.frames_per_shard=3",
            "tracker.score_threshold=0",
            "tracker.new_threshold=0",
            "tracker.first_threshold=0",
            "tracker.class_score_threshold=0",
        ],
    )
    return annotations, checkpoint.save(idol.IDOL(network), folder / "weights.safetensors")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("tracker", ["released", "robust"])
def test_a_stream_ends_with_the_bytes_of_evaluate(
    ray_local: None, walk: tuple[Path, Path], tmp_path: Path, tracker: str
) -> None:
    annotations, weights = walk
    out = tmp_path / "run"
    # One frame in a forward pass: the number in a batch moves the last bits of scores.
    evaluate.main(
        [*("--annotations", str(annotations), "--checkpoint", str(weights), "--out", str(out)),
         *("--batch-frames", "1", "--tracker", tracker, *LOW)]
    )  # fmt: skip
    model = checkpoint.load(weights)
    config = configuration.changed(model.config, LOW[1::2], tracker)
    entries = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the job's actors
    try:
        for video in json.loads(annotations.read_text())["videos"]:
            segmenter = OnlineSegmenter(model, config=config)
            for name in video["file_names"]:
                path = annotations.parent / synthetic_dataset.FRAMES_FOLDER / name
                segmenter(frames.read(str(path), video_id=0))
            entries += segmenter.finish_ytvis(video["id"])
    finally:
        torch.set_num_threads(threads)
    assert len({entry["video_id"] for entry in entries}) == 4
    results.write(tmp_path / "streamed.json", entries)
    assert (tmp_path / "streamed.json").read_bytes() == (out / "results.json").read_bytes()


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    line: dict[str, object] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return line


@pytest.fixture
def evaluated(
    ray_local: None,
    walk: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, object]:
    """The last line of jobs.evaluate, whose output is tmp_path / "run"."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    annotations, weights = map(str, walk)
    out = str(tmp_path / "run")
    evaluate.main([*("--annotations", annotations), *("--checkpoint", weights), *("--out", out)])
    return last_line(capsys)


@pytest.mark.ray
def test_evaluate_and_score_agree(
    evaluated: dict[str, object], walk: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    line = evaluated
    assert set(METRICS) <= set(line)
    assert line["rows"]
    score.main(["--truth", str(walk[0]), "--results", str(line["results"])])
    scored = last_line(capsys)
    assert {name: scored[name] for name in METRICS} == {name: line[name] for name in METRICS}


@pytest.mark.ray
@pytest.mark.slow
def test_evaluate_and_sweep_agree(
    evaluated: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line, out = evaluated, tmp_path / "run"
    sweep.main(
        [
            *("--evaluation", str(out), "--out", str(tmp_path / "sweep")),
            *("--grid", "tracker.match_threshold=0.3,0.7"),
            *("--grid", "tracker.memory_length=1,3"),
        ]
    )
    swept = last_line(capsys)
    assert swept["configurations"] == 5
    base = swept["base"]
    assert isinstance(base, dict)
    assert {name: base[name] for name in METRICS} == pytest.approx(
        {name: line[name] for name in METRICS}
    )


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--annotations", "none.json"], "DatasetError: none.json"),
        (["--checkpoint", "none.safetensors"], "no checkpoint at none.safetensors"),
        (["--tracker", "none"], "no tracker 'none'"),
        (["--set", "tracker.tua=1"], "Did you mean 'tau'"),
        (["--set", "model.num_queries=7"], "trained network"),
        (["--videos", "99"], r"ValueError: 1 of the 1 chosen .*, for example 99$"),
        (["--stride", "0"], r"ValueError: stride must be at least 1, got 0$"),
        (["--actors", "8..1"], "Write 4, or 1..8"),
    ],
)
def test_mistakes_are_said_in_one_line_and_leave_nothing_behind(
    ray_local: None, walk: tuple[Path, Path], tmp_path: Path, extra: list[str], message: str
) -> None:
    annotations, weights = map(str, walk)
    given = {"--annotations": annotations, "--checkpoint": weights, "--out": str(tmp_path / "out")}
    given |= {extra[0]: extra[1]}
    with pytest.raises(SystemExit, match=message):
        evaluate.main([word for pair in given.items() for word in pair])
    assert not (tmp_path / "out").exists()


@pytest.mark.ray
def test_gpus_that_are_not_there_are_missed_at_once(
    ray_local: None, walk: tuple[Path, Path], tmp_path: Path
) -> None:
    annotations, weights = map(str, walk)
    with pytest.raises(
        SystemExit, match=r"needs \d CPUs and \d GPUs, but Ray has 4 and 0\. Use --device"
    ):
        evaluate.main(
            [
                *("--annotations", annotations, "--checkpoint", weights),
                *("--device", "gpu", "--out", str(tmp_path / "out")),
            ]
        )


def test_several_sets_have_folders_of_their_own(tmp_path: Path) -> None:
    job = evaluate.Evaluate(
        annotations=("a/val/x.json", "b/val/x.json", "c/mine.json", "c/mine_held_out.json"),
        checkpoint=("shipped",),
        out=tmp_path,
    )
    assert evaluate._outputs(job, tmp_path) == {
        "val": ("a/val/x.json", tmp_path / "val"),
        "val-2": ("b/val/x.json", tmp_path / "val-2"),
        "mine": ("c/mine.json", tmp_path / "mine"),
        "mine_held_out": ("c/mine_held_out.json", tmp_path / "mine_held_out"),
    }


@pytest.mark.slow
@pytest.mark.ray
def test_several_checkpoints_are_checked_then_evaluated_and_compared(
    ray_local: None,
    walk: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    annotations, weights = walk
    other = tmp_path / "other.safetensors"
    shutil.copy(weights, other)
    out = tmp_path / "both"
    command = ["--annotations", str(annotations), "--out", str(out), "--checkpoint", str(weights)]
    with pytest.raises(SystemExit, match=r"no checkpoint at none\.safetensors"):
        evaluate.main([*command, "none.safetensors"])
    assert not out.exists()
    evaluate.main([*command, str(other)])
    line = last_line(capsys)
    assert isinstance(line["checkpoints"], dict)
    first, second = line["checkpoints"]["weights"], line["checkpoints"]["other"]
    assert first["AP"] == second["AP"]
    assert Path(first["out"]) == out / "weights"
    table = json.loads((out / "comparison.json").read_text())
    assert table["weights"].popitem()[1] == table["other"].popitem()[1]
    page = (out / "comparison.html").read_text()
    assert "weights" in page
    assert "other" in page


@pytest.mark.ray
@pytest.mark.slow
def test_a_driver_killed_in_the_middle_of_detect_goes_on_to_the_same_bytes(
    walk: tuple[Path, Path], tmp_path: Path
) -> None:
    annotations, weights = map(str, walk)

    def command(out: Path) -> list[str]:
        return [
            *(sys.executable, "-m", "jobs.evaluate", "--annotations", annotations),
            *("--checkpoint", weights, "--out", str(out), "--actors", "1"),
        ]

    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    first = subprocess.Popen(command(killed), cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not list((killed / "detections").glob("shard-*.parquet")):
        assert first.poll() is None, "it ended before its first shard"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    first.send_signal(signal.SIGKILL)
    first.wait()
    done = {p: p.stat().st_mtime_ns for p in (killed / "detections").glob("shard-*.parquet")}
    assert not (killed / "_manifest.json").exists()
    for out in (killed, whole):
        subprocess.run(command(out), cwd=ROOT, env=environment, check=True, capture_output=True)
    assert all(path.stat().st_mtime_ns == before for path, before in done.items())
    assert (killed / "results.json").read_bytes() == (whole / "results.json").read_bytes()


@pytest.mark.ray
@pytest.mark.slow
def test_actors_tasks_nodes_and_drivers_may_die(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-m", "benchmarks.chaos", "--runs", "4", "--out", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "4 of 4 runs ended with the undisturbed bytes" in done.stdout
