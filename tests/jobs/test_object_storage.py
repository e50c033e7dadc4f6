"""Jobs read from a bucket and write to it what they write to a disk, byte for byte."""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pyarrow import fs

import idol
from idol.config import override
from idol.images import synthetic, synthetic_dataset
from idol.weights import checkpoint
from jobs import evaluate, prepare, train
from pipelines.batches import loader
from pipelines.storage import paths
from tests.object_storage import BUCKET, S3Server

pytestmark = pytest.mark.ray

NETWORK = [
    word
    for text in ("num_classes=2", "num_queries=6", "width=32", "feedforward=32")
    for word in ("--set", f"model.{text}")
]
FREE = ("score_threshold", "new_threshold", "first_threshold", "class_score_threshold")
"""Thresholds at 0: the untrained network is sure of nothing."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Annotations, frames and weights on a disk."""
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
    return folder


@pytest.fixture
def bucket(ray_local: None, s3: S3Server, data: Path) -> Iterator[str]:
    """The same in a bucket."""
    system, _ = paths.native(f"s3://{BUCKET}")
    fs.copy_files(str(data), f"{BUCKET}/data", destination_filesystem=system)
    yield f"s3://{BUCKET}/data"
    paths.remove_tree(paths.at(f"s3://{BUCKET}/data"))


def content(folder: paths.AnyPath) -> dict[str, bytes]:
    """The files of a folder that do not say when they were made."""
    timed = ("_manifest.json", "mlflow.db", "report.html")
    return {f.name: f.read_bytes() for f in folder.iterdir() if f.is_file() and f.name not in timed}


def prepared(source: str, out: str, *more: str) -> dict[str, bytes]:
    words = ["--annotations", f"{source}/val/instances.json", "--out", out, "--preset", "tiny"]
    prepare.main([*words, "--set", "pairs.rows_per_shard=8", *more])
    return content(paths.at(out))


def evaluated(source: str, out: str, tmp_path: Path) -> dict[str, bytes]:
    words = ["--annotations", f"{source}/val/instances.json", "--out", out, "--actors", "1"]
    words += ["--checkpoint", f"{source}/weights.safetensors", "--log-to", str(tmp_path / "log")]
    evaluate.main(words)
    parts = ("", "detections", "tracks")
    return {f"{p}/{n}": b for p in parts for n, b in content(paths.at(out) / p).items()}


def test_pairs_in_a_bucket_have_the_same_bytes_and_batches(bucket, data, tmp_path):
    on_disk = prepared(str(data), str(tmp_path / "pairs"))
    assert len(on_disk) > 3
    assert prepared(bucket, f"{bucket}/pairs") == on_disk
    prepared(bucket, f"{bucket}/pairs")  # again: it is finished
    loaders = [
        loader.ClipLoader(place, idol.presets.tiny(), batch_size=4).batches()
        for place in (tmp_path / "pairs", paths.at(f"{bucket}/pairs"))
    ]
    for here, there in zip(
        *([next(batches) for _ in range(5)] for batches in loaders), strict=True
    ):
        torch.testing.assert_close(here.images, there.images, rtol=0, atol=0)
    for batches in loaders:
        batches.close()


@pytest.mark.slow
def test_training_reads_pairs_and_weights_from_a_bucket(bucket, data, tmp_path, capsys):
    prepared(str(data), str(tmp_path / "pairs"))
    prepared(bucket, f"{bucket}/pairs")
    losses = []
    for pairs, weights, out in (
        (str(tmp_path / "pairs"), str(data / "weights.safetensors"), tmp_path / "here"),
        (f"{bucket}/pairs", f"{bucket}/weights.safetensors", tmp_path / "there"),
    ):
        words = ["--pairs", pairs, "--weights", weights, "--out", str(out), "--workers", "0"]
        words += ["--reset-classes", *NETWORK, "--set", "train.steps=2"]
        train.main([*words, "--set", "train.pairs_per_batch=2", "--set", "train.report_every=1"])
        losses.append(json.loads((out / "losses.json").read_text()))
    # The last bits of a gradient differ from run to run.
    assert losses[0][0] == losses[1][0]
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["input_hash"]


@pytest.mark.slow
def test_an_evaluation_in_a_bucket_has_the_same_bytes(bucket, data, tmp_path, capsys):
    on_disk = evaluated(str(data), str(tmp_path / "out"), tmp_path)
    there = evaluated(bucket, f"{bucket}/out", tmp_path)
    assert there.keys() == on_disk.keys()
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["results"] == f"{bucket}/out/results.json"
    for name, written in on_disk.items():
        if name != "/report.json":  # which says where the annotations lay
            assert there[name] == written, name


def test_an_experiment_log_beside_an_output_in_a_bucket_is_refused_before_the_work(bucket):
    words = ["--annotations", f"{bucket}/val/instances.json", "--out", f"{bucket}/none"]
    with pytest.raises(SystemExit, match=r"cannot lie in s3://.*--log-to FOLDER"):
        evaluate.main([*words, "--checkpoint", f"{bucket}/weights.safetensors"])


@pytest.mark.slow
def test_an_output_of_another_run_in_a_bucket_is_refused(bucket):
    prepared(bucket, f"{bucket}/pairs")
    with pytest.raises(SystemExit, match=r"s3://.*max_gap was .*, now 2"):
        prepared(bucket, f"{bucket}/pairs", "--set", "pairs.max_gap=2")
    prepared(bucket, f"{bucket}/pairs", "--set", "pairs.max_gap=2", "--overwrite")


@pytest.mark.slow
def test_a_server_that_is_away_for_ten_seconds_changes_nothing(bucket, data, tmp_path, s3):
    on_disk = prepared(str(data), str(tmp_path / "pairs"))
    threading.Timer(1, s3.stop).start()
    threading.Timer(11, s3.start).start()
    assert prepared(bucket, f"{bucket}/pairs") == on_disk
