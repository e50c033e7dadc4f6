"""`python -m jobs.check`: a table, one JSON line, a page, and an exit status that tells."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from jobs import check
from pipelines.storage import paths
from tests.object_storage import BUCKET, S3Server
from tests.pipelines.conftest import Videos, make_videos

__all__ = ["make_videos"]  # a fixture

TINY = ("--preset", "tiny")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, Any], str]]:
    """run(*words): exit status, the JSON of the last line, and stderr."""

    def one(*words: object) -> tuple[int, dict[str, Any], str]:
        status: Any = 0
        try:
            check.main([*map(str, words), *TINY])
        except SystemExit as stopped:
            status = stopped.code
        told = capsys.readouterr()
        return status, json.loads(told.out.splitlines()[-1]), told.err

    return one


def test_a_clean_set(make_videos: Callable[..., Videos], run: Any) -> None:
    status, line, told = run(make_videos([4, 3]).write())
    assert status == 0
    assert line == {
        "videos": 2,
        "usable_videos": 2,
        "frames": 7,
        "tracks": 4,
        "refused": False,
        "effects": {},
        "found": {},
    }
    assert told.rstrip().endswith("nothing is wrong")


def test_warnings_are_listed_once_and_the_status_stays_0(
    make_videos: Callable[..., Videos], run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    videos = make_videos([4, 3])
    videos.content["annotations"][0]["id"] = 0
    videos.content["categories"].append({"id": 9, "name": "bus"})
    status, line, told = run(videos.write())
    assert status == 0
    assert line["effects"] == {"not scored": 1, "repaired": 1}
    assert line["found"]["categories without a track"] == 1
    assert told.count("annotation ids that are 0, missing or repeated") == 1
    assert "categories without a track (first: bus)" in told
    assert not caplog.records
    status, line, _ = run(videos.write(), "--for", "train")
    assert (status, line["effects"]) == (0, {"repaired": 1})


def test_what_later_jobs_refuse_is_status_1_with_everything_told(
    make_videos: Callable[..., Videos], run: Any, tmp_path: Path
) -> None:
    videos = make_videos([4, 3, 3])
    videos.frame(2, 1).unlink()
    path = videos.write()
    status, line, told = run(path, "--out", tmp_path / "out")
    assert status == 1
    assert line["refused"]
    assert line["effects"] == {"refused": 2, "left out": 2}
    assert re.search(r"refused +1 jobs.prepare will end with an error \(first: 1 of 3 videos", told)
    assert "more than the limit of 10%" in (tmp_path / "out" / "check.html").read_text()
    status, line, _ = run(path, "--reject-limit", "0.5")
    assert (status, line["refused"]) == (0, False)


def test_the_page_and_the_json_hold_what_is_claimed(
    make_videos: Callable[..., Videos], run: Any, tmp_path: Path
) -> None:
    videos = make_videos([4, 3, 5])
    path = videos.frame(3, 2)
    path.write_bytes(path.read_bytes()[:-60])
    out = tmp_path / "out"
    words = (videos.write(), "--out", out, "--frames-read", "all", "--reject-limit", "1")
    status, line, _ = run(*words)
    assert status == 0
    assert (line["report"], line["page"]) == (str(out / "check.json"), str(out / "check.html"))
    content = json.loads((out / "check.json").read_text())
    (finding,) = content["findings"]
    assert finding["kind"] == "frames that cannot be decoded"
    assert finding["places"][0].startswith(str(path))
    page = (out / "check.html").read_text()
    assert len(page) < 3_000_000
    assert not re.search(r'(?:src|href)="(?!#|data:)', page)
    assert page.index("video 3, v3") < page.index("video 1, v1")
    assert page.count("<img ") == 4 + 3 + 4  # of five frames one cannot be shown
    for title in ("Videos by their frames", "Videos by their tracks", "Videos by height x width"):
        assert f"<figcaption>{title}</figcaption><svg" in page
    run(*words)  # over its own files
    (out / "check.json").write_text("mine")
    with pytest.raises(SystemExit, match=r"check.json exists and is not an output of jobs.check"):
        check.main([*map(str, words), *TINY])
    assert (out / "check.json").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.json"], "FileNotFoundError: nowhere.json does not exist"),
        (["SET", "--frames", "nowhere"], "the frames nowhere do not exist"),
        (["SET", "--format", "cvat"], "is not XML"),
        (["SET", "--reject-limit", "3"], "the reject limit must lie in"),
        (["SET", "--set", "pairs.max_gpa=3"], "Did you mean 'max_gap'"),
    ],
)
def test_a_slip_is_one_line(
    make_videos: Callable[..., Videos], words: list[str], message: str
) -> None:
    path = str(make_videos([3]).write())
    with pytest.raises(SystemExit, match=message):
        check.main([path if word == "SET" else word for word in words])


@pytest.mark.parametrize("words", [["--help"], ["a.json", "--for", "nothing"], ["a", "--fro", "b"]])
def test_options_are_listed_and_checked(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        check.main(words)
    assert stopped.value.code == (0 if words == ["--help"] else 2)
    told = capsys.readouterr()
    for text in ("--for {train,evaluate,both}", "--frames-read {sample,all,none}", "--out"):
        assert (text in told.out) == (words == ["--help"])


def test_annotations_frames_and_output_in_a_bucket(
    make_videos: Callable[..., Videos], run: Any, s3: S3Server, tmp_path: Path
) -> None:
    videos = make_videos([4, 3, 3])
    videos.frame(2, 1).unlink()
    path = videos.frame(3, 1)
    path.write_bytes(path.read_bytes()[:-60])
    _, here, _ = run(videos.write(), "--frames-read", "all", "--out", tmp_path / "out")
    system, _ = paths.native(f"s3://{BUCKET}")
    fs.copy_files(str(videos.folder), f"{BUCKET}/set", destination_filesystem=system)
    bucket = f"s3://{BUCKET}"
    words = (f"{bucket}/set/instances.json", "--frames-read", "all", "--out", f"{bucket}/check")
    status, there, _ = run(*words)
    assert status == 1
    assert {**there, "page": "", "report": ""} == {**here, "page": "", "report": ""}
    assert there["page"] == f"{bucket}/check/check.html"
    content = json.loads((paths.at(f"{bucket}/check") / "check.json").read_text())
    missing = next(f for f in content["findings"] if f["kind"].startswith("files of frames"))
    assert missing["places"] == [f"{bucket}/set/JPEGImages/v2/001.jpg"]
    # Annotations here, frames there.
    words = (videos.folder / "instances.json", "--frames", f"{bucket}/set/JPEGImages")
    assert run(*words)[1]["found"] == there["found"]
