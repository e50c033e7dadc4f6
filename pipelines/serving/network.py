"""The network behind the server: frames of all streams share its batches, and it keeps none."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

import numpy as np
from ray import serve

from idol.detection.detector import Detector, Prepared, start_each
from idol.images import image_file
from idol.images.live import Image
from idol.segmenter import least_detections
from pipelines import configuration
from pipelines.serving.sessions import Found, Picture
from pipelines.stream import many
from pipelines.stream.many import Following


@serve.deployment
class Network:
    """A replica: it decodes frames, and detects what is in them.

    how:    weights, device, configuration
    batch:  frames in a batch at most
    window: seconds that a frame waits at most for others to share its batch
    pixels: of a frame at most
    """

    def __init__(self, how: Following, batch: int, window: float, pixels: int) -> None:
        import torch

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        model = many.load(how)
        assert model is not None, "a server has weights"
        config = configuration.changed(model.config, how.overrides, how.tracker)
        least = least_detections(config, config.tracker)
        self._detector = Detector(model, least, batch=batch)
        self._pixels = pixels
        self.detect.set_max_batch_size(batch)
        self.detect.set_batch_wait_timeout_s(window)

    @serve.batch  # type: ignore[untyped-decorator]
    async def detect(self, pictures: list[Picture]) -> list[Found]:
        """What is in each frame."""
        # In a thread: the replica answers meanwhile whether it is healthy, and takes in frames.
        return await asyncio.to_thread(self._detect, pictures)

    def _detect(self, pictures: Sequence[Picture]) -> list[Found]:
        read: list[Prepared | ValueError] = []
        for picture in pictures:
            try:
                read.append(self._detector.prepare(decode(picture, self._pixels)))
            except ValueError as error:
                read.append(error)
        prepared = [one for one in read if isinstance(one, Prepared)]
        done = iter(start_each(self._detector, prepared)())
        found = []
        for one in read:
            outcome = next(done) if isinstance(one, Prepared) else one
            if isinstance(one, Prepared) and not isinstance(outcome, ValueError):
                found.append(Found(outcome, one.size))
            else:
                found.append(Found(refused=str(outcome)))
        return found


def decode(picture: Picture, pixels: int) -> Image:
    """A frame as (H, W, 3) uint8 RGB.

    pixels: that it may have
    Raises: ValueError: it is no image, or has more.
    """

    def accept(size: tuple[int, int]) -> None:
        if size[0] * size[1] > pixels:
            raise ValueError(
                f"a frame may have {pixels} pixels, this one is {size[0]} x {size[1]} "
                "(height x width)"
            )

    if picture.size is None:
        return image_file.decode(picture.data, accept)
    accept(picture.size)
    height, width = picture.size
    if height < 1 or width < 1 or len(picture.data) != height * width * 3:
        raise ValueError(
            f"a raw frame of {height} x {width} (height x width) has {height * width * 3} bytes of "
            f"RGB, this one has {len(picture.data)}"
        )
    return np.frombuffer(picture.data, np.uint8).reshape(height, width, 3)
