"""The bytes of a picture → pixels, or the fault of the video that it is a frame of."""

from __future__ import annotations

from idol.images import image_file
from idol.images.image_file import JPEG as JPEG
from idol.images.image_file import Image as Image
from pipelines.errors import VideoError


def decode(data: bytes, *, video_id: int, path: str, size: tuple[int, int] | None = None) -> Image:
    """As `idol.images.image_file.decode`, of a frame of a video.

    size: (height, width) that it must have, looked at before its pixels take memory; None: any
    Raises: VideoError: the bytes are no image, are damaged, or are one of another size.
    """

    def accept(stated: tuple[int, int]) -> None:
        if size is not None and sorted(stated) != sorted(size):  # EXIF may turn it
            check_size(stated, size, video_id=video_id, path=path)

    try:
        pixels = image_file.decode(data, accept)
    except ValueError as error:
        raise VideoError(video_id, path, str(error)) from error
    check_size(pixels.shape, size, video_id=video_id, path=path)
    return pixels


def check_size(
    found: tuple[int, ...], size: tuple[int, int] | None, *, video_id: int, path: str
) -> None:
    """Raise VideoError unless a frame of this shape has this (height, width). None: any has."""
    if size is not None and tuple(found[:2]) != tuple(size):
        raise VideoError(
            video_id,
            path,
            f"the frame is {found[0]} x {found[1]} (height x width), "
            f"the annotations say {size[0]} x {size[1]}",
        )
