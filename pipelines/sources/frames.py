"""A frame from a JPEG folder or a video file, local or in object storage.

A frame reference is the path of an image, or "video.mp4#12" for frame 12 (from 0) of a video
file. Paths with a scheme ("s3://bucket/a.jpg") are read through pyarrow.fs.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from pyarrow import fs

from idol.files import write_whole
from pipelines.errors import VideoError

Image = npt.NDArray[np.uint8]
"""(H, W, 3) RGB."""

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"})

_JPEG = b"\xff\xd8\xff"

# Seeking decodes from the last key frame anyway, so a short gap is cheaper to grab through.
_SEEK_BEYOND = 64


def split(reference: str) -> tuple[str, int | None]:
    """A frame reference as (path, frame number); the number is None for an image file."""
    path, _, number = reference.rpartition("#")
    is_video = Path(path).suffix.lower() in VIDEO_SUFFIXES
    if is_video and number.isascii() and number.isdigit():
        return path, int(number)
    return reference, None


def is_remote(path: str) -> bool:
    """Whether a path has a scheme, as in s3://bucket/key."""
    return "://" in path


def is_directory(path: str) -> bool:
    """Whether a local or remote directory exists."""
    if not is_remote(path):
        return os.path.isdir(path)
    filesystem, inner = fs.FileSystem.from_uri(path)
    (info,) = filesystem.get_file_info([inner])
    return bool(info.type == fs.FileType.Directory)


def join(root: str, name: str) -> str:
    """A path below root, local or remote."""
    return f"{root.rstrip('/')}/{name}" if is_remote(root) else os.path.join(root, name)


def read_bytes(path: str) -> bytes:
    """The bytes of a local or remote file. Raises: OSError: it cannot be read."""
    if not is_remote(path):
        return Path(path).read_bytes()
    filesystem, inner = fs.FileSystem.from_uri(path)
    with filesystem.open_input_stream(inner) as stream:
        data: bytes = stream.read()
    return data


def files_in(directory: str) -> dict[str, int]:
    """Names and bytes of the files in a directory, in one listing: faster than to ask for each."""
    if is_remote(directory):
        filesystem, inner = fs.FileSystem.from_uri(directory)
        found = filesystem.get_file_info(fs.FileSelector(inner, allow_not_found=True))
        return {info.base_name: info.size for info in found if info.type == fs.FileType.File}
    try:
        with os.scandir(directory or "/") as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
    except OSError:
        return {}


def decode_image(data: bytes, *, video_id: int, path: str) -> Image:
    """Encoded image bytes as (H, W, 3) uint8 RGB, turned as its EXIF orientation says.

    Raises: VideoError: the bytes are no image, or a JPEG that stops before its end.
    """
    # OpenCV fills what is missing with grey and says nothing, so look for the end marker first.
    if data.startswith(_JPEG) and b"\xff\xd9" not in data[-4096:]:
        raise VideoError(
            video_id, path, f"the JPEG is cut short ({len(data)} bytes, no end marker)"
        )
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    except cv2.error as error:  # an absurd size in a broken header
        raise VideoError(video_id, path, f"the image cannot be decoded ({error.err})") from error
    if image is None:
        raise VideoError(video_id, path, f"{len(data)} bytes are not an image that can be decoded")
    return _rgb(image)


def encode_jpeg(image: Image, quality: int) -> bytes:
    """(H, W, 3) uint8 RGB as JPEG bytes; quality 0..100."""
    parameters = [cv2.IMWRITE_JPEG_QUALITY, quality]
    done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), parameters)
    assert done, "OpenCV encodes every uint8 image"
    return bytes(data.tobytes())


def read(reference: str, *, video_id: int, size: tuple[int, int] | None = None) -> Image:
    """One frame as (H, W, 3) uint8 RGB.

    size:   (height, width) it must have; None: any
    Raises: VideoError: it is missing, broken or of another size.
    """
    (frame,) = read_many([reference], video_id=video_id, size=size)
    return frame


def read_many(
    references: Iterable[str], *, video_id: int, size: tuple[int, int] | None = None
) -> Iterator[Image]:
    """Frames in the given order, one in memory at a time; a video file is opened once and walked
    forwards. Arguments and errors as of `read`."""
    with contextlib.ExitStack() as opened:
        reader: VideoReader | None = None
        for reference in references:
            path, number = split(reference)
            if number is None:
                image = decode_image(_image_bytes(path, video_id), video_id=video_id, path=path)
            else:
                if reader is None or reader.path != path:
                    opened.close()
                    reader = opened.enter_context(VideoReader(path, video_id=video_id))
                image = reader.read(number)
            check_size(image, size, video_id=video_id, path=reference)
            yield image


