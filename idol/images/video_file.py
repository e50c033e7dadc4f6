"""The frames of one local video file by their number; a damaged one is an error, not a picture."""

from __future__ import annotations

import contextlib
import math
import os
import struct
from bisect import bisect_left
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from idol.images.depth import eight_bits

if TYPE_CHECKING:  # 0.3 s, for data sets that may have no video file
    from av import VideoFrame, VideoStream
    from av.container import InputContainer

# Formats that hold their frames themselves. Playlists name other files, and are never opened.
_FORMATS = (
    "mov,matroska,avi,mpeg,mpegts,mpegvideo,flv,asf,ogg,h264,hevc,m4v,ivf,gif,yuv4mpegpipe,mxf,nut,"
    "dv,wtv"
)
# Here every packet is one frame and has its true time, so a frame's number is known without
# decoding those before it. In others there are packets of none or of two, as MPEG-4's in an avi.
_TIMED = ("mov", "matroska")
_COUNTABLE = frozenset({"h264", "hevc", "av1", "vp9", "mpeg4", "mjpeg", "ffv1", "prores"})
# Seeking decodes from the last key frame anyway, so a short gap is cheaper to walk through.
_SEEK_BEYOND = 64
_OVERSTATED = 0.02
"""Share of the stated frames, or two, that a container may lack; with fewer it is cut short."""
_BOX_HEADER = 8  # bytes of an mp4 box's length and name
MATCHING_S = 1e-6  # a time this close to another is the same
_AGAIN_S = 1.0
"""Seconds. Where the time of a frame is so much below that of the one before, another recording
begins, which was joined to the first; a smaller step back is a fault of the file."""


class DamagedVideo(ValueError):
    """The decoder calls a frame damaged: DamagedVideo(message)."""


