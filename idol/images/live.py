"""The frames of a video file, an image folder, a camera or a stream, without a data set."""

from __future__ import annotations

import itertools
import math
import mimetypes
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from idol.addresses import is_remote, shown
from idol.images import image_file
from idol.images.video_file import MATCHING_S, DamagedVideo, VideoFile, upright

if TYPE_CHECKING:
    from av.container import InputContainer

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
VIDEO_SUFFIXES = frozenset({
    ".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".f4v", ".mkv", ".mk3d", ".webm", ".avi",
    ".divx", ".wmv", ".asf", ".flv", ".ogv", ".ogm", ".ts", ".m2t", ".mts", ".m2ts", ".mpg",
    ".mpeg", ".mpe", ".m1v", ".m2v", ".vob", ".mxf", ".dv", ".wtv", ".nut", ".ivf", ".y4m",
    ".h264", ".264", ".h265", ".265", ".hevc",
})  # fmt: skip
"""Of files in a folder that are videos: of the formats that VideoFile opens."""

CAMERA = "camera:"
"""Before the number of a camera, as in camera:0."""
STREAMS = ("rtsp", "rtsps", "rtmp", "http", "https")
"""Schemes of addresses that are read as they come."""

_PROTOCOLS = {
    "rtsp": "rtsp,rtp,srtp,udp,tcp",
    "rtsps": "rtsps,rtsp,rtp,srtp,udp,tcp,tls",
    "rtmp": "rtmp,tcp",
    "http": "http,https,tcp,tls,crypto",
    "https": "https,tcp,tls,crypto",
}
"""What a stream may open in turn: a playlist from elsewhere must not name files of this machine."""
_SILENCE_S = 15.0  # after so long without a frame a stream is lost
TODO = "Give a video file, a folder of images, camera:0, or an rtsp:// or http(s):// address."
"""What a message about a source that is none says to do."""
_REPAIR = "Is the file complete? ffmpeg -i may repair it."
_INDEX_BEHIND = (
    " A file whose index stands at its end needs a server that gives parts of files; download it, "
    "or make one that begins with its index: ffmpeg -i FILE -c copy -movflags +faststart NEW.mp4."
)

Image = NDArray[np.uint8]

FOLDER_RATE = 10.0
"""Frames a second of an image folder, and of a video that states no rate."""


class SourceError(ValueError):
    """A source that is not there, is none, or does not go on: SourceError(message)."""


class Frame(NamedTuple):
    """A frame of a source.

    number: in the source, from 0; every n-th is given where that was asked for
    time:   seconds since its first frame: as a video file or live stream says, whose frames may
            follow each other at any pace; where nothing says so, number / frames a second
    image:  (H, W, 3) uint8 RGB
    """

    number: int
    time: float
    image: Image


