"""jobs.track of several sources, or of none: what is said, and the exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs import track
from tests.pipelines.stream.drawn import images


def test_where_one_of_several_fails_the_others_are_written_and_the_status_is_1(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    sources = [str(images(tmp_path / name, 2)) for name in ("one", "two")]
    (tmp_path / "broken.mp4").write_text("no video")
    out = tmp_path / "out"
    words = ["--weights", "shipped", "--out", str(out), "--no-video"]
    with pytest.raises(SystemExit) as stopped:
        track.main([sources[0], str(tmp_path / "broken.mp4"), sources[1], *words])
    assert stopped.value.code == 1
    said = capsys.readouterr()
    line = json.loads(said.out.splitlines()[-1])
    assert (line["sources"], line["failures"], line["frames"]) == (3, 1, 4)
    assert line["failed"] == [str(tmp_path / "broken.mp4")]
    assert "broken.mp4: SourceError: " in said.err
    assert {path.name for path in out.iterdir()} == {"one", "two"}
    track.main([*sources, *words, "--overwrite"])  # status 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["failures"] == 0


@pytest.mark.parametrize("before", [[], ["--classes", "star", "video.mp4"]])
def test_no_source_is_a_usage_error_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, before: list[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        track.main([*before, "--weights", "absent", "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("there is no SOURCE. Give a video file")
    assert not (tmp_path / "out").exists()


def test_an_empty_source_is_not_the_current_folder(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="the name of a source is empty"):
        track.main(["", "--weights", "shipped", "--out", str(tmp_path / "out")])
