"""Frames of a video file by number: those that OpenCV gives, and none that is damaged."""

import math
import random
import re
import struct
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from idol.images import live, video_file
from idol.images.live import SourceError
from idol.images.video_file import DamagedVideo, VideoFile

LENGTH = 150
# name -> codec, pixel format, options; key frames every 30
KINDS = {
    "h264.mp4": ("libx264", "yuv420p", {"g": "30", "bf": "3"}),
    "open.mkv": ("libx264", "yuv420p", {"g": "30", "x264-params": "open-gop=1"}),
    "mpeg4.mp4": ("mpeg4", "yuv420p", {"g": "30", "bf": "2"}),
    "mpeg4.avi": ("mpeg4", "yuv420p", {"g": "30", "bf": "2"}),
    "mjpeg.avi": ("mjpeg", "yuvj420p", {}),
    "mpeg2.mpg": ("mpeg2video", "yuv420p", {"g": "15", "bf": "2"}),
}


def picture(number: int) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 255, (96, 144, 3), np.uint8)
    base = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX)
    return np.roll(base, 2 * number, axis=1)


def write(path: Path, codec: str, pixels: str, options: dict[str, str], length: int = LENGTH):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = 96, 144, pixels
        for i in range(length):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(i), format="bgr24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for name, kind in KINDS.items():
        write(folder / name, *kind)
    return folder


def opencv(path: Path) -> list[np.ndarray]:
    capture = cv2.VideoCapture(str(path))
    found = []
    while (read := capture.read())[0]:
        found.append(read[1][..., ::-1])
    return found


@pytest.mark.parametrize("name", KINDS)
def test_pixels_are_those_of_opencv_in_any_order(videos, name):
    expected = opencv(videos / name)
    assert len(expected) == LENGTH
    file = VideoFile(str(videos / name))
    assert file.rate == 25
    for number, image in enumerate(expected):
        np.testing.assert_array_equal(file.read(number), image)
    assert file.read(LENGTH) is None
    draw = random.Random(0)
    for number in [draw.randrange(LENGTH) for _ in range(12)]:
        np.testing.assert_array_equal(file.read(number), expected[number])
    file.close()


def test_a_frame_far_ahead_is_reached_without_decoding_all_before(videos, monkeypatch):
    decoded = []
    step = VideoFile._step
    monkeypatch.setattr(VideoFile, "_step", lambda self: decoded.append(1) or step(self))
    expected = opencv(videos / "h264.mp4")[140]
    np.testing.assert_array_equal(VideoFile(str(videos / "h264.mp4")).read(140), expected)
    assert len(decoded) < 40


def damaged(path: Path, seed: int) -> Path:
    """A copy in which eight bytes of the stored frames are others."""
    data, draw = bytearray(path.read_bytes()), random.Random(seed)
    first = data.index(b"mdat") + 300 if path.suffix == ".mp4" else len(data) // 4
    for _ in range(8):
        data[draw.randrange(first, first + len(data) // 2)] = draw.randrange(256)
    copy = path.with_name(f"damaged{seed}-{path.name}")
    copy.write_bytes(data)
    return copy


@pytest.mark.parametrize("name", ["h264.mp4", "mpeg4.mp4", "mpeg4.avi"])
def test_no_picture_that_the_decoder_calls_damaged_passes(videos, name):
    whole = opencv(videos / name)
    seen = 0
    for seed in range(8):
        path = damaged(videos / name, seed)
        shown = opencv(path)
        pairs = zip(whole, shown, strict=False)
        wrong = [i for i, (a, b) in enumerate(pairs) if not np.array_equal(a, b)]
        file = VideoFile(str(path))
        number = 0
        try:
            while file.read(number) is not None:
                number += 1
        except DamagedVideo:
            seen += 1
            with pytest.raises(DamagedVideo):  # nor does any later one
                file.read(min(number + 5, LENGTH))
            # What came before was right: none of it is read again otherwise.
            assert number == 0 or file.read(number - 1) is not None
        else:
            assert not wrong or number < LENGTH
        file.close()
    assert seen >= 6


def test_a_damaged_video_is_not_taken_for_one_that_ends(videos):
    path = damaged(videos / "h264.mp4", 0)
    with pytest.raises(SourceError, match=r"frame \d+ is damaged"):
        list(live.open_source(str(path)))


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile 'h264.mp4'\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nh264.mp4\n#EXT-X-ENDLIST\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"></MPD>',
    ],
)
def test_a_playlist_under_the_name_of_a_video_opens_no_other_file(videos, text):
    path = videos / "list.mp4"
    path.write_text(text)
    with pytest.raises(ValueError, match="cannot be opened as a video"):
        VideoFile(str(path))


