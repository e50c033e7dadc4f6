"""jobs.track: a video in, a film and results out, and one clear line for whatever is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from idol.images import live
from idol.images.live import SourceError
from idol.images.painter import Painter
from idol.segmenter import OnlineSegmenter
from idol.weights import checkpoint
from idol.ytvis import results
from jobs import track
from pipelines import configuration, stream
from pipelines.report import film
from pipelines.sources import frames
from pipelines.stream import following, places
from tests.foreground import foreground

ROOT = Path(__file__).resolve().parents[2]
SIZE, LENGTH = (96, 144), 6


def pictures(length: int = LENGTH, size: tuple[int, int] = SIZE) -> list[NDArray[np.uint8]]:
    """Two bright discs that move over a dark texture, RGB."""
    rng = np.random.default_rng(0)
    ground = rng.integers(20, 60, (*size, 3))
    y, x = np.mgrid[: size[0], : size[1]]
    found = []
    for t in range(length):
        frame = ground.copy()
        frame[(y - 30) ** 2 + (x - 25 - 5 * t) ** 2 < 200] = (230, 60, 40)
        frame[(y - 65) ** 2 + (x - 120 + 5 * t) ** 2 < 260] = (40, 90, 230)
        found.append(frame.astype(np.uint8))
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images named without leading zeros, so that text order is not theirs."""
    path = tmp_path / "images"
    path.mkdir()
    for t, image in enumerate(pictures(12), start=1):
        cv2.imwrite(str(path / f"{t}.png"), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    (path / "notes.txt").write_text("not an image")
    return path


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "video.mp4"
    height, width = SIZE
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 12.0, (width, height))
    for image in pictures():
        writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    writer.release()
    return path


def run(
    capsys: pytest.CaptureFixture[str], source: Path | str, out: Path, *options: str
) -> dict[str, Any]:
    track.main([str(source), "--weights", "shipped", "--out", str(out), *options])
    line: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return line


