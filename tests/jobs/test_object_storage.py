"""Jobs read from a bucket and write to it what they write to a disk, also while it is away."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import fs

import idol
from idol.config import override
from idol.images import synthetic, synthetic_dataset
from idol.weights import checkpoint
from jobs import check, convert, evaluate, prepare, report, score, sweep, train
from pipelines.batches import loader
from pipelines.report import experiment_log
from pipelines.storage import manifest, paths
from pipelines.storage.paths import AnyPath, RemotePath
from tests.object_storage import BUCKET, S3Server

pytestmark = pytest.mark.ray

AWAY_S = 10.0
NETWORK = [
    word
    for text in (
        *("model.num_classes=2", "model.num_queries=6", "model.width=32", "model.feedforward=32"),
        *("transforms.stretch=[64,96]", "train.pairs_per_batch=2", "train.report_every=1"),
        *("train.checkpoint_every=1", "losses.reid_aux=0"),
    )
    for word in ("--set", text)
]
FREE = ("score_threshold", "new_threshold", "first_threshold", "class_score_threshold")
"""Thresholds at 0: the untrained network is sure of nothing."""


@pytest.fixture(scope="module")
def data(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Annotations, frames, weights, pairs and an evaluation on a disk."""
    folder = tmp_path_factory.mktemp("data")
    config = synthetic.SyntheticConfig(size=(64, 96), length=(4, 6), num_categories=2)
    synthetic_dataset.write_dataset(folder / "val", config, 6, 0)
    torch.manual_seed(0)
    tiny = idol.presets.tiny()
    small = replace(tiny.model, num_classes=2, num_queries=6, width=32, feedforward=32)
    network = override(
        replace(
            tiny,
            model=small,
            transforms=replace(tiny.transforms, stretch=(64, 96)),
            categories=config.categories,
            category_ids=(1, 2),
        ),
        ["detect.score_floor=0", "detect.frames_per_shard=6"]
        + [f"tracker.{name}=0" for name in FREE],
    )
    checkpoint.save(idol.IDOL(network), folder / "weights.safetensors")
    for job in (prepared, evaluated):
        job(str(folder), str(folder / job.__name__), folder / "log")
    return folder


@pytest.fixture
def bucket(s3: S3Server, data: Path) -> Iterator[str]:
    """The same in a bucket."""
    system, _ = paths.native(f"s3://{BUCKET}")
    fs.copy_files(str(data), f"{BUCKET}/data", destination_filesystem=system)
    yield f"s3://{BUCKET}/data"
    paths.remove_tree(paths.at(f"s3://{BUCKET}/data"))
    paths.remove_tree(paths.at(f"s3://{BUCKET}/out"))


def content(folder: AnyPath) -> dict[str, bytes]:
    """The files of a folder that do not say when they were made."""
    timed = ("_manifest.json", "mlflow.db", "report.html")
    return {f.name: f.read_bytes() for f in folder.iterdir() if f.is_file() and f.name not in timed}


def prepared(source: str, out: str, log: Path, *more: str) -> dict[str, bytes]:
    words = ["--annotations", f"{source}/val/instances.json", "--out", out, "--preset", "tiny"]
    prepare.main([*words, "--set", "pairs.rows_per_shard=8", *more])
    return content(paths.at(out))


def evaluated(source: str, out: str, log: Path) -> dict[str, bytes]:
    words = ["--annotations", f"{source}/val/instances.json", "--out", out, "--actors", "1"]
    words += ["--checkpoint", f"{source}/weights.safetensors", "--log-to", str(log)]
    evaluate.main(words)
    parts = ("", "detections", "tracks")
    found = {f"{p}/{n}": b for p in parts for n, b in content(paths.at(out) / p).items()}
    found.pop("/report.json")  # says where the annotations lay
    return found


def trained(source: str, out: str, log: Path, workers: str = "0") -> dict[str, Any]:
    words = ["--pairs", f"{source}/prepared", "--weights", f"{source}/weights.safetensors"]
    words += ["--out", out, "--log-to", str(log), "--workers", workers, "--reset-classes"]
    train.main([*words, *NETWORK, "--set", "train.steps=4"])
    place = paths.at(out)
    with paths.local_file(place / "checkpoint.safetensors") as file:
        state = idol.load(file).state_dict()
    curve = json.loads((place / "losses.json").read_text())
    return {"files": sorted(content(place)), "state": state, "curve": curve}


def swept_tracker(source: str, out: str, log: Path) -> dict[str, Any]:
    words = ["--evaluation", f"{source}/evaluated", "--out", out, "--log-to", str(log)]
    words += ["--annotations", f"{source}/val/instances.json", "--max-concurrent", "1"]
    sweep.main([*words, "--grid", "tracker.match_threshold=0.3,0.5,0.7", "--folds", "3"])
    found = content(paths.at(out))
    return {name: json.loads(found[name]) for name in ("best.json", "report.json")}