def test_a_name_like_an_address_is_the_name_of_a_file(videos, monkeypatch):
    monkeypatch.chdir(videos)
    Path("concat:a.mp4").write_bytes((videos / "h264.mp4").read_bytes())
    assert len(VideoFile("concat:a.mp4")) == LENGTH


def test_a_video_of_16_bit_grey_keeps_its_contrast(tmp_path):
    ramp = np.linspace(7000, 9000, 96 * 144).reshape(96, 144).astype(np.uint16)
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=5)
        stream.height, stream.width, stream.pix_fmt = 96, 144, "gray16le"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(ramp, format="gray16le")))
        container.mux(stream.encode())
    image = VideoFile(str(tmp_path / "a.mkv")).read(0)
    assert image.shape == (96, 144, 3)
    assert len(np.unique(image)) > 250


ONE = 1 << 16  # of a display matrix, whose numbers have 16 binary places


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((1, 0, 0, 1), lambda image: image),
        ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),
        ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
        ((0, -1, 1, 0), lambda image: np.rot90(image)),
        ((-1, 0, 0, 1), np.fliplr),  # as front cameras write
        ((1, 0, 0, -1), np.flipud),
        ((0, 1, 1, 0), lambda image: image.transpose(1, 0, 2)),
        ((0, -1, -1, 0), lambda image: np.rot90(image, 2).transpose(1, 0, 2)),
        ((0, 0, 0, 0), lambda image: image),  # no turn at all
    ],
)
def test_a_picture_is_turned_and_mirrored_as_the_file_says(tmp_path, videos, matrix, shown):
    def stored(a: int, b: int, c: int, d: int) -> bytes:
        return struct.pack(">9i", a * ONE, b * ONE, 0, c * ONE, d * ONE, 0, 0, 0, 1 << 30)

    data = (videos / "h264.mp4").read_bytes()
    place = data.index(stored(1, 0, 0, 1), data.index(b"tkhd"))
    path = tmp_path / "turned.mp4"
    path.write_bytes(data[:place] + stored(*matrix) + data[place + 36 :])
    plain = VideoFile(str(videos / "h264.mp4")).read(0)
    np.testing.assert_array_equal(VideoFile(str(path)).read(0), shown(plain))


def test_formats_that_name_other_files_are_not_among_those_opened():
    assert not {"concat", "hls", "dash", "sdp", "image2"} & set(video_file._FORMATS.split(","))


CODECS = {
    ".mkv": ("libx264", "aac", "fltp"),
    ".webm": ("libvpx-vp9", "libopus", "flt"),
    ".ts": ("libx264", "aac", "fltp"),
    ".avi": ("mpeg4", "aac", "fltp"),
    ".mp4": ("libx264", "aac", "fltp"),
}
LEFT_OUT = range(7, 60, 5)


def recording(path: Path, *, every: bool, sound_s: float = 0.0) -> Path:
    """60 frames at 30 a second, those of LEFT_OUT only where every; and so long a silence."""
    video, audio, form = CODECS[path.suffix]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(video, rate=30)
        stream.height, stream.width, stream.pix_fmt = 96, 144, "yuv420p"
        sound = container.add_stream(audio, rate=48000, layout="mono") if sound_s else None
        for number in range(60):
            if every or number not in LEFT_OUT:
                frame = av.VideoFrame.from_ndarray(picture(number), format="bgr24")
                frame.pts, frame.time_base = number, Fraction(1, 30)
                container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound is not None:
            for start in range(0, round(48000 * sound_s), 960):
                silence = np.zeros((1, 960), np.float32)
                piece = av.AudioFrame.from_ndarray(silence, format=form, layout="mono")
                piece.sample_rate, piece.pts, piece.time_base = 48000, start, Fraction(1, 48000)
                container.mux(sound.encode(piece))
            container.mux(sound.encode())
    return path


def frames_of(path: Path) -> list[live.Frame]:
    return list(live.open_source(str(path)))


@pytest.mark.parametrize("suffix", [".mkv", ".webm", ".ts"])
def test_a_film_whose_sound_is_longer_is_whole(tmp_path, suffix):
    path = recording(tmp_path / f"a{suffix}", every=True, sound_s=3.0)
    assert len(frames_of(path)) == 60
    assert VideoFile(str(path)).stated == 0
    assert live.open_source(str(path)).frames == 60  # a guess, by the length of the pictures


@pytest.mark.parametrize("suffix", [".mkv", ".webm", ".ts", ".avi"])
def test_a_film_whose_recorder_left_frames_out_is_whole(tmp_path, suffix):
    path = recording(tmp_path / f"a{suffix}", every=False)
    assert len(frames_of(path)) == 60 - len(LEFT_OUT)