def test_a_video_becomes_a_film_of_the_same_length_and_rate(
    capsys: pytest.CaptureFixture[str], video: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "out"
    line = run(capsys, video, out)
    assert line["frames"] == LENGTH
    assert line["frames_per_second"] > 0
    assert sorted(path.name for path in out.iterdir()) == sorted(places.ALL)
    assert sorted(line["files"]) == sorted(set(places.ALL) - {places.MOTS_LABELS})
    with frames.VideoReader(line["video"], video_id=0) as shown:
        assert len(list(shown)) == LENGTH
        assert shown.rate == pytest.approx(12.0)
    entries = results.read(line["results"])
    assert entries, "the shipped weights find bright discs"
    assert {len(entry["segmentations"]) for entry in entries} == {LENGTH}
    # Both files are as readable as any other.
    assert (out / stream.FILM).stat().st_mode == (out / stream.RESULTS).stat().st_mode


def test_results_are_those_of_the_segmenter(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    line = run(capsys, folder, tmp_path / "out", "--no-video", "--every", "2", "--max-frames", "5")
    assert line["frames"] == 5
    assert line["video"] is None
    assert not (tmp_path / "out" / stream.FILM).exists()
    segmenter = OnlineSegmenter.load("shipped")
    for image in pictures(12)[:10:2]:  # natural order: 1, 3, 5, 7, 9, not 1, 11, 3, ...
        segmenter(image)
    results.write(tmp_path / "expected.json", segmenter.finish_ytvis())
    expected = (tmp_path / "expected.json").read_bytes()
    assert Path(line["results"]).read_bytes() == expected
    assert line["tracks"] == len(segmenter.finish())


def test_a_film_shows_every_identity_in_its_colour(folder: Path) -> None:
    segmenter = OnlineSegmenter.load("shipped")
    image = pictures()[0]
    instances = segmenter(image)
    assert len(instances) > 0
    height, width = SIZE
    drawn = following.draw(Painter(), instances, image)
    plain = following.draw(Painter(), instances.chosen(np.array([], np.int64)), image)
    assert plain.shape == drawn.shape
    assert drawn.shape[1] == 5 * width  # enlarged to 480
    changed = (drawn != plain).any(axis=-1)[: 5 * height]
    masks = instances.masks.any(axis=0).repeat(5, axis=0).repeat(5, axis=1)
    assert changed[masks].mean() > 0.9


def test_options_reach_the_tracker_and_what_is_drawn(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    nothing = ["--set", "tracker.first_threshold=1", "--set", "tracker.new_threshold=1"]
    line = run(capsys, folder, tmp_path / "a", "--tracker", "released", *nothing, "--fps", "7.5")
    assert line["tracks"] == 0
    assert json.loads(Path(line["results"]).read_text()) == []
    with frames.VideoReader(line["video"], video_id=0) as shown:
        assert shown.rate == pytest.approx(7.5)


def test_a_film_in_which_nothing_is_drawn_is_explained(
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    video: Path,
    tmp_path: Path,
) -> None:
    run(capsys, video, tmp_path / "seen")
    assert not caplog.records
    line = run(capsys, video, tmp_path / "unseen", "--min-score", "1.0")
    assert line["tracks"]
    (record,) = caplog.records
    assert "below --min-score 1 or of none" in record.getMessage()


def test_following_a_video_needs_no_ray(video: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from jobs import track; "
        f"track.main([{str(video)!r}, '--weights', 'shipped', '--out', {str(tmp_path / 'o')!r}, "
        "'--max-frames', '1']); "
        "assert not [name for name in sys.modules if name.split('.')[0] == 'ray'], 'ray'"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["frames"] == 1


# --- what goes wrong on the way ------------------------------------------------------------------


def test_a_broken_frame_ends_the_run_and_loses_nothing(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    (folder / "4.png").write_bytes(b"\x89PNG and no more")
    with pytest.raises(SystemExit) as stopped:
        run(capsys, folder, tmp_path / "out")
    message = str(stopped.value)
    assert "4.png" in message
    assert "\n" not in message
    assert "The 3 frames before are in" in message
    entries = results.read(tmp_path / "out" / stream.RESULTS)
    assert {len(entry["segmentations"]) for entry in entries} == {3}
    with frames.VideoReader(str(tmp_path / "out" / stream.FILM), video_id=0) as shown:
        assert len(list(shown)) == 3


def test_images_of_another_size_are_told_with_their_sizes(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    cv2.imwrite(str(folder / "3.png"), np.zeros((50, 60, 3), np.uint8))
    with pytest.raises(SystemExit, match=r"e 2 \(3.png\) is \(50, 60\).*\. Give.*2 frames before"):
        run(capsys, folder, tmp_path / "out")


def test_a_video_cut_short_is_told_from_one_that_ended(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "long.avi"
    height, width = SIZE
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (width, height))
    for image in pictures(40):
        writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    writer.release()
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 4])
    with pytest.raises(SystemExit, match=r"frame \d+ is damaged.*ffmpeg -i may"):
        run(capsys, path, tmp_path / "out", "--no-video")
    assert results.read(tmp_path / "out" / stream.RESULTS)


def test_an_mp4_that_shows_a_part_of_what_it_stores_is_whole(shared: Path) -> None:
    opened = live.open_source(str(shared / "data/videos/snakeboard_trackformer.mp4"))
    assert opened.frames == 188  # as stated; its edit list shows 109 of them
    assert sum(1 for _ in opened) == 109


def test_an_mp4_cut_short_is_told(tmp_path: Path, shared: Path) -> None:
    # The index stands in front, as in files made for the web, so that the beginning can be played.
    data = (shared / "data/videos/juggle_sam2.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    path = tmp_path / "cut.mp4"
    path.write_bytes(data[: len(data) // 3])
    with pytest.raises(SourceError, match=r"frame 42 is damaged .* Is the file complete\?"):
        sum(1 for _ in live.open_source(str(path), every=10))


@pytest.mark.parametrize("size", [(3000, 1), (1, 3000), (1, 1)])
def test_a_video_of_one_row_or_column_takes_no_more_memory_than_others(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    image = np.zeros((*size, 3), np.uint8)
    found = OnlineSegmenter.load("shipped")(image)
    shown = following.draw(Painter(), found.chosen(found.scores > 1), image)
    assert max(shown.shape) <= max(3000, 1920) + 100  # with the legend
    with film.Film(tmp_path / "a.mp4", 10) as written:
        for _ in range(3):
            written.add(shown)
        written.finish()
    with frames.VideoReader(str(tmp_path / "a.mp4"), video_id=0) as reader:
        found = [image.shape[:2] for image in reader]
    assert found == [tuple(side + side % 2 for side in shown.shape[:2])] * 3


def test_what_cannot_be_written_in_the_end_leaves_no_half_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results, "write", full)
    with pytest.raises(SystemExit, match="No space left on device"):
        track.main([str(folder), "--weights", "shipped", "--out", str(tmp_path / "out")])
    # What was whole before stays, and rows are written line by line.
    assert {path.name for path in (tmp_path / "out").iterdir()} == {places.ROWS, places.TABLE}


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_what_stops_it_writes_what_is_finished_and_exits_130(
    folder: Path, tmp_path: Path, stop: signal.Signals
) -> None:
    for t in range(13, 400):
        (folder / f"{t}.png").symlink_to(folder / f"{1 + t % 12}.png")
    out = tmp_path / "out"
    process = subprocess.Popen(
        foreground("-m", "jobs.track", str(folder), "--weights", "shipped", "--out", str(out)),
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(out.glob(".annotated.*")) and process.poll() is None:
        time.sleep(0.05)  # pytest-timeout ends it where nothing comes
    time.sleep(0.3)
    process.send_signal(stop)
    stdout, stderr = process.communicate()
    assert process.returncode == 130, stderr
    assert "Interrupted. The " in stderr
    assert "Traceback" not in stderr
    assert stdout == ""
    assert sorted(path.name for path in out.iterdir()) == sorted(places.ALL)
    (length,) = {len(e["segmentations"]) for e in results.read(out / stream.RESULTS)}
    assert 0 < length < 399


# --- what is wrong from the start ----------------------------------------------------------------


def _empty(at: Path) -> Path:
    (at / "empty").mkdir()
    return at / "empty"


def _without_images(at: Path) -> Path:
    folder = _empty(at)
    (folder / "a.txt").write_text("a")
    return folder


def _no_video(at: Path) -> Path:
    path = at / "text.mp4"
    path.write_text("this is no video")
    return path


def _no_image(at: Path) -> Path:
    path = at / "text.jpg"
    path.write_text("this is no image")
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda at: at / "nowhere.mp4", "nowhere.mp4 does not exist. Give a video file"),
        (_empty, "empty is empty: give a video, an image or a folder"),
        (_without_images, "empty holds 1 entries, of which none is a video"),
        (_no_video, "text.mp4: the file cannot be opened as a video. Is the file complete?"),
        (_no_image, "text.jpg: 16 bytes are not an image"),
        (lambda at: "camera:91", "camera:91 cannot be opened"),
        (lambda at: "camera:front", "a camera is named camera:0"),
    ],
)
def test_a_source_that_is_none_is_told_in_one_line(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    make: Callable[[Path], Path | str],
    message: str,
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(capsys, make(tmp_path), tmp_path / "out")
    assert message in str(stopped.value)
    assert "\n" not in str(stopped.value)
    assert not list((tmp_path / "out").glob("*"))  # so that the next try needs no --overwrite


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--tracker", "relaesed"], "no tracker 'relaesed'"),
        (["--set", "tracker.tua=1"], "Did you mean 'tau'"),
        (["--set", "model.width=8"], "cannot change a trained network"),
        (["--every", "0"], "every must be 1 or more"),
        (["--max-frames", "0"], "max_frames must be 1 or more"),
        (["--fps", "0"], "rate must lie in"),
        (["--min-score", "2"], r"min_score must lie in \[0, 1\]"),
        (["--trail", "-1"], r"trail must lie in \[0, 10000\]"),
        (["--classes", "Star", "sphinx"], r"no class 'sphinx'. They know: star"),
        (["--start", "1:2:3:4"], "a time is 90, 1:30 or"),
        (["--start", "5", "--end", "5"], "before end"),
        (["--workers", "-1"], "--workers must be 0 or more"),
        (["--detections", "x"], "give --weights"),
        (["--device", "toaster"], "--device must be auto, cpu, gpu, cuda or cuda:N"),
    ],
)
def test_a_bad_option_is_told_in_one_line(
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    tmp_path: Path,
    options: list[str],
    message: str,
) -> None:
    with pytest.raises(SystemExit, match=message) as stopped:
        run(capsys, folder, tmp_path / "out", *options)
    assert "\n" not in str(stopped.value)


def test_earlier_output_is_kept_unless_it_may_be_replaced(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(capsys, folder, out, "--max-frames", "2")
    before = (out / stream.RESULTS).read_bytes()
    with pytest.raises(SystemExit, match=r"holds annotated.mp4 and .* already.*--overw"):
        run(capsys, folder, out, "--max-frames", "3")
    with pytest.raises(SystemExit, match="no class 'sphinx'"):
        run(capsys, folder, out, "--classes", "sphinx", "--overwrite")
    assert (out / stream.RESULTS).read_bytes() == before
    assert run(capsys, folder, out, "--max-frames", "3", "--overwrite")["frames"] == 3


def test_an_output_that_cannot_be_written_is_told_before_anything_is_done(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=r"file/out cannot be written \(Not a directory\)"):
        run(capsys, folder, tmp_path / "file" / "out")


def test_a_configuration_of_another_network_is_refused() -> None:
    model = checkpoint.load("shipped")
    other = checkpoint.build("tiny").config
    smaller = configuration.changed(model.config, ["detect.score_floor=0.06"], None)
    assert OnlineSegmenter(model, config=smaller).settings.detect.score_floor == 0.06
    changed = type(other)(model=type(other.model)(num_classes=7))
    with pytest.raises(ValueError, match="another network"):
        OnlineSegmenter(model, config=changed)
