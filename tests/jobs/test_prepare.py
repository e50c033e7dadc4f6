"""`python -m jobs.prepare`: one JSON line at the end, and errors that say what to do."""

import json

import pytest

from idol.images import synthetic, synthetic_dataset
from jobs import prepare
from pipelines.storage import manifest

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
