"""Sources: which frames of a file, folder or stream are given, with their numbers and times."""

from __future__ import annotations

import contextlib
import http.server
import threading
import types
from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from idol.images import live
from idol.images.live import SourceError, open_source

LENGTH, RATE = 30, 10


def film(path: Path, length: int = LENGTH) -> Path:
    """A film whose frame n has the grey value 8 n."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "1", "g": "10"})
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for n in range(length):
            image = np.full((32, 48, 3), 8 * (n % 31), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return film(tmp_path / "film.mp4")


def numbers(source: live.Source) -> list[int]:
    """The numbers of a source's frames, which are those that the pictures show."""
    found = []
    for frame in source:
        assert round(frame.image.mean() / 8) == frame.number
        assert frame.time == pytest.approx(frame.number / RATE, abs=0.02)
        found.append(frame.number)
    return found


@pytest.mark.parametrize(
    ("every", "start", "end", "expected"),
    [
        (1, 0.0, None, range(30)),
        (4, 0.0, None, range(0, 30, 4)),
        (1, 1.0, None, range(10, 30)),
        (3, 0.55, 2.0, range(6, 20, 3)),
        (1, 2.9, 99.0, range(29, 30)),
    ],
)
def test_a_file_gives_the_frames_that_are_asked_for(
    video: Path, every: int, start: float, end: float | None, expected: range
) -> None:
    source = open_source(str(video), every, start=start, end=end)
    assert numbers(source) == list(expected) == numbers(source)
    assert source.frames == len(expected)
    assert source.rate == RATE / every
    assert not source.endless


def test_a_start_behind_the_end_of_a_file_is_told(video: Path) -> None:
    with pytest.raises(SourceError, match="has no frame at 3 s"):
        list(open_source(str(video), start=3.0))


@pytest.mark.parametrize(("start", "end"), [(-1.0, None), (2.0, 2.0)])
def test_a_span_without_frames_is_refused(video: Path, start: float, end: float | None) -> None:
    with pytest.raises(ValueError, match="start must be 0 s or later"):
        open_source(str(video), start=start, end=end)


def test_an_empty_name_is_not_the_current_folder() -> None:
    with pytest.raises(SourceError, match="the name of a source is empty, as of a shell variable"):
        open_source("")


@pytest.fixture
def server(video: Path) -> Iterator[str]:
    """The address of a web server that has film.mp4, a playlist and a half film."""
    data = film(video.with_suffix(".ts"), 120).read_bytes()
    video.with_name("half.ts").write_bytes(data[: len(data) // 2])
    secret = film(video.with_name("secret.mp4"))
    list_ = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{secret}\n#EXT-X-ENDLIST\n"
    video.with_name("list.m3u8").write_text(list_)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(video.parent))  # type: ignore[arg-type]

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_an_address_gives_the_frames_as_they_come(server: str) -> None:
    source = open_source(f"{server}/film.mp4", 2, start=0.5, end=2.0)
    assert not source.endless  # a file that a server gives: it can wait
    assert source.frames is None
    assert numbers(source) == list(range(6, 20, 2))


def test_a_file_that_a_server_cannot_give_in_parts_is_told_what_to_do(
    server: str, video: Path
) -> None:
    path = video.with_name("noise.mp4")  # its index stands at its end, beyond what is read ahead
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), RATE, (160, 128))
    rng = np.random.default_rng(0)
    for _ in range(60):
        writer.write(rng.integers(0, 256, (128, 160, 3), np.uint8))
    writer.release()
    with pytest.raises(SourceError, match=r"lost after 0 frames .* \+faststart"):
        list(open_source(f"{server}/noise.mp4"))


def test_a_stream_of_a_server_that_goes_away_ends_with_what_came(server: str) -> None:
    found = list(open_source(f"{server}/half.ts"))
    assert 0 < len(found) < 120


@pytest.mark.parametrize("name", ["absent.mp4", "list.m3u8"])
def test_what_is_no_stream_or_leads_to_files_of_this_machine_is_refused(
    server: str, name: str
) -> None:
    with pytest.raises(
        SourceError, match=r"cannot be opened as a video|has no video|after 0 frames"
    ):
        list(open_source(f"{server}/{name}"))


@pytest.mark.parametrize(
    ("name", "duration", "form", "lost"),
    [
        ("rtsp://h/cam", None, "rtsp", True),
        ("rtsp://h/film", 3_000_000, "rtsp", False),
        ("http://h/film", None, "mpegts", False),
        ("http://h/cam", None, "mpjpeg", True),
        ("http://h/live.m3u8", None, "hls", False),
    ],
)
def test_a_camera_whose_server_closes_is_lost_and_a_film_that_ends_is_not(
    video: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    duration: float | None,
    form: str,
    lost: bool,
) -> None:
    class Served:
        def __init__(self) -> None:
            self.file = av.open(str(video))
            self.streams, self.decode, self.duration = self.file.streams, self.file.decode, duration
            self.format = types.SimpleNamespace(name=form)

    monkeypatch.setattr(live, "_stream", lambda name: contextlib.nullcontext(Served()))
    found: list[int] = []
    closed = pytest.raises(SourceError, match=r"cam ended after 30 frames: its server closed")
    with closed if lost else contextlib.nullcontext():
        source = open_source(name)
        assert source.endless == (lost or form == "hls")
        for frame in source:
            found.append(frame.number)
    assert found == list(range(LENGTH))


def test_an_address_shows_no_password_in_its_error() -> None:
    with pytest.raises(SourceError) as caught:
        open_source("rtsp://user:word@127.0.0.1:9/cam")
    assert "rtsp://127.0.0.1:9/cam cannot be opened" in str(caught.value)
    assert "word" not in str(caught.value)


def test_object_storage_is_no_stream() -> None:
    with pytest.raises(SourceError, match="cannot be read frame by frame"):
        open_source("s3://bucket/a.mp4")


def test_a_film_at_an_address_is_turned_as_its_file_says(server: str, video: Path) -> None:
    data = bytearray(video.read_bytes())
    one, none = (1 << 16).to_bytes(4, "big"), bytes(4)
    place = data.index(one + 3 * none + one, data.index(b"tkhd"))
    data[place : place + 20] = none + one + none + one + none  # x and y exchanged
    video.write_bytes(data)
    for name in (str(video), f"{server}/film.mp4"):
        assert next(iter(open_source(name))).image.shape == (48, 32, 3)
