"""An mp4 written frame by frame, which appears when it is whole."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import cv2

from pipelines.errors import PipelineError
from pipelines.sources.frames import Image

_CODEC = "mp4v"  # the one that every build of OpenCV can write


class Film:
    """Frames in, a video file out, under its name when finish is called.

    path: of the file, ending in .mp4
    rate: frames a second
    Errors: PipelineError where it cannot be written
    """

    def __init__(self, path: Path, rate: float) -> None:
        self.path = path
        self._rate = rate
        self._writer: Any = None
        self._temporary: Path | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Drop what was written, unless finish was called."""
        self._release()
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)

    def add(self, image: Image) -> None:
        """Write the next frame, (H, W, 3) uint8 RGB, all of one size.

        An odd last row or column is cut off, as the codec has none.
        """
        if self._writer is None:
            handle, name = tempfile.mkstemp(
                dir=self.path.parent, prefix=f".{self.path.stem}.", suffix=self.path.suffix
            )
            os.close(handle)
            self._temporary = Path(name)
            fourcc = cv2.VideoWriter.fourcc(*_CODEC)
            height, width = image.shape[:2]
            self._writer = cv2.VideoWriter(name, fourcc, self._rate, (width, height))
            if not self._writer.isOpened():
                raise PipelineError(
                    f"{self.path} cannot be written: this OpenCV has no encoder for {width} x "
                    f"{height} mp4. --no-video writes the results alone."
                )
        self._writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))

    def finish(self) -> None:
        """Put the file in its place; nothing happens without frames."""
        self._release()
        if self._temporary is None:
            return
        # OpenCV does not say when a write failed.
        if self._temporary.stat().st_size == 0:
            raise PipelineError(f"{self.path} could not be written. Is the disk full?")
        # mkstemp makes private files; a film is as readable as any other file.
        umask = os.umask(0)
        os.umask(umask)
        self._temporary.chmod(0o666 & ~umask)
        self._temporary.replace(self.path)
        self._temporary = None

    def _release(self) -> None:
        if self._writer is not None:
            self._writer.release()
            self._writer = None