@dataclass(frozen=True, slots=True)
class Source:
    """Where frames come from; iterate over it. A video or folder can be iterated over again; a
    camera or stream goes on.

    name:   the path, "camera:0", or the address of a stream
    every:  only each n-th frame is given
    frames: how many it will give, as far as it says, else a guess: a part of a video whose frames
            come at no constant rate has others; None: a camera or a stream
    rate:   frames a second, of those given; None where nothing says so
    start:  seconds before the first frame given
    end:    seconds from which no frame is given; infinite: to the last
    images: of a folder, in order
    endless: it has no last frame of its own: a camera, or a stream that is not a file being played
    Raises: SourceError: while iterating, at a frame that cannot be decoded, a video that ends
            before it says, a camera or stream that stops.
    """

    name: str
    every: int
    frames: int | None
    rate: float | None
    start: float = 0.0
    end: float = math.inf
    images: tuple[Path, ...] = ()
    endless: bool = False

    def __iter__(self) -> Iterator[Frame]:
        if self.images:
            return self._of_folder()
        if self.name.startswith(CAMERA):
            return self._chosen(_camera_frames(self.name))
        return self._chosen(_stream_frames(self.name)) if is_stream(self.name) else self._of_video()

    def _of_folder(self) -> Iterator[Frame]:
        rate = FOLDER_RATE
        for number in itertools.count(_first(self.start, rate), self.every):
            if number >= len(self.images) or number / rate >= self.end:
                return
            yield Frame(number, number / rate, read_image(self.images[number]))

    def _of_video(self) -> Iterator[Frame]:
        with _opened(self.name) as video:
            rate = video.rate or FOLDER_RATE
            due = 0.0  # when the next frame is, where none was left out
            try:
                first = video.first(self.start)
                for number in itertools.count(first, self.every):
                    image = video.read(number)
                    if image is None:
                        self._check_end(number, first, video)
                        return
                    time = number / rate if video.time is None else video.time
                    if time >= self.end:
                        return
                    yield Frame(number, time, image)
                    due = time + self.every / rate
            except DamagedVideo as error:
                if due < self.end - MATCHING_S:
                    raise SourceError(f"{self.name}: {error}. {_REPAIR}") from error

    def _check_end(self, number: int, first: int, video: VideoFile) -> None:
        """Raise SourceError where a video ended at a frame before which it should not.

        first: number of the frame to begin with
        """
        if number == first and self.start > 0:
            raise SourceError(f"{self.name} has no frame at {self.start:g} s: it ends before.")
        missing = video.missing()
        if number == 0 or missing:
            though = f", though the file states {missing}" if missing else ""
            raise SourceError(
                f"{self.name}: the video ends before frame {number}{though}. {_REPAIR}"
            )

    def _chosen(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        for frame in frames:
            if frame.time >= self.end:
                return
            if frame.time >= self.start and frame.number % self.every == 0:
                yield frame


def open_source(
    name: str, every: int = 1, *, start: float = 0.0, end: float | None = None
) -> Source:
    """Look at a source and say what it is.

    name:  a video file, a folder of images (taken in natural order: 2.jpg before 10.jpg), a
           single image, camera:N, or an rtsp://, rtmp:// or http(s):// address
    every: give each n-th frame only
    start, end: seconds: frames from start on, and before end; None: all
    Raises:
        SourceError: it is missing, empty, or none of these.
        ValueError: every is below 1, or start is not before end.
    """
    if every < 1:
        raise ValueError(f"every must be 1 or more, got {every}")
    check_name(name)
    stop = math.inf if end is None else end
    if not 0 <= start < stop:
        raise ValueError(f"start must be 0 s or later, and before end, got {start:g} and {stop:g}")

    def source(
        frames: int | None, rate: float, images: tuple[Path, ...] = (), endless: bool = False
    ) -> Source:
        known = rate if 0 < rate <= 1000 else 0.0  # or the time base of one that knows no rate
        if frames is not None:
            last = min(frames, stop * (known or FOLDER_RATE))
            frames = max(0, -(-(math.ceil(last) - _first(start, known or FOLDER_RATE)) // every))
        rate_given = known / every or None
        return Source(name, every, frames, rate_given, start, stop, images, endless)

    if name.startswith(CAMERA):
        with _camera(name) as camera:
            return source(None, camera.get(cv2.CAP_PROP_FPS), endless=True)
    if is_stream(name):
        with _stream(name) as container:
            rate = float(container.streams.video[0].average_rate or 0)
            return source(None, rate, endless=_endless(name, container))
    if is_remote(name):
        raise SourceError(f"{shown(name)} cannot be read frame by frame. {TODO}")
    path = Path(name)
    if path.is_dir():
        images = images_of(path)
        return source(len(images), 0.0, images)
    if not path.exists():
        raise SourceError(f"{name} does not exist. {TODO}")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return source(1, 0.0, (path,))
    with _opened(name) as video:
        return source(len(video) or None, video.rate)


def is_stream(name: str) -> bool:
    """Whether a name is the address of a stream."""
    return is_remote(name) and name.partition("://")[0].lower() in STREAMS


def check_name(name: str) -> None:
    """Raise SourceError where a source has no name."""
    if not name:
        raise SourceError(
            f"the name of a source is empty, as of a shell variable that is not set. {TODO}"
        )


def passed_over(entries: Iterable[Path]) -> list[Path]:
    """Those of a folder's files that are no source by their suffix, though one of a video's."""
    known = VIDEO_SUFFIXES | IMAGE_SUFFIXES
    others = (path for path in entries if path.suffix.lower() not in known)
    kinds = ((path, mimetypes.guess_type(path.name)[0] or "") for path in others)
    return sorted(path for path, kind in kinds if kind.startswith("video/") and path.is_file())


def read_image(path: Path) -> Image:
    """An image file as (H, W, 3) uint8 RGB. Raises: SourceError: it cannot be read."""
    try:
        return image_file.decode(path.read_bytes())
    except OSError as error:
        raise SourceError(f"{path}: the frame cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise SourceError(f"{path}: {error}") from error


def images_of(folder: Path) -> tuple[Path, ...]:
    """The images of a folder in natural order. Raises: SourceError: there is none to read."""
    try:
        entries = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise SourceError(f"{folder} cannot be read ({error.strerror}).") from error
    images = [path for path in entries if path.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        known = ", ".join(sorted(IMAGE_SUFFIXES))
        there = f"holds {len(entries)} other entries" if entries else "is empty"
        raise SourceError(
            f"{folder} {there}: a folder must hold images ({known}), all of one video."
        )
    return tuple(sorted(images, key=lambda path: natural(path.name)))


def natural(name: str) -> tuple[list[int | str], str]:
    """A key: frame2 before frame10; names that differ in zeros only keep a fixed order."""
    parts = re.split(r"([0-9]+)", name.lower())  # text and digits in turn, text first
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def _first(start: float, rate: float) -> int:
    """The number of the first frame at or after so many seconds."""
    return math.ceil(start * rate - 1e-6)


@contextmanager
def _opened(name: str) -> Iterator[VideoFile]:
    try:
        video = VideoFile(name)
    except ValueError as error:
        todo = _REPAIR if Path(name).suffix.lower() in VIDEO_SUFFIXES else TODO
        raise SourceError(f"{name}: {error}. {todo}") from error
    try:
        yield video
    finally:
        video.close()


@contextmanager
def _camera(name: str) -> Iterator[cv2.VideoCapture]:
    """An open camera. Raises ValueError, SourceError: it is not camera:N, or cannot be opened."""
    number = name.removeprefix(CAMERA)
    if not (number.isascii() and number.isdigit()):
        raise ValueError(f"a camera is named camera:0, camera:1, ..., got {name!r}")
    capture = cv2.VideoCapture(int(number))
    if not capture.isOpened():
        raise SourceError(
            f"{name} cannot be opened. Is it connected, and not in use by another program? "
            "On Linux cameras are /dev/video0, /dev/video1, ..."
        )
    try:
        yield capture
    finally:
        capture.release()


def _camera_frames(name: str) -> Iterator[Frame]:
    with _camera(name) as camera:
        rate = camera.get(cv2.CAP_PROP_FPS) or FOLDER_RATE
        for number in itertools.count():
            done, image = camera.read()
            if not done or image is None:
                raise SourceError(f"{name} gave no more frames after {number}.")
            rgb = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)
            yield Frame(number, number / rate, rgb)


@contextmanager
def _stream(name: str) -> Iterator[InputContainer]:
    """An open stream that has a video. Raises: SourceError: it cannot be opened."""
    import av

    scheme = name.partition("://")[0].lower()
    # By TCP: over UDP a lost packet is a torn picture, and firewalls drop it.
    options = {"rtsp_transport": "tcp", "protocol_whitelist": _PROTOCOLS[scheme]}
    try:
        container = av.open(name, options=options, timeout=_SILENCE_S)
    except (av.FFmpegError, OSError) as error:
        reason = error.strerror or type(error).__name__
        raise SourceError(f"{shown(name)} cannot be opened as a video ({reason}).") from error
    with container:
        if not container.streams.video:
            raise SourceError(f"{shown(name)} has no video that can be decoded.")
        yield container


def _endless(name: str, container: InputContainer) -> bool:
    """Whether a stream is a camera's and not a file that is played: it does not say how long it is.

    Of what web servers give, pictures after pictures (cameras) and playlists that grow are such.
    """
    kinds = ("mpjpeg", "hls")
    web = name.lower().startswith("http")
    return not container.duration and (not web or container.format.name in kinds)


def _stream_frames(name: str) -> Iterator[Frame]:
    import av

    with _stream(name) as container:
        frames = container.decode(container.streams.video[0])
        started: float | None = None
        for number in itertools.count():
            try:
                frame = next(frames, None)
            except (av.FFmpegError, OSError) as error:
                todo = _INDEX_BEHIND if number == 0 and name.lower().startswith("http") else ""
                raise SourceError(
                    f"{shown(name)} is lost after {number} frames ({error.strerror}).{todo}"
                ) from error
            if frame is None:
                # A playlist says where it ends; another source without an end was closed.
                closed = _endless(name, container) and container.format.name != "hls"
                if number == 0 or closed:
                    raise SourceError(
                        f"{shown(name)} ended after {number} frames: its server closed it."
                    )
                return
            time = number / FOLDER_RATE if frame.time is None else frame.time
            started = time if started is None else started
            image = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
            yield Frame(number, max(0.0, time - started), upright(image, frame))
