"""An mp4 that browsers play, written frame by frame, which appears when it is whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from idol.files import whole_file
from pipelines.errors import PipelineError

if TYPE_CHECKING:
    from av.container import OutputContainer

    from idol.images.visualize import Image

_ENCODERS: tuple[tuple[str, dict[str, str]], ...] = (
    ("libx264", {"preset": "veryfast", "crf": "21"}),
    ("libopenh264", {"b": "4M"}),
    ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "crf": "32", "b": "0"}),
)
"""What every browser decodes: H.264, or VP9 where a build of FFmpeg has no encoder for that. The
first that is there is taken. The wheels of PyAV have all but the second."""


class Film:
    """Frames in, a file ending in .mp4 out, under its name when finish is called.

    Raises:
        PipelineError: there is no encoder for it.
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, rate: float) -> None:
        """rate: frames a second."""
        self.path = path
        self._rate = max(Fraction(rate).limit_denominator(1001), Fraction(1, 1001))
        self._container: OutputContainer | None = None
        self._stream: Any = None
        self._last, self._start = -1, 0.0  # the place of the last frame, the time of the first
        self._whole = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Drop what was written, unless finish was called."""
        if self._container is not None:
            container, self._container = self._container, None
            container.close()
        # As after an error; once finish has closed it, there is nothing left to drop.
        self._whole.__exit__(EOFError, EOFError(), None)

    def add(self, image: Image, seconds: float | None = None) -> None:
        """Write the next frame, (H, W, 3) uint8 RGB, all of one size.

        An odd last row or column is shown twice, as the codec needs even sides.
        seconds: when it is shown, of a source that left frames out: to the nearest 1 / rate, and
                 after the last one. None: 1 / rate after the last one
        """
        import av

        odd = image.shape[0] % 2, image.shape[1] % 2
        image = np.asarray(np.pad(image, ((0, odd[0]), (0, odd[1]), (0, 0)), "edge"), np.uint8)
        if self._container is None:
            self._begin((image.shape[0], image.shape[1]))
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        if seconds is not None:
            self._start = seconds if self._last < 0 else self._start
            self._last = max(self._last + 1, round((seconds - self._start) * self._rate))
            frame.pts, frame.time_base = self._last, 1 / self._rate
        self._mux(frame)

    def finish(self) -> None:
        """Put the file in its place; nothing happens without frames."""
        if self._container is None:
            return
        self._mux(None)
        container, self._container = self._container, None
        with _about(self.path):
            container.close()
        self._whole.close()

    def _begin(self, size: tuple[int, int]) -> None:
        import av

        temporary = self._whole.enter_context(whole_file(self.path))
        known = [(name, options) for name, options in _ENCODERS if name in av.codecs_available]
        if not known:
            raise PipelineError(
                f"{self.path} cannot be written: this build of FFmpeg encodes neither H.264 nor "
                "VP9. --no-video writes the results alone."
            )
        name, options = known[0]
        # The index in front, so that a film plays while it is still loading.
        self._container = av.open(
            str(temporary), "w", format="mp4", options={"movflags": "+faststart"}
        )
        self._stream = self._container.add_stream(name, rate=self._rate, options=options)
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = "yuv420p"

    def _mux(self, frame: Any) -> None:
        assert self._container is not None
        with _about(self.path):
            self._container.mux(self._stream.encode(frame))


@contextmanager
def _about(path: Path) -> Iterator[None]:
    """Turn what FFmpeg says of a file into an error that names it."""
    import av

    try:
        yield
    except av.FFmpegError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