def swept_training(source: str, out: str, log: Path) -> dict[str, Any]:
    words = ["--pairs", f"{source}/prepared", "--annotations", f"{source}/val/instances.json"]
    words += [
        "--out",
        out,
        "--log-to",
        str(log),
        "--max-concurrent",
        "1",
        "--workers",
        "0",
        *NETWORK,
    ]
    words += ["--set", "train.steps=2", "--grid", "train.learning_rate=1e-4,1e-3"]
    sweep.main(words)
    best = json.loads((paths.at(out) / "best.json").read_text())
    place = paths.at(best.pop("checkpoint"))
    assert place.is_file()
    return {"best": best, "checkpoint": place.name}


def checked(source: str, out: str, log: Path) -> dict[str, Any]:
    check.main([f"{source}/val/instances.json", "--out", out, "--frames-read", "all"])
    found = json.loads((paths.at(out) / "check.json").read_text())
    assert (paths.at(out) / "check.html").is_file()
    return {name: found[name] for name in ("counts", "categories", "histograms", "findings")}


def converted(source: str, out: str, log: Path) -> dict[str, bytes]:
    words = [f"{source}/val/instances.json", "--out", f"{out}.json"]
    convert.main([*words, "--split", "0.5"])
    place = paths.at(out)
    parts = ("", "_held_out")
    return {part: (place.parent / f"{place.name}{part}.json").read_bytes() for part in parts}


@dataclass(frozen=True)
class Job:
    """One job: run(source, out, log) -> what it wrote; begun(out): whether it is in the middle."""

    run: Callable[[str, str, Path], Any]
    begun: str = ""
    """Pattern of a file below out that it writes in the middle; "": it has read one file."""


JOBS = {
    "check": Job(checked),
    "convert": Job(converted),
    "prepare": Job(prepared, "shard-*"),
    "train": Job(trained, "checkpoints/step-*"),
    "train-two-workers": Job(partial(trained, workers="2"), "checkpoints/step-*"),
    "evaluate": Job(evaluated, "detections/shard-*"),
    "sweep-tracker": Job(swept_tracker, "ledger-*"),
    "sweep-training": Job(swept_training, "trials/*/trial-0001-*/train/*"),
}
LONG = ("train-two-workers", "evaluate", "sweep-tracker", "sweep-training")


def there(place: AnyPath, pattern: str) -> bool:
    first, _, rest = pattern.partition("/")
    return any(not rest or there(path, rest) for path in place.glob(first))


@contextlib.contextmanager
def away(server: S3Server, begun: Callable[[], bool]) -> Iterator[None]:
    """Take the server away for AWAY_S once the block has begun; it must end later than that."""
    over = threading.Event()
    back: list[float] = []

    def watch() -> None:
        while not begun():
            if over.wait(0.02):
                return
        server.stop()
        try:
            time.sleep(AWAY_S)
        finally:
            server.start()
            back.append(time.monotonic())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
        ended = time.monotonic()
    finally:
        over.set()
        thread.join()
    assert back, "the job had ended before the server was taken away"
    assert ended > back[0], "the job has not needed the server any more"


