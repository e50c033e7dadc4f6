"""The frames of one video file, image folder or camera, which no data set describes."""

from __future__ import annotations

import itertools
import math
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2

from idol.addresses import is_remote
from pipelines.errors import PipelineError, VideoError
from pipelines.sources import frames
from pipelines.sources.frames import Image

CAMERA = "camera:"
"""Before the number of a camera, as in camera:0."""

_TODO = "Give a video file, a folder of images, or camera:0."
_REPAIR = "Is the file complete? ffmpeg -i may repair it."
_OVERSTATED = 0.02
"""Share of the stated frames, or two, that a container may lack; with fewer it is cut short."""

_MP4_SUFFIXES = frozenset({".mp4", ".m4v", ".mov"})
_MP4_HEADER = 8  # bytes of a box's length and name


@dataclass(frozen=True, slots=True)
class Source:
    """Where frames come from; iterate over it for (H, W, 3) uint8 RGB. A video or folder can be
    iterated over again; a camera goes on.

    name:   the path, or "camera:0"
    every:  only each n-th frame is given
    frames: how many it will give, as far as it says; None: a camera
    rate:   frames a second, of those given; None where nothing says so
    Raises: PipelineError: while iterating, at a frame that cannot be decoded, a video that ends
            before it says, a camera that stops.
    """

    name: str
    every: int
    frames: int | None
    rate: float | None
    _images: tuple[Path, ...] = ()

    def __iter__(self) -> Iterator[Image]:
        if self._images:
            return self._of_folder()
        return self._of_camera() if self.name.startswith(CAMERA) else self._of_video()

    def _of_folder(self) -> Iterator[Image]:
        for path in self._images[:: self.every]:
            try:
                yield frames.read(str(path), video_id=0)
            except VideoError as error:
                raise PipelineError(f"{error.path}: {error.reason}") from error

    def _of_video(self) -> Iterator[Image]:
        with _open_video(self.name) as reader:
            for number in itertools.count(step=self.every):
                try:
                    image = reader.read_or_end(number)
                except VideoError as error:
                    raise PipelineError(f"{error.path}: {error.reason}. {_REPAIR}") from error
                if image is None:
                    stated = len(reader)
                    if number == 0 or _cut_short(self.name, number, stated):
                        raise PipelineError(
                            f"{self.name}: the video ends before frame {number}, though the file "
                            f"states {stated} frames. {_REPAIR}"
                        )
                    return
                yield image

    def _of_camera(self) -> Iterator[Image]:
        with _camera(self.name) as camera:
            for number in itertools.count():
                image = frames.next_image(camera)
                if image is None:
                    raise PipelineError(f"{self.name} gave no more frames after {number}.")
                if number % self.every == 0:
                    yield image


def open_source(name: str, every: int = 1) -> Source:
    """Look at a source and say what it is.

    name:  a video file, a folder of images (taken in natural order: 2.jpg before 10.jpg), a
           single image, or camera:N
    every: give each n-th frame only
    Raises:
        PipelineError: it is missing, empty, or none of these.
        ValueError: every is below 1.
    """
    if every < 1:
        raise ValueError(f"every must be 1 or more, got {every}")
    if name.startswith(CAMERA):
        with _camera(name) as camera:
            return Source(name, every, None, _rate(camera.get(cv2.CAP_PROP_FPS), every))
    path = Path(name)
    if not is_remote(name) and path.is_dir():
        images = images_of(path)
        return Source(name, every, -(-len(images) // every), None, images)
    if not is_remote(name) and not path.exists():
        raise PipelineError(f"{name} does not exist. {_TODO}")
    if path.suffix.lower() in frames.IMAGE_SUFFIXES:
        return Source(name, every, 1, None, (path,))
    with _open_video(name) as reader:
        stated = -(-len(reader) // every)
        return Source(name, every, stated or None, _rate(reader.rate, every))


def images_of(folder: Path) -> tuple[Path, ...]:
    """The images of a folder in natural order. Raises: PipelineError: there is none to read."""
    try:
        entries = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise PipelineError(f"{folder} cannot be read ({error.strerror}).") from error
    images = [path for path in entries if path.suffix.lower() in frames.IMAGE_SUFFIXES]
    if not images:
        known = ", ".join(sorted(frames.IMAGE_SUFFIXES))
        there = f"holds {len(entries)} other entries" if entries else "is empty"
        raise PipelineError(
            f"{folder} {there}: a folder must hold images ({known}), all of one video."
        )
    return tuple(sorted(images, key=lambda path: natural(path.name)))


def natural(name: str) -> tuple[list[int | str], str]:
    """A key: frame2 before frame10; names that differ in zeros only keep a fixed order."""
    parts = re.split(r"([0-9]+)", name.lower())  # text and digits in turn, text first
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def _open_video(name: str) -> frames.VideoReader:
    try:
        return frames.VideoReader(name, video_id=0)
    except VideoError as error:
        raise PipelineError(f"{name}: {error.reason}. {_TODO}") from error


def _cut_short(name: str, read: int, stated: int) -> bool:
    """Whether a video that ended after so many frames should have gone on."""
    if stated - read <= max(2, math.ceil(_OVERSTATED * stated)):
        return False
    if is_remote(name) or Path(name).suffix.lower() not in _MP4_SUFFIXES:
        return True
    # An mp4 may show a part of the frames that it stores and states: its edit list says so, and
    # players follow it. Cut short it is where the last box reaches beyond the end of the file.
    with open(name, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        place = 0
        while place + _MP4_HEADER <= end:
            file.seek(place)
            length, long = struct.unpack(">I4xQ", file.read(16).ljust(16, b"\0"))
            if length == 1:  # the length follows in 64 bits
                length = long
            if length == 0:  # to the end of the file, however long it is
                return False
            if length < _MP4_HEADER:
                return True
            place += length
    return place != end


def _rate(stated: float, every: int) -> float | None:
    # Absent, 0, or the time base of a container that knows no rate.
    return stated / every if 0 < stated <= 1000 else None


@contextmanager
def _camera(name: str) -> Iterator[cv2.VideoCapture]:
    """An open camera. Raises ValueError, PipelineError: it is not camera:N, or cannot be opened."""
    number = name.removeprefix(CAMERA)
    if not (number.isascii() and number.isdigit()):
        raise ValueError(f"a camera is named camera:0, camera:1, ..., got {name!r}")
    capture = cv2.VideoCapture(int(number))
    if not capture.isOpened():
        raise PipelineError(
            f"{name} cannot be opened. Is it connected, and not in use by another program? "
            "On Linux cameras are /dev/video0, /dev/video1, ..."
        )
    try:
        yield capture
    finally:
        capture.release()
