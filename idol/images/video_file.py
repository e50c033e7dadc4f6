"""The frames of one local video file by their number; a damaged one is an error, not a picture."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

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

    def __len__(self) -> int:
        """Frames, as the container states them; some state a little too many or too few."""
        if self._stream.frames:
            return self._stream.frames
        return max(0, int((self._container.duration or 0) / 1e6 * self.rate + 0.5))

    @property
    def rate(self) -> float:
        """Frames a second, as the container states them; 0 where it states none."""
        return float(self._stream.guessed_rate or 0)

    def read(self, number: int) -> NDArray[np.uint8] | None:
        """Frame `number` as (H, W, 3) uint8 RGB, or None where the video ends before it.

        Raises: DamagedVideo: it, or one that it is decoded from, is damaged. So are then all after
            it: which of them still show what they should, no decoder tells.
        """
        if self._damage is not None and number >= self._damage[0]:
            raise self._damage[1]
        if number - self._next > _SEEK_BEYOND:
            with contextlib.suppress(DamagedVideo):  # or a key frame that needs those before it
                if (image := self._reach(number)) is not None:
                    return image
            self._restart()
        elif number < self._next:
            # Seeking back may end anywhere; reading from the start does not.
            self._restart()
        try:
            while (frame := self._step()) is not None:
                if self._next > number:
                    return self._pixels(frame)
        except DamagedVideo as error:
            self._damage = self._next, error
            raise
        return None

    def _begin(self) -> None:
        """Open the file before its first frame."""
        from av.video.reformatter import VideoReformatter

        self._container, self._stream = _open(self._path)
        self._frames = self._container.decode(self._stream)
        self._reformatter = VideoReformatter()
        self._next = 0

    def _restart(self) -> None:
        self.close()
        self._begin()

    def _step(self) -> VideoFrame | None:
        """The next frame; None at the end. Raises: DamagedVideo."""
        import av

        try:
            frame = next(self._frames, None)
        except (av.FFmpegError, OSError) as error:
            raise DamagedVideo(f"frame {self._next} is damaged ({error.strerror})") from error
        if frame is None:
            return None
        if frame.is_corrupt:
            raise DamagedVideo(f"frame {self._next} is damaged (the decoder conceals a part of it)")
        self._next += 1
        return frame

    def _reach(self, number: int) -> NDArray[np.uint8] | None:
        """A frame far ahead, from the key frame before it; None where its place is not known."""
        if self._times is None:
            self._times = self._presented()
        if number >= len(self._times):
            return None
        wanted = self._times[number]
        self._container.seek(wanted, stream=self._stream)
        self._frames = self._container.decode(self._stream)
        while (frame := self._step()) is not None:
            if frame.pts is None or frame.pts > wanted:
                return None
            if frame.pts == wanted:
                self._next = number + 1
                return self._pixels(frame)
        return None

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
        return np.ascontiguousarray(np.rot90(image, frame.rotation // 90))


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