def read_encoded(
    reference: str,
    *,
    video_id: int,
    size: tuple[int, int],
    stored_size: tuple[int, int],
    quality: int,
    reader: VideoReader | None = None,
) -> bytes:
    """One frame as JPEG bytes of stored_size; a JPEG file of that size keeps its own bytes.

    size:   (height, width) the frame must have
    reader: an open reader of the reference's video file, so that neighbours need no seek
    Raises: VideoError: as of `read`, for the bytes are decoded in any case.
    """
    path, number = split(reference)
    data = b""
    if number is None:
        data = _image_bytes(path, video_id)
        image = decode_image(data, video_id=video_id, path=path)
    elif reader is not None:
        image = reader.read(number)
    else:
        image = read(reference, video_id=video_id)
    check_size(image, size, video_id=video_id, path=reference)
    if stored_size == size and data.startswith(_JPEG):
        return data
    if stored_size != size:
        image = cv2.resize(image, stored_size[::-1], interpolation=cv2.INTER_AREA)
    return encode_jpeg(image, quality)


def check_size(image: Image, size: tuple[int, int] | None, *, video_id: int, path: str) -> None:
    """Raise VideoError unless the image is (height, width) = size. None: anything."""
    if size is not None and image.shape[:2] != tuple(size):
        raise VideoError(
            video_id,
            path,
            f"the frame is {image.shape[0]} x {image.shape[1]} (height x width), "
            f"the annotations say {size[0]} x {size[1]}",
        )


class VideoReader:
    """Frames of one video file by number; walking forwards never seeks.

    path:   local, or remote (then copied to the temporary folder once per process)
    Raises: VideoError: the file is missing, is no video, or ends before a frame.
    """

    def __init__(self, path: str, *, video_id: int) -> None:
        self.path = path
        self._video_id = video_id
        try:
            local = _local_copy(path)
        except (OSError, ValueError) as error:
            raise VideoError(video_id, path, f"the file cannot be read ({error})") from error
        if not os.path.isfile(local):
            raise VideoError(video_id, path, "the video file does not exist")
        self._local = local
        self._capture = cv2.VideoCapture()
        self._open()

    def _open(self) -> None:
        """Open the file, again if need be, before its first frame."""
        self._next = 0
        if not self._capture.open(self._local):
            raise VideoError(self._video_id, self.path, "the file cannot be opened as a video")

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the decoder."""
        self._capture.release()

    def __len__(self) -> int:
        """Frames, as the container states them; some state a little too many."""
        return max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))

    @property
    def rate(self) -> float:
        """Frames a second, as the container states them; 0 where it states none."""
        return float(self._capture.get(cv2.CAP_PROP_FPS))

    def read(self, number: int) -> Image:
        """Frame `number`, from 0, as (H, W, 3) uint8 RGB."""
        if number < self._next:
            # Seeking is not exact in every container; reading from the start is.
            self._open()
        if number - self._next > _SEEK_BEYOND:
            self._capture.set(cv2.CAP_PROP_POS_FRAMES, number)
            reached = round(self._capture.get(cv2.CAP_PROP_POS_FRAMES))
            if reached <= number:
                self._next = reached
            else:
                self._open()
        while self._next < number and self._capture.grab():
            self._next += 1
        image = next_image(self._capture) if self._next == number else None
        if image is None:
            raise VideoError(
                self._video_id,
                f"{self.path}#{number}",
                f"the video ends, or cannot be decoded, before frame {number} "
                f"(it states {len(self)} frames)",
            )
        self._next += 1
        return image

    def __iter__(self) -> Iterator[Image]:
        """All frames from the first, until the file ends."""
        self._open()
        while (image := next_image(self._capture)) is not None:
            self._next += 1
            yield image


def next_image(capture: cv2.VideoCapture) -> Image | None:
    """The next frame of a video or camera as (H, W, 3) uint8 RGB; None where there is none."""
    done, image = capture.read()
    return _rgb(image) if done and image is not None else None


def grouped(references: Sequence[str]) -> list[tuple[str, list[str]]]:
    """References by file, frame numbers ascending: the order in which to read them."""
    groups: dict[str, list[tuple[int, str]]] = {}
    for reference in dict.fromkeys(references):
        path, number = split(reference)
        groups.setdefault(path, []).append((-1 if number is None else number, reference))
    return [(path, [r for _, r in sorted(group)]) for path, group in sorted(groups.items())]


def _image_bytes(path: str, video_id: int) -> bytes:
    try:
        return read_bytes(path)
    except FileNotFoundError as error:
        raise VideoError(video_id, path, "the frame does not exist") from error
    except (OSError, ValueError) as error:
        raise VideoError(video_id, path, f"the frame cannot be read ({error})") from error


def _rgb(image: Any) -> Image:
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)


@functools.lru_cache(maxsize=256)
def _local_copy(path: str) -> str:
    """A local path with the content of path; OpenCV reads local files only."""
    if not is_remote(path):
        return path
    folder = Path(tempfile.gettempdir()) / f"idol-videos-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    target = folder / (hashlib.sha256(path.encode()).hexdigest()[:24] + Path(path).suffix.lower())
    if not target.exists():
        write_whole(target, read_bytes(path))
    return str(target)
