"""Clip-consistent augmentation, resizing, padding and batching (specification 1.1, 4.1, 5.2)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from idol.arrays import Bools, Floats32, Ints
from idol.config import TransformConfig
from idol.structures import ClipBatch, Targets

MEAN = np.array([123.675, 116.28, 103.53], np.float32)
"""ImageNet mean of RGB in 0..255 (specification 1.1)."""
STD = np.array([58.395, 57.12, 57.375], np.float32)
"""ImageNet standard deviation."""
MEAN_BGR = np.array([103.53, 116.28, 123.675], np.float32)  # the same mean; deviation 1
_SMALLEST_SIDE = 1e-5  # of a box in pixels, as released

Image = npt.NDArray[np.uint8]


class Frame(NamedTuple):
    """One frame of a clip, with its G instances.

    image: (H, W, 3) uint8 RGB
    masks: (G, H, W) bool; empty where the instance is not visible
    boxes: (G, 4) float32 xyxy in pixels, as annotated; a row of NaN, and None for all rows: the box
           is the tight one of the mask
    """

    image: Image
    masks: Bools
    boxes: Floats32 | None = None


@dataclass(frozen=True, slots=True)
class Clip:
    """K frames with the same G instances in each, at original size; of a pair, the key is first.

    labels:     (G,) int64, 0..K-1
    identities: (G,) int64, as in Targets; None: not known
    """

    frames: tuple[Frame, ...]
    labels: Ints
    identities: Ints | None = None

    def __post_init__(self) -> None:
        count = len(self.labels)
        if not self.frames:
            raise ValueError("a clip must have a frame, got none")
        for number, (image, masks, boxes) in enumerate(self.frames):
            if image.ndim != 3 or image.shape[2] != 3:
                raise ValueError(f"image {number} must be (H, W, 3) RGB, got {image.shape}")
            wanted = (count, *image.shape[:2])
            if masks.shape != wanted:
                raise ValueError(f"masks of frame {number} must be {wanted}, got {masks.shape}")
            if boxes is not None and boxes.shape != (count, 4):
                raise ValueError(f"boxes of frame {number} must be ({count}, 4), got {boxes.shape}")
        if self.identities is not None and self.identities.shape != self.labels.shape:
            raise ValueError(
                f"identities must be ({count},) like labels, got {self.identities.shape}"
            )


@dataclass(frozen=True, slots=True)
class Example:
    """An augmented clip, ready to be batched.

    images:  K times (3, h, w) float32 normalised; frames may differ in size
    targets: the truth of each
    """

    images: tuple[Tensor, ...]
    targets: tuple[Targets, ...]


def resized_size(size: tuple[int, int], short_side: int, max_side: int) -> tuple[int, int]:
    """(height, width) with the shorter side at short_side and the longer at most max_side.

    Rounds half up like the released code (specification 4.1).
    """
    height, width = size
    scale = short_side / min(height, width)
    if scale * max(height, width) > max_side:
        scale = max_side / max(height, width)
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def inference_size(size: tuple[int, int], config: TransformConfig) -> tuple[int, int]:
    """(height, width) at which a frame of this size enters the network at inference."""
    if config.stretch is not None:
        return config.stretch
    return resized_size(size, config.test_short_side, config.test_max_side)


def _resize(image: Image, size: tuple[int, int]) -> Image:
    """uint8 (H, W, 3) → (h, w, 3), bilinear, averaging over the source pixels when it shrinks.

    The released code resizes with Pillow; torch's antialiased bilinear filter is the same (at most
    2 of 255 apart, in under 1 % of the values) and takes a third of the time. OpenCV has no such
    filter: INTER_LINEAR skips source pixels, INTER_AREA weighs them differently.
    """
    if image.shape[:2] == size:
        return image
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    resized = F.interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=True)
    out: Image = resized[0].permute(1, 2, 0).numpy()
    return out


def _resize_masks(masks: Bools, size: tuple[int, int]) -> Bools:
    """bool (G, H, W) → (G, h, w), nearest."""
    if masks.shape[1:] == size:
        return masks
    rows, columns = (
        np.minimum((np.arange(new) + 0.5) * old / new, old - 1).astype(np.intp)
        for new, old in zip(size, masks.shape[1:], strict=True)
    )
    # Not by [:, :, columns]: that is laid out column by column, which reducing it pays for.
    small: Bools = masks.take(rows, 1).take(columns, 2)
    return small


def _to_tensor(image: Image, pixels: Literal["rgb", "bgr"]) -> Tensor:
    # Plane by plane: numpy is five times slower where the last axis has three entries.
    planes = np.empty((3, *image.shape[:2]), np.float32)
    for channel, plane in enumerate(planes):
        if pixels == "bgr":
            plane[:] = image[:, :, 2 - channel]
            plane -= MEAN_BGR[channel]
            continue
        plane[:] = image[:, :, channel]
        plane -= MEAN[channel]
        plane /= STD[channel]
    return torch.from_numpy(planes)


def normalise(image: Image, config: TransformConfig) -> Tensor:
    """A frame (H, W, 3) uint8 RGB resized to the test size and normalised: (3, h, w) float32."""
    size = inference_size((image.shape[0], image.shape[1]), config)
    return _to_tensor(_resize(image, size), config.pixels)


def collate_images(images: Sequence[Tensor], divisor: int) -> tuple[Tensor, Tensor]:
    """Zero-pad images to one size at the bottom and right.

    images:  B tensors (3, h, w)
    returns: (B, 3, H, W), and (B, H, W) bool, True where padded; H, W multiples of divisor
    """
    height, width = (-(-max(x.shape[i] for x in images) // divisor) * divisor for i in (1, 2))
    batch = images[0].new_empty(len(images), 3, height, width)
    padding = torch.ones(len(images), height, width, dtype=torch.bool)
    for whole, padded, image in zip(batch, padding, images, strict=True):
        h, w = image.shape[1:]
        whole[:, :h, :w] = image
        whole[:, h:] = whole[:, :h, w:] = 0
        padded[:h, :w] = False
    return batch, padding


def make_targets(masks: Bools, labels: Ints, annotated: Floats32 | None = None) -> Targets:
    """Truth of one frame from un-padded masks (G, h, w); one with an empty mask is not present.

    Boxes are tight, right and bottom exclusive.

    annotated: (G, 4) xyxy in pixels, to use instead, cut to the frame; NaN: tight. An instance with
               nothing left of its box is not present.
    """
    masks = np.ascontiguousarray(masks)  # a flipped one is not, and takes ten times as long below
    count, height, width = masks.shape
    boxes = np.zeros((count, 4), np.float32)
    rows, columns, present = (np.asarray(masks.any(axis=axes)) for axes in (2, 1, (1, 2)))
    if count:
        x0, x1 = columns.argmax(1), width - columns[:, ::-1].argmax(1)
        y0, y1 = rows.argmax(1), height - rows[:, ::-1].argmax(1)
        scale = np.array([width, height, width, height], np.float32)
        corners = np.stack([x0, y0, x1, y1], 1)
        if annotated is not None:
            stated = np.clip(annotated, 0, scale)
            corners = np.where(np.isnan(stated), corners, stated)
            present = present & (corners[:, 2:] - corners[:, :2] > _SMALLEST_SIDE).all(1)
        x0, y0, x1, y1 = corners.T
        found = np.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], 1) / scale
        boxes[present] = found[present]
    return Targets(
        labels=torch.from_numpy(np.ascontiguousarray(labels)),
        boxes=torch.from_numpy(boxes),
        masks=torch.from_numpy(masks),
        present=torch.from_numpy(present),
    )


def augment(clip: Clip, config: TransformConfig, rng: np.random.Generator) -> Example:
    """Random crop, resize, flip and colour of a clip (specification 5.2; independent: 5.3)."""
    if config.independent:
        made = [_augment_frames([frame], clip.labels, config, rng)[0] for frame in clip.frames]
    else:
        made = _augment_frames(clip.frames, clip.labels, config, rng)
    if clip.identities is not None:
        identities = torch.from_numpy(clip.identities)
        made = [(image, replace(truth, identities=identities)) for image, truth in made]
    images, targets = zip(*made, strict=True)
    return Example(images, targets)


def _augment_frames(
    frames: Sequence[Frame], labels: Ints, config: TransformConfig, rng: np.random.Generator
) -> list[tuple[Tensor, Targets]]:
    """Augment frames of the same G instances with the same draws, except for crop windows."""
    if rng.random() < config.crop_probability:
        if config.crop_short_sides:
            side = int(rng.choice(config.crop_short_sides))
            frames = [_resize_frame(f, resized_size(_size(f), side, sys.maxsize)) for f in frames]
        window = _crop_window(frames[0].image.shape, config.crop_range, rng)
        cropped = []
        for index, frame in enumerate(frames):
            if index and not config.shared_crop:
                window = _crop_window(frame.image.shape, config.crop_range, rng)
            cropped.append(_crop(frame, window))
        frames = cropped
    if config.scale_jitter > 0:
        size = _size(frames[0])
        kept = [max(1, round(s * (1.0 - float(rng.uniform(0, config.scale_jitter))))) for s in size]
        window = _placed(size, kept, rng)
        frames = [_crop(frame, window) for frame in frames]
    short_side = int(rng.choice(config.train_short_sides))
    flip = rng.random() < config.flip_probability
    jitter = config.color_jitter
    color = rng.uniform(-jitter, jitter, 3).tolist() if jitter > 0 else None
    made = []
    for frame in frames:
        size = config.stretch or resized_size(_size(frame), short_side, config.train_max_side)
        image, masks, boxes = _resize_frame(frame, size)
        if flip:
            image, masks = image[:, ::-1], masks[:, :, ::-1]
            if boxes is not None:
                left, right = size[1] - boxes[:, 2], size[1] - boxes[:, 0]
                boxes = np.stack([left, boxes[:, 1], right, boxes[:, 3]], 1)
        tensor = _to_tensor(image, config.pixels)
        if color is not None:
            tensor = _recolor(tensor, *color)
        made.append((tensor, make_targets(masks, labels, boxes)))
    return made


def _size(frame: Frame) -> tuple[int, int]:
    return frame.image.shape[0], frame.image.shape[1]


def _resize_frame(frame: Frame, size: tuple[int, int]) -> Frame:
    boxes, old = frame.boxes, _size(frame)
    if boxes is not None:
        boxes = boxes * np.array([size[1] / old[1], size[0] / old[0]] * 2, np.float32)
    return Frame(_resize(frame.image, size), _resize_masks(frame.masks, size), boxes)


Window = tuple[int, int, int, int]
"""y, x, height, width of a part of a frame."""


def _crop_window(shape: Sequence[int], limits: tuple[int, int], rng: np.random.Generator) -> Window:
    """A random window with sides in limits, or the whole side if the frame is smaller."""
    low, high = limits
    sides = [int(rng.integers(min(side, low), min(side, high) + 1)) for side in shape[:2]]
    return _placed(shape, sides, rng)


def _placed(shape: Sequence[int], sides: Sequence[int], rng: np.random.Generator) -> Window:
    y, x = (int(rng.integers(0, shape[i] - sides[i] + 1)) for i in range(2))
    return y, x, sides[0], sides[1]


def _crop(frame: Frame, window: Window) -> Frame:
    (image, masks, boxes), (y, x, height, width) = frame, window
    if boxes is not None:
        boxes = boxes - np.array([x, y, x, y], np.float32)  # cut to the frame in the end
    rows, columns = slice(y, y + height), slice(x, x + width)
    return Frame(image[rows, columns], masks[:, rows, columns], boxes)


def _recolor(image: Tensor, brightness: float, contrast: float, saturation: float) -> Tensor:
    """Shift, scale and desaturate a normalised image (3, h, w); 0: no change."""
    grey = image.mean(0, keepdim=True)
    return (grey + (image - grey) * (1.0 + saturation)) * (1.0 + contrast) + brightness


def collate(examples: Sequence[Example], divisor: int) -> ClipBatch:
    """Batch clips of one length; images and masks are padded to one size, a multiple of divisor."""
    images, padding = collate_images([image for e in examples for image in e.images], divisor)
    size = (images.shape[2], images.shape[3])
    count = len(examples)
    return ClipBatch(
        images=images.reshape(count, -1, *images.shape[1:]),
        padding=padding.reshape(count, -1, *padding.shape[1:]),
        targets=[[_pad_targets(truth, size) for truth in e.targets] for e in examples],
    )


def _pad_targets(targets: Targets, size: tuple[int, int]) -> Targets:
    count, height, width = targets.masks.shape
    if (height, width) == size:
        return targets
    masks = torch.zeros(count, *size, dtype=torch.bool)
    masks[:, :height, :width] = targets.masks
    return replace(targets, masks=masks)
