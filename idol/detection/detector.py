"""Frames in, detections out: the network with pre-processing and post-processing.

detector = Detector(model, speed="fast")
frames = [detector.prepare(frame) for frame in batch]         # (H, W, 3) uint8 RGB
detections = detector.detect(frames, [0, 1, 2])
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from idol.arrays import Floats32
from idol.config import Config, Speed
from idol.detection.gpu_masks import from_logits, to_host
from idol.detection.postprocess import detections, frame_detections, select_queries
from idol.images.transforms import (
    MEAN,
    MEAN_BGR,
    STD,
    collate_images,
    inference_size,
    normalise,
)
from idol.network.fast import FastNetwork, Found
from idol.network.model import IDOL
from idol.structures import FrameDetections


@dataclass(frozen=True, slots=True)
class Prepared:
    """One frame, prepared for the detector.

    pixels:     (3, h, w) float32 normalised; or (H, W, 3) uint8 where the device normalises
    input_size: (h, w) at which it enters the network
    size:       (H, W) of the frame
    """

    pixels: Tensor
    input_size: tuple[int, int]
    size: tuple[int, int]

    @property
    def shape(self) -> tuple[tuple[int, ...], tuple[int, int]]:
        """Frames of equal shape can be in one batch."""
        return tuple(self.pixels.shape), self.input_size


class Detector:
    """Detections of single frames, of one or of many videos; it keeps no state between frames.

    model:    is put in eval mode. The detector works on its device
    config:   its sections transforms and detect are used. None: model.config
    speed:    as of DetectConfig.speed. None: config.detect.speed
    batch:    usual number of frames in a batch
    compiled: with fast, also torch.compile, see FastNetwork
    """

    def __init__(
        self,
        model: IDOL,
        config: Config | None = None,
        *,
        speed: Speed | None = None,
        batch: int = 1,
        compiled: bool = False,
    ) -> None:
        self.model = model.eval()
        self.config = model.config if config is None else config
        self.speed: Speed = self.config.detect.speed if speed is None else speed
        self.device = next(model.parameters()).device
        self._fast: FastNetwork | None = None
        if self.speed == "fast":
            self._fast = FastNetwork(model, batch=batch, compiled=compiled)
        self._on_device = self._fast is not None and self.device.type == "cuda"

    def prepare(self, frame: NDArray[np.uint8]) -> Prepared:
        """The work on a frame (H, W, 3) uint8 RGB that needs no device, in any thread."""
        size = (frame.shape[0], frame.shape[1])
        input_size = inference_size(size, self.config.transforms)
        if self._on_device:
            return Prepared(torch.from_numpy(np.ascontiguousarray(frame)), input_size, size)
        return Prepared(normalise(frame, self.config.transforms), input_size, size)

    def detect(self, frames: Sequence[Prepared], indices: Sequence[int]) -> list[FrameDetections]:
        """The detections of frames of one shape; indices: each one's place in its video, from 0.

        Raises: ValueError: outputs are not finite.
        """
        return self.start(frames, indices)()

    @torch.inference_mode()
    def start(
        self, frames: Sequence[Prepared], indices: Sequence[int]
    ) -> Callable[[], list[FrameDetections]]:
        """As detect, but return before a GPU is done; call the result to get the detections.

        Start the next batch before that call, so that the device never waits for the host. Finish
        batches in the order in which they were started.
        """
        if len({frame.shape for frame in frames}) != 1 or len(frames) != len(indices):
            raise ValueError(
                f"frames must be of one shape and have an index each, got {len(frames)} of shapes "
                f"{sorted({frame.shape for frame in frames})} and {len(indices)} indices"
            )
        if self._fast is None:
            done = self._exact(frames, indices)
            return lambda: done
        found = self._fast(self._images(frames), frames[0].input_size)
        host = [to_host(tensor) for tensor in (found.scores, found.labels, found.boxes)]
        ready: torch.cuda.Event | None = None
        if self._on_device:
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record()
        return lambda: self._finish(frames, indices, found, host, ready)

    def _exact(self, frames: Sequence[Prepared], indices: Sequence[int]) -> list[FrameDetections]:
        divisor, detect = self.config.transforms.size_divisor, self.config.detect
        images, padding = collate_images([frame.pixels for frame in frames], divisor)
        outputs = self.model(images.to(self.device), padding.to(self.device))
        return [
            detections(outputs, self.model, b, index, frame.input_size, frame.size, detect)
            for b, (frame, index) in enumerate(zip(frames, indices, strict=True))
        ]

    def _images(self, frames: Sequence[Prepared]) -> Tensor:
        """(B, 3, H, W) on the device, normalised and padded."""
        transforms = self.config.transforms
        divisor = transforms.size_divisor
        if not self._on_device:
            return collate_images([frame.pixels for frame in frames], divisor)[0].to(self.device)
        shape = (len(frames), *frames[0].pixels.shape)
        pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        for place, frame in zip(pixels, frames, strict=True):
            place.copy_(frame.pixels)
        uploaded = pixels.to(self.device, non_blocking=True)
        return on_device(uploaded, frames[0].input_size, divisor, transforms.pixels)

    @torch.inference_mode()
    def _finish(
        self,
        frames: Sequence[Prepared],
        indices: Sequence[int],
        found: Found,
        host: list[Tensor],
        ready: torch.cuda.Event | None,
    ) -> list[FrameDetections]:
        assert self._fast is not None
        detect = self.config.detect
        if ready is not None:
            ready.synchronize()
        scores, labels, boxes = (tensor.numpy() for tensor in host)
        _check_finite(scores)
        rows = [select_queries(*each, detect) for each in zip(scores, labels, boxes, strict=True)]
        counts = [len(r) for r in rows]
        # Image and query of every detection, in one upload.
        images = np.repeat(np.arange(len(rows)), counts)
        chosen = torch.from_numpy(np.stack([images, np.concatenate(rows)]))
        # In a stream of its own, so as not to wait for the next batch.
        side = _side_stream(self.device) if self.device.type == "cuda" else None
        with torch.cuda.stream(side):
            pinned = chosen if side is None else chosen.pin_memory()
            where = pinned.to(self.device, non_blocking=True)
            logits = self._fast.mask_logits(found, where[0], where[1])
            of_classes = to_host(found.class_scores[where[0], where[1]])
            embeddings = to_host(found.embeddings[where[0], where[1]])
            sizes = [(frame.input_size, frame.size) for frame in frames]
            overlaps, strings = from_logits(logits, counts, sizes, detect.mask_resize)
            if side is not None:
                side.synchronize()
        ends = np.cumsum(counts)
        # Cloned: a view of one frame would keep the memory of the whole batch.
        return [
            frame_detections(
                index,
                of_classes[end - count : end].clone(),
                torch.from_numpy(boxes[b, rows[b]]),
                embeddings[end - count : end].clone(),
                overlaps[b],
                strings[b],
                frames[b].size,
            )
            for b, (index, end, count) in enumerate(zip(indices, ends, counts, strict=True))
        ]


Outcome = FrameDetections | ValueError
"""What became of a frame among others: its detections, or why there are none."""


def start_each(detector: Detector, frames: Sequence[Prepared]) -> Callable[[], list[Outcome]]:
    """As Detector.start, of frames of any shapes, whose index is 0: those of one shape share a
    batch, and a frame whose outputs are not finite costs the others nothing."""
    shapes: dict[object, list[int]] = {}
    for place, frame in enumerate(frames):
        shapes.setdefault(frame.shape, []).append(place)
    batches = [(rows, _start_same(detector, [frames[i] for i in rows])) for rows in shapes.values()]

    def finish() -> list[Outcome]:
        found: dict[int, Outcome] = {}
        for rows, done in batches:
            found |= zip(rows, done(), strict=True)
        return [found[place] for place in range(len(frames))]

    return finish


def _start_same(detector: Detector, frames: Sequence[Prepared]) -> Callable[[], list[Outcome]]:
    """start_each, of frames of one shape."""
    done: Callable[[], list[FrameDetections]] | None = None
    with contextlib.suppress(ValueError):
        done = detector.start(frames, [0] * len(frames))

    def finish() -> list[Outcome]:
        if done is not None:
            with contextlib.suppress(ValueError):
                return [*done()]
        found: list[Outcome] = []
        for frame in frames:
            try:
                found += detector.detect([frame], [0])
            except ValueError as error:
                found.append(error)
        return found

    return finish


def _check_finite(scores: Floats32) -> None:
    broken = np.argwhere(np.isnan(scores))
    if len(broken):
        image, query = broken[0]
        raise ValueError(
            f"class logits and boxes must be finite, but {len(broken)} of {scores.size} object "
            f"queries are not; the first is query {query} of image {image}. Check the weights and "
            "the input, or use speed exact."
        )


@functools.lru_cache(maxsize=16)
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]


@functools.lru_cache(maxsize=16)
def statistics(device: torch.device, order: Literal["rgb", "bgr"]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the pixels in this order, (3, 1, 1) each."""
    values = (MEAN, STD) if order == "rgb" else (MEAN_BGR, np.ones_like(STD))
    mean, std = (torch.from_numpy(v)[:, None, None].to(device) for v in values)
    return mean, std


def on_device(
    pixels: Tensor, input_size: tuple[int, int], divisor: int, order: Literal["rgb", "bgr"]
) -> Tensor:
    """Resize, normalise and pad on the device of pixels; differs from normalise by at most 1/255.

    pixels:     (B, H, W, 3) uint8 RGB
    input_size: (h, w)
    order:      transforms.pixels
    returns:    (B, 3, H', W') float32, H' and W' multiples of divisor, zero where padded
    """
    images = (pixels if order == "rgb" else pixels.flip(3)).permute(0, 3, 1, 2).float()
    if images.shape[2:] != input_size:
        images = F.interpolate(images, input_size, mode="bilinear", antialias=True)
        images = images.round_().clamp_(0, 255)
    mean, std = statistics(pixels.device, order)
    height, width = (-(-side // divisor) * divisor for side in input_size)
    return F.pad((images - mean) / std, (0, width - input_size[1], 0, height - input_size[0]))
