"""A picture's bytes become pixels, or the error says what is wrong with them."""

import io
import random
import resource
import struct
import zlib

import cv2
import numpy as np
import PIL.Image
import pytest

from pipelines.errors import VideoError
from pipelines.sources import frames, image_file

# Pillow's, of TIFFs with odd tags.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

SIZE = (120, 200)


def smooth(size: tuple[int, int] = SIZE) -> frames.Image:
    noise = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    return np.asarray(cv2.GaussianBlur(noise, (0, 0), 2), np.uint8)


def encoded(suffix: str, *parameters: int, image: np.ndarray | None = None) -> bytes:
    done, data = cv2.imencode(suffix, smooth() if image is None else image, parameters)
    assert done
    return data.tobytes()


def decode(data: bytes, size: tuple[int, int] | None = None) -> frames.Image:
    return image_file.decode(data, video_id=5, path="a", size=size)


def reason_of(data: bytes, size: tuple[int, int] | None = None) -> str:
    with pytest.raises(VideoError) as caught:
        decode(data, size)
    assert (caught.value.video_id, caught.value.path) == (5, "a")
    return caught.value.reason


JPEGS = {
    "plain": encoded(".jpg"),
    "progressive": encoded(".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    "restarts": encoded(".jpg", cv2.IMWRITE_JPEG_RST_INTERVAL, 4),
    "4:1:1": encoded(".jpg", cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x411111),
    "grey": encoded(".jpg", image=smooth()[..., 0]),
}


@pytest.mark.parametrize("kind", JPEGS)
def test_a_whole_jpeg_has_the_pixels_that_opencv_gives(kind):
    data = JPEGS[kind]
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_array_equal(decode(data, SIZE), expected)
    # Cameras put previews and more behind the picture.
    np.testing.assert_array_equal(decode(data + bytes(9000), SIZE), expected)


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("end", [b"", b"\xff\xd9"])
def test_a_jpeg_that_is_cut_is_refused_also_where_it_is_closed_again(kind, end):
    for share in (0.4, 0.6, 0.9):
        data = JPEGS[kind]
        assert "damaged" in reason_of(data[: int(share * len(data))] + end)


def test_a_jpeg_whose_colours_only_opencv_converts_or_that_exif_may_turn_is_refused_too():
    file = io.BytesIO()
    PIL.Image.fromarray(smooth()).convert("CMYK").save(file, "JPEG")
    cmyk = file.getvalue()
    file = io.BytesIO()
    PIL.Image.fromarray(smooth()).save(file, "JPEG", exif=PIL.Image.Exif())
    for data in (cmyk, file.getvalue()):
        expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        np.testing.assert_array_equal(decode(data), expected)
    data = file.getvalue()
    assert "the JPEG is damaged" in reason_of(data[: len(data) // 2] + b"\xff\xd9")


def test_a_jpeg_with_zeros_in_its_data_is_refused():
    data = bytearray(JPEGS["plain"])
    data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
    assert "the JPEG is damaged (Corrupt JPEG data" in reason_of(bytes(data))


def test_a_tiff_whose_compressed_data_are_damaged_is_refused():
    data = bytearray(encoded(".tiff", cv2.IMWRITE_TIFF_COMPRESSION, 5))
    data[4000:4050] = bytes(50)
    assert "the TIFF is damaged" in reason_of(bytes(data))


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".webp"])
def test_other_pictures_that_are_cut_are_refused(suffix):
    data = encoded(suffix)
    for share in (0.3, 0.9):
        reason_of(data[: int(share * len(data))])


def test_a_png_whose_checksums_are_wrong_is_refused():
    data = bytearray(encoded(".png"))
    data[len(data) // 2] ^= 1
    assert "damaged" in reason_of(bytes(data))


@pytest.mark.parametrize("data", [b"", b"<html>404</html>", JPEGS["plain"][:40], bytes(500)])
def test_what_is_no_image_is_refused(data):
    assert "not an image" in reason_of(data)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tiff", ".webp", ".ppm"])
def test_damaged_bytes_anywhere_give_pixels_or_a_video_error(suffix):
    whole, draw = encoded(suffix), random.Random(0)
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(draw.randrange(1, 8)):
            data[draw.randrange(min(len(data), draw.choice([60, len(data)])))] = draw.randrange(256)
        try:
            assert decode(bytes(data), SIZE).shape == (*SIZE, 3)
        except VideoError as error:
            assert error.reason  # noqa: PT017


def bomb(suffix: str, side: int) -> bytes:
    """A small file whose header states side x side pixels."""
    if suffix == ".png":
        head = struct.pack(">II5B", side, side, 8, 2, 0, 0, 0)
        chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d))
            for n, d in chunks
        )
    data = bytearray(encoded(suffix, image=smooth((64, 64))))
    if suffix == ".jpg":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", side, side)
    elif suffix == ".bmp":
        data[18:26] = struct.pack("<ii", side, side)
    else:
        file = io.BytesIO()
        PIL.Image.new("1", (side, side)).save(file, "TIFF", compression="group4")
        data = bytearray(file.getvalue())
    return bytes(data)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tiff"])
def test_the_size_is_looked_at_before_the_pixels_take_memory(suffix):
    data = bomb(suffix, 30_000 if suffix != ".tiff" else 12_000)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reasons = [reason_of(data, size) for size in ((64, 64), None, (12_000, 12_000))]
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak  # kB on Linux
    assert grown < 100_000
    assert all("134217728 pixels" in reason for reason in reasons)
    assert "the frame is 5000 x 5000" in reason_of(bomb(suffix, 5000), (64, 64))


def test_a_picture_that_exif_turns_has_the_turned_size():
    file = io.BytesIO()
    exif = PIL.Image.Exif()
    exif[274] = 6
    PIL.Image.fromarray(smooth()).save(file, "JPEG", exif=exif)
    assert decode(file.getvalue(), SIZE[::-1]).shape == (*SIZE[::-1], 3)
    assert "the frame is 200 x 120" in reason_of(file.getvalue(), SIZE)


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".ppm"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_of_16_bits_keeps_its_contrast(suffix, channels):
    ramp = np.linspace(0, 4095, SIZE[0] * SIZE[1]).reshape(SIZE).astype(np.uint16)
    image = ramp if channels == 1 else np.repeat(ramp[..., None], 3, axis=2)
    found = decode(encoded(suffix if channels == 3 or suffix != ".ppm" else ".pgm", image=image))
    assert len(np.unique(found)) > 250
    assert (found[..., 0] == found[..., 2]).all()
