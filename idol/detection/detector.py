"""Frames in, detections out: the network with pre-processing and post-processing.

detector = Detector(model, speed="fast")
frames = [detector.prepare(frame) for frame in batch]         # (H, W, 3) uint8 RGB
detections = detector.detect(frames, [0, 1, 2])
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from idol.arrays import Floats32, Ints
from idol.config import Config, Speed
from idol.detection.gpu_masks import from_logits, to_host
from idol.detection.postprocess import detections, frame_detections, select_queries
from idol.images.transforms import MEAN, STD, collate_images, inference_size, normalise
from idol.network.fast import FastNetwork, Found
from idol.network.model import IDOL
from idol.structures import FrameDetections

__all__ = ["Detector", "Prepared"]


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

    model:    in eval mode; is not changed. The detector works on its device
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
        self._fast = (
            FastNetwork(model, batch=batch, compiled=compiled) if self.speed == "fast" else None
        )
        self._on_device = self._fast is not None and self.device.type == "cuda"

    def prepare(self, frame: NDArray[np.uint8]) -> Prepared:
        """The part of the work that needs no device; any thread may do it beforehand.

        frame: (H, W, 3) uint8 RGB
        """
        size = (frame.shape[0], frame.shape[1])
        input_size = inference_size(size, self.config.transforms)
        if self._on_device:
            return Prepared(torch.from_numpy(np.ascontiguousarray(frame)), input_size, size)
        return Prepared(normalise(frame, self.config.transforms), input_size, size)

    def detect(self, frames: Sequence[Prepared], indices: Sequence[int]) -> list[FrameDetections]:
        """The detections of every frame.

        frames:  B frames of one shape
        indices: position of each in its video, from 0
        Raises: ValueError: outputs are not finite.
        """
        return self.start(frames, indices)()

    @torch.inference_mode()
    def start(
        self, frames: Sequence[Prepared], indices: Sequence[int]
    ) -> Callable[[], list[FrameDetections]]:
        """As detect, but return before a GPU is done; call the result to get the detections.

        If the next batch is started before that call, the device never waits for the host. Finish
        batches in the order in which they were started.
        """
        if len({frame.shape for frame in frames}) != 1 or len(frames) != len(indices):
            raise ValueError(
                f"frames must be of one shape and have an index each, got {len(frames)} of shapes "
                f"{sorted({frame.shape for frame in frames})} and {len(indices)} indices"
            )
        if self._fast is None:
            found = self._exact(frames, indices)
            return lambda: found
        begun = _Begun(self._fast(self._images(frames), frames[0].input_size))
        return lambda: self._finish(frames, indices, begun)

    def _exact(self, frames: Sequence[Prepared], indices: Sequence[int]) -> list[FrameDetections]:
        divisor = self.config.transforms.size_divisor
        images, padding = collate_images([frame.pixels for frame in frames], divisor)
        outputs = self.model(images.to(self.device), padding.to(self.device))
        return [
            detections(
                outputs, self.model, image, index, frame.input_size, frame.size, self.config.detect
            )
            for image, (frame, index) in enumerate(zip(frames, indices, strict=True))
        ]

    def _images(self, frames: Sequence[Prepared]) -> Tensor:
        """(B, 3, H, W) on the device, normalised and padded."""
        divisor = self.config.transforms.size_divisor
        if not self._on_device:
            return collate_images([frame.pixels for frame in frames], divisor)[0].to(self.device)
        shape = (len(frames), *frames[0].pixels.shape)
        pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        for place, frame in zip(pixels, frames, strict=True):
            place.copy_(frame.pixels)
        return on_device(pixels.to(self.device, non_blocking=True), frames[0].input_size, divisor)

    @torch.inference_mode()
    def _finish(
        self, frames: Sequence[Prepared], indices: Sequence[int], begun: _Begun
    ) -> list[FrameDetections]:
        assert self._fast is not None
        detect, found = self.config.detect, begun.found
        scores, labels, boxes = begun.wait()
        rows = [select_queries(*each, detect) for each in zip(scores, labels, boxes, strict=True)]
        counts = [len(r) for r in rows]
        queries = np.concatenate(rows)
        images = np.repeat(np.arange(len(rows)), counts)
        with begun.stream():
            # Image and query of every detection, in one upload.
            where = _to_device(np.stack([images, queries]), self.device)
            logits = self._fast.mask_logits(found, where[0], where[1])
            of_classes = to_host(found.class_scores[where[0], where[1]])
            embeddings = to_host(found.embeddings[where[0], where[1]])
            sizes = [(frame.input_size, frame.size) for frame in frames]
            overlaps, strings = from_logits(logits, counts, sizes, detect.mask_resize)
            begun.synchronise()
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


class _Begun:
    """A pass whose scores and boxes are being copied to the host while the device works on."""

    def __init__(self, found: Found) -> None:
        self.found = found
        self._device = found.scores.device
        self._host = [to_host(tensor) for tensor in (found.scores, found.labels, found.boxes)]
        self._ready: torch.cuda.Event | None = None
        if self._device.type == "cuda":
            self._ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._ready.record()

    def wait(self) -> tuple[Floats32, Ints, Floats32]:
        """Best scores and their classes (B, Q), boxes (B, Q, 4) cxcywh.

        Raises: ValueError: outputs are not finite.
        """
        if self._ready is not None:
            self._ready.synchronize()
        scores, labels, boxes = (tensor.numpy() for tensor in self._host)
        if np.isnan(scores).any():
            image, query = np.argwhere(np.isnan(scores))[0]
            raise ValueError(
                f"class logits and boxes must be finite, but {int(np.isnan(scores).sum())} of "
                f"{scores.size} object queries are not; the first is query {query} of image "
                f"{image}. Check the weights and the input, or use speed exact."
            )
        return scores, labels, boxes

    def stream(self) -> AbstractContextManager[object]:
        """The stream in which to use the outputs, so as not to wait for the next batch."""
        if self._device.type != "cuda":
            return nullcontext()
        return torch.cuda.stream(_side_stream(self._device))

    def synchronise(self) -> None:
        """Wait for the work in that stream."""
        if self._device.type == "cuda":
            _side_stream(self._device).synchronize()


@functools.lru_cache(maxsize=16)
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]


@functools.lru_cache(maxsize=16)
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the pixels, (3, 1, 1) each."""
    mean, std = (torch.from_numpy(v)[:, None, None].to(device) for v in (MEAN, STD))
    return mean, std


def _to_device(array: Ints, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def on_device(pixels: Tensor, input_size: tuple[int, int], divisor: int) -> Tensor:
    """Resize, normalise and pad on the device of pixels; differs from normalise by at most 1/255.

    pixels:     (B, H, W, 3) uint8
    input_size: (h, w)
    returns:    (B, 3, H', W') float32, H' and W' multiples of divisor, zero where padded
    """
    images = pixels.permute(0, 3, 1, 2).float()
    if images.shape[2:] != input_size:
        images = F.interpolate(
            images, input_size, mode="bilinear", align_corners=False, antialias=True
        )
        images = images.round_().clamp_(0, 255)
    mean, std = _statistics(pixels.device)
    height, width = (-(-side // divisor) * divisor for side in input_size)
    return F.pad((images - mean) / std, (0, width - input_size[1], 0, height - input_size[0]))
