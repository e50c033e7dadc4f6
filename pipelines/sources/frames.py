"""A frame from a JPEG folder or a video file, local or in object storage.

A frame reference is the path of an image, or "video.mp4#12" for frame 12 (from 0) of a video
file. Paths with a scheme ("s3://bucket/a.jpg") are read through pyarrow.fs.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import cv2
from pyarrow import fs

from idol.addresses import is_remote
from idol.images.live import IMAGE_SUFFIXES as IMAGE_SUFFIXES
from idol.images.live import VIDEO_SUFFIXES as VIDEO_SUFFIXES
from idol.images.video_file import DamagedVideo, VideoFile
from pipelines.errors import VideoError
from pipelines.sources import video_cache
from pipelines.sources.image_file import JPEG, check_size, decode
from pipelines.sources.image_file import Image as Image
from pipelines.storage import paths
from pipelines.storage.paths import RemotePath


def split(reference: str) -> tuple[str, int | None]:
    """A frame reference as (path, frame number); the number is None for an image file."""
    if "#" not in reference:  # as nearly all are, and there are millions
        return reference, None
    path, _, number = reference.rpartition("#")
    is_video = Path(path).suffix.lower() in VIDEO_SUFFIXES
    if is_video and number.isascii() and number.isdigit():
        return path, int(number)
    return reference, None


def is_directory(path: str) -> bool:
    """Whether a local or remote directory exists."""
    if not is_remote(path):
        return os.path.isdir(path)
    return RemotePath(path).is_dir()


def join(root: str, name: str) -> str:
    """A path below root, local or remote."""
    return f"{root.rstrip('/')}/{name}" if is_remote(root) else os.path.join(root, name)


def read_bytes(path: str) -> bytes:
    """The bytes of a local or remote file. Raises: OSError: it cannot be read."""
    if not is_remote(path):
        return Path(path).read_bytes()
    return RemotePath(path).read_bytes()


def files_in(directory: str) -> dict[str, int]:
    """Names and bytes of the files in a directory, in one listing: faster than to ask for each."""
    if is_remote(directory):
        filesystem, inner = paths.native(directory)
        found = filesystem.get_file_info(fs.FileSelector(inner, allow_not_found=True))
        return {info.base_name: info.size for info in found if info.type == fs.FileType.File}
    try:
        with os.scandir(directory or "/") as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
    except OSError:
        return {}


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
                image = decode(
                    _image_bytes(path, video_id), video_id=video_id, path=path, size=size
                )
            else:
                if reader is None or reader.path != path:
                    opened.close()
                    reader = opened.enter_context(VideoReader(path, video_id=video_id))
                image = reader.read(number)
            check_size(image.shape, size, video_id=video_id, path=reference)
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
        image = decode(data, video_id=video_id, path=path, size=size)
    elif reader is not None:
        image = reader.read(number)
    else:
        image = read(reference, video_id=video_id)
    check_size(image.shape, size, video_id=video_id, path=reference)
    if stored_size == size and data.startswith(JPEG):
        return data
    if stored_size != size:
        image = cv2.resize(image, stored_size[::-1], interpolation=cv2.INTER_AREA)
    return encode_jpeg(image, quality)


class VideoReader:
    """Frames of one video file by number; walking forwards never seeks.

    path:   local, or remote (then copied to the temporary folder, see video_cache)
    Raises: VideoError: the file is missing, is no video, is damaged, or ends before a frame.
    """

    def __init__(self, path: str, *, video_id: int) -> None:
        self.path = path
        self._video_id = video_id
        try:
            self._copy = video_cache.held(path) if is_remote(path) else None
        except (OSError, ValueError) as error:
            raise VideoError(video_id, path, f"the file cannot be read ({error})") from error
        local = path if self._copy is None else self._copy.name
        if not os.path.isfile(local):
            raise VideoError(video_id, path, "the video file does not exist")
        try:
            self._file = VideoFile(local)
        except ValueError as error:
            raise VideoError(video_id, path, str(error)) from error

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the decoder, and the copy of a remote file."""
        self._file.close()
        if self._copy is not None:
            self._copy.close()

    def __len__(self) -> int:
        """Frames, as the container states them, some a little too many; else a guess."""
        return len(self._file)

    @property
    def stated(self) -> int:
        """As `len`, but 0 where the container states none."""
        return self._file.stated

    @property
    def rate(self) -> float:
        """Frames a second, as the container states them; 0 where it states none."""
        return self._file.rate

    def read(self, number: int) -> Image:
        """Frame `number`, from 0, as (H, W, 3) uint8 RGB."""
        image = self.read_or_end(number)
        if image is None:
            states = f" (it states {self.stated} frames)" if self.stated else ""
            raise VideoError(
                self._video_id,
                f"{self.path}#{number}",
                f"the video ends before frame {number}{states}",
            )
        return image

    def __iter__(self) -> Iterator[Image]:
        """All frames from the first, until the file ends."""
        for number in itertools.count():
            if (image := self.read_or_end(number)) is None:
                return
            yield image

    def read_or_end(self, number: int) -> Image | None:
        """As `read`; None where the video ends before the frame."""
        try:
            return self._file.read(number)
        except DamagedVideo as error:
            raise VideoError(self._video_id, f"{self.path}#{number}", str(error)) from error


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