class VideoFile:
    """An open video file. Frames are those that a player shows, counted from 0.

    path: of a local file
    Raises: ValueError: it is none that can be opened as a video.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._times: list[int] | None = None
        self._damage: tuple[int, DamagedVideo] | None = None  # the first frame that shows some
        self._begin()

    def close(self) -> None:
        """Release the decoder."""
        self._container.close()

    @property
    def stated(self) -> int:
        """Frames, as the container states them, some a little too many; 0 where it states none, as
        Matroska, WebM and MPEG transport streams."""
        return self._stream.frames

    def __len__(self) -> int:
        """Frames, as stated, else a guess from duration and rate: recorders leave frames out."""
        return self.stated or max(0, int(self._duration() * self.rate + 0.5))

    @property
    def rate(self) -> float:
        """Frames a second, as the container states them; 0 where it states none."""
        return float(self._stream.guessed_rate or 0)

    @property
    def time(self) -> float | None:
        """Seconds from the first frame to the one decoded last, as the file says, else by the rate;
        None: it says neither."""
        return self._time

    def read(self, number: int) -> NDArray[np.uint8] | None:
        """Frame `number` as (H, W, 3) uint8 RGB, or None where the video ends before it.

        Raises: DamagedVideo: it, or one that it is decoded from, is damaged. So are then all after
            it: which of them still show what they should, no decoder tells.
        """
        if self._damage is not None and number >= self._damage[0]:
            raise self._damage[1]
        if self._frame is not None and number == self._next - 1:
            return self._pixels(self._frame)
        if number - self._next > _SEEK_BEYOND:
            with contextlib.suppress(DamagedVideo):  # or a key frame that needs those before it
                if (image := self._reach(number)) is not None:
                    return image
            self._restart()
        elif number < self._next:
            # Seeking back may end anywhere; reading from the start does not.
            self._restart()
        while (frame := self._next_frame()) is not None:
            if self._next > number:
                return self._pixels(frame)
        return None

    def _next_frame(self) -> VideoFrame | None:
        """The next frame in turn; None at the end. Raises: DamagedVideo: now and ever after."""
        try:
            return self._step()
        except DamagedVideo as error:
            self._damage = self._next, error
            raise

    def first(self, start: float) -> int:
        """The number of the first frame at or after so many seconds, of one after the last where
        the video ends before.

        Raises: DamagedVideo: as `read`, of a frame on the way there.
        """
        start -= MATCHING_S
        if start <= 0:
            return 0
        # From packets, unless decoding is cheaper than reading all of them.
        if start * self.rate > _SEEK_BEYOND and (times := self._listed()):
            numbers = range(len(times))
            return bisect_left(numbers, start, key=lambda n: self._seconds_at(times, n))
        if self._next:
            self._restart()
        while self._next_frame() is not None:
            if self._time is None or self._time >= start:
                return self._next - 1
        return self._next

    def missing(self) -> str:
        """What the file states and has not, asked where `read` found its end; "": it is whole.

        A film whose recorder left frames out, or whose sound is longer, is whole. Whether an MPEG
        transport stream, a program stream or a live recording was cut short, no part of it tells.
        """
        stated, had = self.stated, self._next
        told = f"{stated} frames"
        if not stated:
            duration = self._duration()
            stated, told = round(duration * self.rate), f"{duration:.2f} s"
            had = round((self._time or 0.0) * self.rate) + 1 if had else 0
        if stated and stated - had <= max(2, math.ceil(_OVERSTATED * stated)):
            return ""
        form = self._container.format.name
        length = next((of for name, of in _LENGTHS.items() if form.startswith(name)), None)
        if length is None:
            return told if self.stated else ""
        # They state frames that they do not show: an mp4's edit list hides some, an avi counts
        # those left out. And other tools copy a duration that no longer holds into Matroska.
        return told if _reaches_beyond(self._path, length) else ""

    def _duration(self) -> float:
        """Seconds that the video stream lasts, else the whole container; 0: not stated."""
        if self._stream.duration and self._stream.time_base:
            return float(self._stream.duration * self._stream.time_base)
        parts = self._stream.metadata.get("DURATION", "").split(":")  # Matroska: 00:01:02.345
        with contextlib.suppress(ValueError):
            hours, minutes, seconds = map(float, parts)
            return 3600 * hours + 60 * minutes + seconds
        return (self._container.duration or 0) / 1e6

    def _begin(self) -> None:
        """Open the file before its first frame."""
        from av.video.reformatter import VideoReformatter

        self._container, self._stream = _open(self._path)
        self._frames = self._container.decode(self._stream)
        self._reformatter = VideoReformatter()
        self._next = 0
        self._frame: VideoFrame | None = None  # decoded last
        self._time: float | None = None
        self._origin: int | None = None  # the pts of the first frame
        self._last_pts: int | None = None
        # An avi states no times; its decoder guesses them wrong where frames are reordered.
        reordered = self._stream.codec_context.has_b_frames
        self._has_times = self._container.format.name != "avi" or not reordered

    def _restart(self) -> None:
        self.close()
        self._begin()

    def _step(self) -> VideoFrame | None:
        """The next frame; None at the end. Raises: DamagedVideo."""
        import av

        self._frame = None
        try:
            frame = next(self._frames, None)
        except (av.FFmpegError, OSError) as error:
            raise DamagedVideo(f"frame {self._next} is damaged ({error.strerror})") from error
        if frame is None:
            return None
        if frame.is_corrupt:
            raise DamagedVideo(f"frame {self._next} is damaged (the decoder conceals a part of it)")
        self._time = self._elapsed(frame.pts if self._has_times else None, self._next)
        self._next += 1
        self._frame = frame
        return frame

    def _elapsed(self, pts: int | None, number: int) -> float | None:
        """Seconds from the first frame to the next one to be decoded, of this pts and number."""
        base, rate = float(self._stream.time_base or 1), self.rate
        step = 1 / rate / base if rate else 1.0  # ticks from a frame to the next
        last, self._last_pts = self._last_pts, pts
        ticks = None
        if pts is not None:
            if self._origin is None:
                self._origin = pts - round(number * step)
            elif last is not None and pts + _AGAIN_S / base < last:
                # Its first frame is shown one step after the last of the recording before.
                self._origin += pts - last - max(1, round(step))
            ticks = pts - self._origin
        seconds = self._seconds(ticks, number)
        return seconds if seconds is None else max(seconds, self._time or 0.0)

    def _seconds(self, ticks: int | None, number: int) -> float | None:
        """The time of a frame so many ticks after the first, of None where that is not known."""
        counted = number / self.rate if self.rate else None
        if ticks is None or not self._stream.time_base:
            return counted
        seconds = float(ticks * self._stream.time_base)
        # Times are rounded to ticks, in Matroska of 1 ms; those of a constant rate are exact.
        tick = float(self._stream.time_base) * (1 - 1e-6)
        return counted if counted is not None and abs(seconds - counted) < tick else seconds

    def _reach(self, number: int) -> NDArray[np.uint8] | None:
        """A frame far ahead, from the key frame before it; None where its place is not known."""
        times = self._listed()
        if number >= len(times):
            return None
        wanted = times[number]
        self._container.seek(wanted, stream=self._stream)
        self._frames = self._container.decode(self._stream)
        self._origin, self._last_pts, self._time = times[0], None, None
        while (frame := self._step()) is not None:
            if frame.pts is None or frame.pts > wanted:
                return None
            if frame.pts == wanted:
                self._next = number + 1
                self._time = self._seconds_at(times, number)
                return self._pixels(frame)
        return None

    def _seconds_at(self, times: list[int], number: int) -> float:
        """The time of a frame of this number, of a file whose packets tell the times of all."""
        return self._seconds(times[number] - times[0], number) or 0.0

    def _listed(self) -> list[int]:
        """As _presented, read once."""
        if self._times is None:
            self._times = self._presented()
        return self._times

    def _presented(self) -> list[int]:
        """The times of all frames, ascending, from their packets; [] where those do not tell."""
        container, stream = _open(self._path)
        with container:
            timed = container.format.name.startswith(_TIMED)
            if not timed or stream.codec_context.name not in _COUNTABLE:
                return []
            packets = [p for p in container.demux(stream) if p.size and not p.is_discard]
            times = sorted(p.pts for p in packets if p.pts is not None)
        return times if len(set(times)) == len(packets) else []

    def _pixels(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """The frame as (H, W, 3) uint8 RGB, turned as the file says."""
        if frame.format.name.startswith(("gray9", "gray1")):  # counts of a sensor, 9 to 16 bits
            grey = eight_bits(frame.to_ndarray(format="gray16le"))
            image = np.repeat(grey[:, :, None], 3, axis=2)
        else:
            # As OpenCV converts colours, bit for bit.
            rgb = self._reformatter.reformat(frame, format="rgb24", interpolation="BICUBIC")
            image = np.asarray(rgb.to_ndarray(), np.uint8)
        return upright(image, frame)


def upright(image: NDArray[np.uint8], frame: VideoFrame) -> NDArray[np.uint8]:
    """The picture of a frame, (H, W, 3), turned by quarters and mirrored as the file says."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")  # av types it as an object
    if data is None:
        return np.ascontiguousarray(image)
    # The pixel (x, y) is shown at (a x + c y, b x + d y), up to a shift.
    matrix = np.frombuffer(bytes(data), np.int32)
    a, b, c, d = (int(matrix[i]) for i in (0, 1, 3, 4))
    if abs(b) + abs(c) > abs(a) + abs(d):  # x becomes y
        image, a, d = image.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _box(head: bytes) -> int | None:
    """Bytes of the mp4 box that begins so; None: to the end of the file, however long it is."""
    if len(head) < _BOX_HEADER:
        return _BOX_HEADER
    length, long = struct.unpack(">I4xQ", head.ljust(16, b"\0"))
    if length == 1:  # the length follows in 64 bits
        length = long
    if length == 0:
        return None
    return length if length >= _BOX_HEADER else _DAMAGED


