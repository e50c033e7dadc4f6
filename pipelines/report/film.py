"""An mp4 written frame by frame, which appears when it is whole."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np

from idol.files import whole_file
from pipelines.errors import PipelineError
from pipelines.sources.frames import Image

_CODEC = "mp4v"  # the one that every build of OpenCV can write


class Film:
    """Frames in, a file ending in .mp4 out, under its name when finish is called.

    Raises:
        PipelineError: the file cannot be written.
    """

    def __init__(self, path: Path, rate: float) -> None:
        """rate: frames a second."""
        self.path = path
        self._rate = rate
        self._writer: Any = None
        self._temporary = path
        self._whole = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Drop what was written, unless finish was called."""
        self._release()
        # As after an error; once finish has closed it, there is nothing left to drop.
        self._whole.__exit__(EOFError, EOFError(), None)

    def add(self, image: Image) -> None:
        """Write the next frame, (H, W, 3) uint8 RGB, all of one size.

        An odd last row or column is shown twice, as the codec needs even sides.
        """
        odd = image.shape[0] % 2, image.shape[1] % 2
        image = np.asarray(np.pad(image, ((0, odd[0]), (0, odd[1]), (0, 0)), "edge"), np.uint8)
        if self._writer is None:
            self._temporary = self._whole.enter_context(whole_file(self.path))
            height, width = image.shape[:2]
            codec, size = cv2.VideoWriter.fourcc(*_CODEC), (width, height)
            self._writer = cv2.VideoWriter(str(self._temporary), codec, self._rate, size)
            if not self._writer.isOpened():
                raise PipelineError(
                    f"{self.path} cannot be written: this OpenCV has no encoder for {width} x "
                    f"{height} mp4. --no-video writes the results alone."
                )
        self._writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))

    def finish(self) -> None:
        """Put the file in its place; nothing happens without frames."""
        if self._writer is None:
            return
        self._release()
        # OpenCV does not say when a write failed.
        if self._temporary.stat().st_size == 0:
            raise PipelineError(f"{self.path} could not be written. Is the disk full?")
        self._whole.close()

    def _release(self) -> None:
        if self._writer is not None:
            self._writer.release()
            self._writer = None
