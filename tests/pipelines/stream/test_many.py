"""Several sources: what a command line stands for, where files go, and what one failure costs."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from idol.images.live import SourceError
from pipelines.stream import many, places
from pipelines.stream.following import StreamConfig
from pipelines.stream.many import Following, Outcome, Plan
from tests.pipelines.stream.drawn import images


def video(path: Path, length: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (64, 48))
    for t in range(length):
        writer.write(np.full((48, 64, 3), 20 * t, np.uint8))
    writer.release()
    return path


def test_folders_and_patterns_stand_for_the_videos_in_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("v/2.mp4", "v/10.MP4", "v/notes.txt", "w/a.avi"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("")
    images(Path("frames/a"))
    images(Path("frames/b"))
    assert many.expand(["v"]) == ["v/2.mp4", "v/10.MP4"]
    assert many.expand(["frames"]) == ["frames/a", "frames/b"]
    assert many.expand(["frames/a"]) == ["frames/a"]
    assert many.expand(["*/*.mp4", "w", "v/2.mp4"]) == ["v/2.mp4", "w/a.avi"]
    assert many.expand(["camera:0", "rtsp://x/y"]) == ["camera:0", "rtsp://x/y"]


def test_files_of_a_folder_that_look_like_videos_and_are_passed_over_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.mts", "b.TS", "c.3gp", "d.wmv", "e.movie", "f.txt"):
        (tmp_path / name).write_text("")
    (tmp_path / "g.movie").mkdir()
    known = [str(tmp_path / name) for name in ("a.mts", "b.TS", "c.3gp", "d.wmv")]
    assert many.expand([str(tmp_path)]) == known
    (told,) = caplog.messages
    assert "passed over" in told
    assert told.endswith(": e.movie. Name a file to try it.")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "name of a source is empty, as of a shell variable .* Give a video file"),
        ("absent.mp4", "does not exist"),
        ("absent/*.mp4", "nothing fits the pattern"),
        ("mixed", "holds videos and images"),
    ],
)
def test_what_stands_for_nothing_or_for_two_things_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    images(Path("mixed"))
    Path("mixed/a.mp4").write_text("")
    with pytest.raises(SourceError, match=message):
        many.expand([name])


def test_every_source_has_a_folder_of_its_own() -> None:
    sources = ["a/x.mp4", "b/X.mp4", "clip.v2", "camera:0", "rtsp://user:word@host:1/live/cam 1"]
    made = [str(plan.out) for plan in many.plans(sources, Path("o"))]
    assert made == ["o/x", "o/X-2", "o/clip.v2", "o/camera-0", "o/cam-1"]
    assert many.plans(["a/x.mp4"], Path("o")) == [Plan(source="a/x.mp4", out=Path("o"))]


def plans(at: Path) -> list[Plan]:
    """Two clips and between them a file that is no video."""
    (at / "broken.mp4").write_text("no video")
    sources = [str(images(at / "one", 2)), str(at / "broken.mp4"), str(video(at / "two.mp4"))]
    return many.plans(sources, at / "out")


def check(outcomes: list[Outcome], at: Path) -> None:
    """Both clips are followed, and of the other file only an error is there."""
    by_name = {outcome.plan.out.name: outcome for outcome in outcomes}
    assert {name: outcome.summary.frames for name, outcome in by_name.items()} == {
        "one": 2, "broken": 0, "two": 3,
    }  # fmt: skip
    assert "cannot be opened as a video" in by_name["broken"].error
    assert {path.name for path in (at / "out").iterdir()} == {"one", "two"}
    for name in ("one", "two"):
        assert by_name[name].error == ""
        assert {path.name for path in (at / "out" / name).iterdir()} == set(places.ALL)


def test_a_source_with_a_fault_does_not_stop_the_others(tmp_path: Path) -> None:
    how = Following(weights="shipped", made=StreamConfig())
    check(list(many.follow_all(plans(tmp_path), how)), tmp_path)


@pytest.mark.ray
def test_sources_are_spread_over_actors_with_the_same_bytes(
    ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = plans(tmp_path)
    monkeypatch.chdir(tmp_path)  # relative paths hold there too
    relative = [Plan(source=p.source, out=p.out.relative_to(tmp_path)) for p in given]
    how = Following(weights="shipped", device="cpu", made=StreamConfig())
    check(list(many.follow_all(relative, how, workers=2)), tmp_path)
    here = [Plan(source=p.source, out=tmp_path / "here" / p.out.name) for p in given]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as an actor has: the last bit of a score can depend on it
    try:
        list(many.follow_all(here, how))
    finally:
        torch.set_num_threads(threads)
    for name in ("one", "two"):
        spread, alone = tmp_path / "out" / name, tmp_path / "here" / name
        for file in (places.ROWS, places.RESULTS, places.MOTS):
            assert (spread / file).read_bytes() == (alone / file).read_bytes()


@pytest.mark.parametrize(("variable", "threads"), [(None, 1), ("2", 2)])
def test_a_small_network_gets_one_thread_unless_told(
    variable: str | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert many.load(Following(weights="shipped", device="cpu")) is not None
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