def _element(head: bytes) -> int | None:
    """Bytes of the Matroska element that begins so; None: not known, as in live recordings."""
    name = 9 - head[0].bit_length()
    first = head[name] if name < len(head) else 0
    size = 9 - first.bit_length()
    if not first or name + size > len(head):
        return None
    most = (1 << 7 * size) - 1
    length = int.from_bytes(head[name : name + size]) & most
    return None if length == most else name + size + length


def _riff(head: bytes) -> int | None:
    """Bytes of the part of an avi that begins so; None: it is none, or was never finished."""
    if not head.startswith(b"RIFF") or len(head) < _BOX_HEADER:
        return None
    length = int.from_bytes(head[4:8], "little")
    return None if length in (0, 0xFFFFFFFF) else _BOX_HEADER + length


_DAMAGED = 1 << 64  # bytes: beyond the end of every file
_LENGTHS = {"mov": _box, "matroska": _element, "avi": _riff}
"""How the outermost parts of a format tell their lengths, from their first 16 bytes."""


def _reaches_beyond(path: str, length: Callable[[bytes], int | None]) -> bool:
    """Whether the last of a file's outermost parts reaches beyond its end: it is cut short."""
    with open(path, "rb") as file:
        end, place = file.seek(0, os.SEEK_END), 0
        while place < end:
            file.seek(place)
            step = length(file.read(16))
            if step is None:
                return False
            place += step
    return place > end


def _open(path: str) -> tuple[InputContainer, VideoStream]:
    """A container and its best video stream. Raises: ValueError: there is none."""
    import av

    try:
        # As a file, whatever its name looks like; texts in it may be in any encoding.
        container = av.open(
            f"file:{path}", options={"format_whitelist": _FORMATS}, metadata_errors="replace"
        )
    except (av.FFmpegError, OSError, ValueError) as error:
        raise ValueError("the file cannot be opened as a video") from error
    stream = container.streams.best("video")
    # A stream of an unknown codec has no context.
    if not isinstance(stream, av.VideoStream) or stream.codec_context is None:
        container.close()
        raise ValueError("the file has no video stream that can be decoded")
    # Threads that decode frames beside each other report damage at another frame in each run.
    stream.thread_type = "SLICE"
    stream.codec_context.options = {"err_detect": "explode"}
    return container, stream
