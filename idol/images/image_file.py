"""The bytes of a picture → pixels, or what its header, checksums and decoder have against them."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt
import PIL.Image
import simplejpeg
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from idol.images.depth import eight_bits

Image = npt.NDArray[np.uint8]
"""(H, W, 3) RGB."""

JPEG = b"\xff\xd8\xff"
"""How a JPEG begins."""

_TIFF = (b"II*\0", b"MM\0*")
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257  # tags
_MAX_PIXELS = 1 << 27  # 400 MB as RGB
# What libjpeg warns of otherwise (an unknown revision, ...) leaves the pixels whole.
_LIBJPEG_DAMAGE = ("Corrupt JPEG data", "Premature end")
_BAD_HEADER = (OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, struct.error)


def decode(data: bytes, accept: Callable[[tuple[int, int]], None] | None = None) -> Image:
    """Encoded image bytes as (H, W, 3) uint8 RGB, turned as its EXIF orientation says.

    Pixels of more than 8 bits are brought to 8 by `eight_bits`.

    accept: called with the (height, width) that the header states, before pixels take memory; it
            raises what is to be raised
    Raises: ValueError: the bytes are no image, or are damaged.
    """
    stated = _stated_size(data)
    if stated[0] * stated[1] > _MAX_PIXELS:
        raise ValueError(
            f"the image is {stated[0]} x {stated[1]} (height x width), more than the "
            f"{_MAX_PIXELS} pixels that are decoded"
        )
    if accept is not None:
        accept(stated)
    try:
        pixels = _jpeg(data) if data.startswith(JPEG) else None
        return _any(data) if pixels is None else pixels
    except cv2.error as error:
        raise ValueError(f"the image cannot be decoded ({error.err})") from error


def _stated_size(data: bytes) -> tuple[int, int]:
    """(height, width) that the header states. Raises: ValueError: it is that of no image."""
    try:
        if data.startswith(_TIFF):  # some of which Pillow does not know, as 16-bit colours
            file = io.BytesIO(data)
            directory = ImageFileDirectory_v2(file.read(8))
            file.seek(directory.next)
            directory.load(file)
            return int(directory[_TIFF_HEIGHT]), int(directory[_TIFF_WIDTH])
        with PIL.Image.open(io.BytesIO(data)) as header:
            return header.height, header.width
    except PIL.Image.DecompressionBombError as error:
        raise ValueError(f"the image has more than the {_MAX_PIXELS} pixels decoded") from error
    except _BAD_HEADER as error:
        raise ValueError(f"{len(data)} bytes are not an image, or are cut short") from error


def _jpeg(data: bytes) -> Image | None:
    """The pixels of a JPEG; None where OpenCV has to decode it: it is CMYK, or EXIF may turn it.

    Bit for bit those that OpenCV gives, which hides what libjpeg has to say of the data.
    Raises: ValueError: libjpeg calls the data damaged.
    """
    exif = b"Exif\0\0" in data[: 1 << 16]
    try:
        if exif:  # An eighth of the size in grey is enough to hear what libjpeg says.
            simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1)
            return None
        return np.asarray(simplejpeg.decode_jpeg(data, "RGB"), np.uint8)
    except ValueError as error:
        if str(error).startswith(_LIBJPEG_DAMAGE):
            raise ValueError(f"the JPEG is damaged ({error})") from error
        return None


def _any(data: bytes) -> Image:
    """The pixels of a picture of any kind. Raises: ValueError: it is none, or damaged.

    OpenCV itself refuses PNGs by their checksums, and files of any kind that are cut short.
    """
    if data.startswith(_TIFF):
        try:
            with PIL.Image.open(io.BytesIO(data)) as image:
                image.load()
        except PIL.UnidentifiedImageError:
            pass
        except OSError as error:
            if str(error).startswith("decoder error"):
                raise ValueError(f"the TIFF is damaged ({error})") from error
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    if found is None:
        raise ValueError(f"the image is damaged, or {len(data)} bytes are not an image")
    return np.asarray(cv2.cvtColor(eight_bits(found), cv2.COLOR_BGR2RGB), np.uint8)
