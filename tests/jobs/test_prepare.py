"""`python -m jobs.prepare`: one JSON line at the end, and errors that say what to do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from idol.images import synthetic, synthetic_dataset
from jobs import prepare
from pipelines import cluster
from pipelines.storage import manifest, paths
from tests.object_storage import BUCKET, S3Server

SMALL = ["--preset", "tiny", "--set", "pairs.rows_per_shard=6"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[str]:
    config = synthetic.SyntheticConfig(size=(32, 48), length=(4, 4))
    folder = tmp_path_factory.mktemp("videos")
    return [
        str(synthetic_dataset.write_dataset(folder / f, config, 2, seed, format=f))
        for seed, f in enumerate(("jpeg", "mp4"))
    ]


@pytest.mark.ray
def test_folders_and_video_files_become_one_directory_of_pairs(ray_local, videos, tmp_path, capsys):
    out = tmp_path / "pairs"
    prepare.main(["--annotations", *videos, "--out", str(out), *SMALL, "--set", "pairs.max_gap=2"])
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["stage"] == "prepare"
    assert (printed["rows"], printed["rejects"]) == (16, 0)
    assert printed["config"]["max_gap"] == 2
    assert printed["extra"]["videos"] == 4
    assert manifest.read(out, "prepare").rows == 16

    # The same command again is done at once; another one is refused until told to overwrite.
    prepare.main(["--annotations", *videos, "--out", str(out), *SMALL, "--set", "pairs.max_gap=2"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == printed
    with pytest.raises(SystemExit, match=r"max_gap was 2, now 3.*--overwrite"):
        prepare.main(
            ["--annotations", *videos, "--out", str(out), *SMALL, "--set", "pairs.max_gap=3"]
        )
    with pytest.raises(SystemExit, match=r"the reject limit must lie in \[0, 1\], got 10"):
        prepare.main(["--annotations", *videos, "--out", str(out), *SMALL, "--reject-limit", "10"])
    again = ["--videos", "2", "--stride", "2", "--overwrite"]
    prepare.main(["--annotations", videos[0], "--out", str(out), *SMALL, *again])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"] == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "pairs.max_gpa=3"], "no field 'max_gpa'.*Did you mean 'max_gap'"),
        (["--preset", "tinny"], "tinny"),
        (["--videos", "77"], "not in.*for example 77"),
    ],
)
def test_a_slip_of_the_pen_is_one_line_and_no_traceback(videos, tmp_path, arguments, words):
    with pytest.raises(SystemExit, match=words):
        prepare.main(["--annotations", videos[0], "--out", str(tmp_path / "out"), *arguments])
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_youtube_vis_is_one_line(tmp_path):
    path = tmp_path / "coco.json"
    path.write_text('{"images": []}')
    with pytest.raises(SystemExit, match=r"DatasetError: .*is not YouTube-VIS"):
        prepare.main(["--annotations", str(path), "--out", str(tmp_path / "out")])


SLOWLY = """
import sys, time
from jobs import prepare
from pipelines.stages import pairs

def slow(item, **shared):
    from pipelines.stages import pairs

    time.sleep(1)
    return pairs.write_shard(item, **shared)

pairs.write_shard = slow
prepare.main(sys.argv[1:])
"""
"""The job, with time for another to come in between."""


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("place", ["disk", "s3"])
def test_two_at_once_in_one_place_end_with_one_right_output(
    ray_local: None, videos: list[str], s3: S3Server, tmp_path: Path, place: str
) -> None:
    words = ["--annotations", *videos, "--preset", "tiny", "--set", "pairs.rows_per_shard=2"]
    prepare.main([*words, "--out", str(tmp_path / "alone")])
    out = str(tmp_path / "out") if place == "disk" else f"s3://{BUCKET}/{tmp_path.name}"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    command = [sys.executable, "-c", SLOWLY, *words, "--out", out, "--num-cpus", "1"]
    both = [
        subprocess.Popen(
            command,
            env={**environment, "PYTHONPATH": str(cluster.ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    told = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    lines = [json.loads(stdout.splitlines()[-1]) for stdout, _ in told]
    assert lines[0]["rows"] == lines[1]["rows"] == 16
    found = {path.name: path.read_bytes() for path in paths.at(out).iterdir()}
    alone = {path.name: path.read_bytes() for path in (tmp_path / "alone").iterdir()}
    assert found.keys() == alone.keys()
    for name in found.keys() - {"_manifest.json"}:
        assert found[name] == alone[name], name
    assert manifest.read(out).hash == manifest.read(tmp_path / "alone").hash