@pytest.mark.parametrize("suffix", [".mkv", ".webm", ".avi"])
@pytest.mark.parametrize("sound_s", [0.0, 3.0])
def test_a_film_of_which_the_end_is_gone_is_cut_short(tmp_path, suffix, sound_s):
    path = recording(tmp_path / f"a{suffix}", every=True, sound_s=sound_s)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(SourceError, match=r"ends before frame \d+, though the file|is damaged"):
        frames_of(path)


def test_a_matroska_file_of_unknown_length_ends_where_it_ends(tmp_path):
    path = recording(tmp_path / "a.mkv", every=True)
    data = bytearray(path.read_bytes())
    segment = data.index(bytes.fromhex("18538067")) + 4
    data[segment : segment + 8] = b"\x01" + b"\xff" * 7  # as a recorder leaves it that was killed
    path.write_bytes(data[: len(data) // 2])
    assert 0 < len(frames_of(path)) < 60


def test_where_a_transport_stream_was_cut_nothing_tells(tmp_path):
    path = recording(tmp_path / "a.ts", every=True)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2 // 188 * 188])
    assert 0 < len(frames_of(path)) < 60


@pytest.mark.parametrize("suffix", [".mkv", ".webm", ".ts", ".avi", ".mp4"])
def test_the_time_of_a_frame_is_that_in_the_file(tmp_path, suffix):
    path = recording(tmp_path / f"a{suffix}", every=False)
    kept = [number for number in range(60) if number not in LEFT_OUT]
    tick = 1 / 1000 if suffix in (".mkv", ".webm") else 1e-6
    times = [frame.time for frame in frames_of(path)]
    np.testing.assert_allclose(times, np.array(kept) / 30, atol=tick)
    late = list(live.open_source(str(path), 2, start=1.2, end=1.6))
    assert [frame.number for frame in late] == [kept.index(n) for n in (36, 39, 41, 44, 46)]
    assert [frame.time for frame in late] == [times[frame.number] for frame in late]
    last = list(live.open_source(str(path), start=59 / 30 - 0.01))
    assert [frame.number for frame in last] == [len(kept) - 1]
    np.testing.assert_array_equal(last[0].image, frames_of(path)[-1].image)


@pytest.mark.parametrize("name", KINDS)
def test_times_of_a_constant_rate_are_numbers_by_the_rate(videos, name):
    path = str(videos / name)
    assert [frame.time for frame in live.open_source(path)] == [n / 25 for n in range(LENGTH)]
    for start, end in ((0.5, 0.6), (4.0, 4.5), (5.9, None)):
        found = list(live.open_source(path, start=start, end=end))
        expected = range(math.ceil(start * 25), min(math.ceil((end or 9) * 25), LENGTH))
        assert [frame.number for frame in found] == list(expected)
        assert [frame.time for frame in found] == [n / 25 for n in expected]


def test_recordings_that_were_joined_have_times_that_go_on(tmp_path):
    path = recording(tmp_path / "a.ts", every=True)
    path.write_bytes(path.read_bytes() * 2)
    times = [frame.time for frame in frames_of(path)]
    assert len(times) == 120
    assert (np.diff(times) > 0).all()
    assert times[-1] == pytest.approx(119 / 30, abs=0.1)


def test_the_time_of_a_frame_far_ahead_is_that_of_walking_there(tmp_path, videos):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "30"})
        stream.height, stream.width, stream.pix_fmt = 96, 144, "yuv420p"
        for number in range(LENGTH):
            frame = av.VideoFrame.from_ndarray(picture(number), format="bgr24")
            frame.pts, frame.time_base = 2 * number + number // 7, Fraction(1, 50)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    times = [(2 * n + n // 7) / 50 for n in range(LENGTH)]
    file = VideoFile(str(path))
    for number in (140, 3, 100, 101):
        assert file.read(number) is not None
        assert file.time == pytest.approx(times[number])
        assert file.first(times[number]) == number
        assert file.first(times[number] - 0.01) == number
    assert file.first(times[-1] + 0.1) == LENGTH


def test_damage_behind_the_end_that_is_asked_for_is_no_concern(videos):
    path = videos / "late.mp4"
    data = (videos / "h264.mp4").read_bytes()
    half = data.index(b"mdat") + len(data) // 2
    path.write_bytes(data[:half] + b"\xff" * 40 + data[half + 40 :])
    with pytest.raises(SourceError) as caught:
        frames_of(path)
    number = int(re.search(r"frame (\d+) is damaged", str(caught.value))[1])
    assert len(list(live.open_source(str(path), end=number / 25))) == number
    with pytest.raises(SourceError, match=rf"frame {number} is damaged"):
        list(live.open_source(str(path), end=(number + 1) / 25))