@pytest.fixture(scope="module")
def on_disk(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """What a job writes to a disk; each job runs there once."""
    done: dict[str, Any] = {}

    def result(name: str) -> Any:
        if name not in done:
            out = tmp_path_factory.mktemp(name)
            done[name] = JOBS[name].run(str(data), str(out / "out"), out / "log")
        return done[name]

    return result


def same(ours: Any, theirs: Any, where: str = "") -> None:
    """Equal to the last bit, weights too."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), where
        for name in theirs:
            same(ours[name], theirs[name], f"{where}/{name}")
    elif isinstance(theirs, torch.Tensor):
        torch.testing.assert_close(ours, theirs, atol=0, rtol=0)
    else:
        assert ours == theirs, where


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in LONG else []) for n in JOBS]
)
def test_a_job_writes_to_a_bucket_what_it_writes_to_a_disk(name, on_disk, bucket, tmp_path):
    same(JOBS[name].run(bucket, f"s3://{BUCKET}/out/{name}", tmp_path), on_disk(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_a_server_that_is_away_for_ten_seconds_changes_nothing(
    name, on_disk, bucket, tmp_path, s3, monkeypatch
):
    theirs, job = on_disk(name), JOBS[name]
    out = f"s3://{BUCKET}/out/{name}"
    read, first = RemotePath.read_bytes, threading.Event()

    def read_bytes(path: RemotePath) -> bytes:
        found = read(path)
        if not job.begun and not first.is_set():
            first.set()
            time.sleep(0.2)  # until the server is away
        return found

    monkeypatch.setattr(RemotePath, "read_bytes", read_bytes)
    begun = first.is_set if not job.begun else lambda: there(paths.at(out), job.begun)
    with away(s3, begun):
        ours = job.run(bucket, out, tmp_path)
    same(ours, theirs)


def test_pairs_in_a_bucket_give_the_same_batches(bucket, data):
    loaders = [
        loader.ClipLoader(place, idol.presets.tiny(), batch=4).batches()
        for place in (data / "prepared", paths.at(f"{bucket}/prepared"))
    ]
    for here, there in zip(
        *([next(batches) for _ in range(5)] for batches in loaders), strict=True
    ):
        torch.testing.assert_close(here.images, there.images, rtol=0, atol=0)
    for batches in loaders:
        batches.close()


def test_a_finished_output_in_a_bucket_is_returned_and_another_runs_is_refused(bucket, tmp_path):
    out = f"{bucket}/prepared"
    before = content(paths.at(out))
    with pytest.raises(SystemExit, match=r"s3://.*max_gap was .*, now 2"):
        prepared(bucket, out, tmp_path, "--set", "pairs.max_gap=2")
    assert content(paths.at(out)) == before
    prepared(bucket, out, tmp_path, "--set", "pairs.max_gap=2", "--overwrite")
    assert manifest.read(out, "prepare").config["max_gap"] == 2
    prepared(bucket, out, tmp_path, "--set", "pairs.max_gap=2")  # again: it is finished


def test_scores_and_pages_of_what_lies_in_a_bucket(bucket, data, tmp_path, capsys):
    lines = []
    for source, out in ((str(data), str(tmp_path)), (bucket, f"s3://{BUCKET}/out")):
        words = ["--truth", f"{source}/val/instances.json", "--bootstrap", "0"]
        words += ["--results", f"{source}/evaluated/results.json"]
        for _ in range(2):  # what a job wrote it replaces
            score.main([*words, "--out", f"{out}/score.json", "--html", f"{out}/score.html"])
        lines.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
        zipped = ["--submission", f"{source}/evaluated/results.json", "--out", f"{out}/x.zip"]
        score.main(zipped)
        report.main(["--evaluate", f"{source}/evaluated", "--out", f"{out}/page.html"])
        for name in ("score.json", "score.html", "x.zip", "page.html"):
            assert (paths.at(out) / name).is_file(), name
    assert lines[0] == lines[1]
    paths.write_whole(paths.at(out) / "mine.json", b"[]")
    with pytest.raises(SystemExit, match=r"s3://.*/mine.json exists and is not an output of jobs"):
        score.main([*words, "--out", f"{out}/mine.json"])
    with pytest.raises(SystemExit, match=r"--out and --truth name s3://.*Write elsewhere"):
        score.main([*words, "--out", words[1]])


def test_masks_are_written_to_a_bucket_as_to_a_disk(bucket, data, tmp_path):
    found = []
    for source, out in ((str(data), str(tmp_path / "mots")), (bucket, f"s3://{BUCKET}/out/mots")):
        convert.main([f"{source}/val/instances.json", "--out", out, "--to", "mots"])
        files, waiting = {}, [paths.at(out)]
        while waiting:
            path = waiting.pop()
            if path.is_dir():
                waiting += path.iterdir()
            else:
                files[str(path).removeprefix(out)] = path.read_bytes()
        found.append(files)
    assert found[0] == found[1]
    assert len(found[0]) > 6
    with pytest.raises(SystemExit, match=r"--out: s3://.*mots exists and is not an output"):
        convert.main([f"{bucket}/val/instances.json", "--out", out, "--to", "mots"])
    with pytest.raises(SystemExit, match="only JSON goes with an address"):
        convert.main([f"{bucket}/val", "--out", f"{out}.json"])


def test_an_experiment_log_in_a_bucket_is_refused_and_its_artifacts_may_lie_there(
    bucket, tmp_path, monkeypatch
):
    words = ["--annotations", f"{bucket}/val/instances.json", "--out", f"s3://{BUCKET}/out/none"]
    with pytest.raises(SystemExit, match=r"cannot lie in s3://.*--log-to FOLDER"):
        evaluate.main([*words, "--checkpoint", f"{bucket}/weights.safetensors"])
    root = f"s3://{BUCKET}/out/mlruns"
    monkeypatch.setenv(experiment_log.ARTIFACT_ROOT, root)
    (tmp_path / "a.txt").write_text("one")
    with experiment_log.run(tmp_path, "a run", {}) as log:
        log.artifacts(tmp_path / "a.txt", paths.at(f"{bucket}/val/instances.json"))
    (run,) = experiment_log.runs(tmp_path)
    assert run.info.artifact_uri.startswith(root)
    stored = paths.at(run.info.artifact_uri)
    assert sorted(path.name for path in stored.iterdir()) == ["a.txt", "instances.json"]
    assert (stored / "a.txt").read_text() == "one"


@pytest.mark.parametrize("job", [prepare, train, evaluate, sweep, convert, check])
def test_the_hub_is_read_only(job, tmp_path):
    words = ["--out", "hf://owner/repo/out"]
    words = {
        prepare: ["--annotations", "a.json", *words],
        train: ["--pairs", "p", *words],
        evaluate: ["--annotations", "a.json", "--checkpoint", "shipped", *words],
        sweep: ["--evaluation", "e", *words],
        convert: ["a.json", *words],
        check: ["a.json", *words],
    }[job]
    with pytest.raises(SystemExit, match=r"--out hf://owner/repo/out: hf:// can only be read"):
        job.main(words)
