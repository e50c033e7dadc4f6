"""What a network of clips takes and gives: frames, the outputs of a clip, and its base class."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from idol.network.geometry import unpadded_sizes
from idol.network.layers import Network
from idol.structures import check_shape

Rows = Tensor | Sequence[int]
"""Object queries: a whole-number tensor (n,), or a list."""


@dataclass(frozen=True, slots=True, eq=False)
class ClipOutputs:
    """What a network says of one clip, by its last decoder layer. T frames.

    logits:     (Q, K) class logits, whose scores are sigmoids (SeqFormer); or (Q, K + 1), whose
                scores are a softmax and whose last class is "no object" (IFC)
    boxes:      (T, Q, 4) cxcywh in units of the un-padded frame; None where the network has none
    frames:     T
    mask_logits: (n,) int64 queries → (n, T, h, w) logits; called for the queries that need masks
    """

    logits: Tensor
    boxes: Tensor | None
    frames: int
    mask_logits: Callable[[Tensor], Tensor]

    def __post_init__(self) -> None:
        check_shape("logits", self.logits, "Q", "K")
        if self.boxes is not None:
            check_shape("boxes", self.boxes, self.frames, len(self.logits), 4)

    def __repr__(self) -> str:
        boxes = None if self.boxes is None else tuple(self.boxes.shape)
        return (
            f"ClipOutputs(frames={self.frames}, logits={tuple(self.logits.shape)}, boxes={boxes})"
        )

    def masks(self, rows: Rows) -> Tensor:
        """Mask logits of some object queries in all frames, at the network's own resolution.

        rows:    (n,) whole numbers in 0..Q-1, in any order, also none
        returns: (n, T, h, w) over the padded input: h = H/4 (SeqFormer) or ceil(H/8) (IFC)
        Raises: ValueError: rows are not such numbers.
        """
        index = torch.as_tensor(rows, device=self.logits.device)
        if len(index.shape) == 1 and len(index) == 0:
            index = index.long()
        if index.ndim != 1 or index.is_floating_point() or index.dtype == torch.bool:
            raise ValueError(
                "rows must be (n,) whole numbers, the object queries whose masks are wanted, got "
                f"{index.dtype} {tuple(index.shape)}. Of a mask of rows take .nonzero()[:, 0]."
            )
        queries = len(self.logits)
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < queries:
            raise ValueError(
                f"rows must lie in 0..{queries - 1}, got {int(index.min())}..{int(index.max())}"
            )
        return self.mask_logits(index.long())


@dataclass(frozen=True, slots=True, eq=False)
class ClipLayers:
    """The outputs of B clips of T frames by all D decoder layers, for training.

    logits:      (D, B, Q, K or K + 1)
    boxes:       (D, B, T, Q, 4); None where the network has none
    frames:      T
    mask_logits: layer, clip, (n,) int64 queries → (n, T, h, w) logits
    """

    logits: Tensor
    boxes: Tensor | None
    frames: int
    mask_logits: Callable[[int, int, Tensor], Tensor]

    def clip(self, index: int) -> ClipOutputs:
        """One clip by the last layer."""
        return ClipOutputs(
            logits=self.logits[-1, index],
            boxes=None if self.boxes is None else self.boxes[-1, index],
            frames=self.frames,
            mask_logits=lambda rows: self.mask_logits(len(self.logits) - 1, index, rows),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Frames:
    """What a network computes of every frame by itself: all fields begin with the N frames.

    Frames that several clips share are computed once. sizes: (N, 2) un-padded (height, width)
    """

    sizes: Tensor

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, part: slice) -> Self:
        fields = [field.name for field in dataclasses.fields(self)]
        return type(self)(**{name: getattr(self, name)[part] for name in fields})

    def followed_by(self, others: Self) -> Self:
        """These frames and then the others, of the same padded size."""
        fields = [field.name for field in dataclasses.fields(self)]
        both = {name: [getattr(self, name), getattr(others, name)] for name in fields}
        return type(self)(**{name: torch.cat(pair) for name, pair in both.items()})


class ClipNetwork(Network):
    """A network whose object queries each are one instance in all frames of a clip."""

    divisor: int
    """H and W of images are multiples of this."""

    @abstractmethod
    def frames(self, images: Tensor, padding: Tensor, length: int) -> Frames:
        """What needs one frame alone, of clips of `length` frames one after the other.

        images:  (N, 3, H, W) normalised, zero where padded
        padding: (N, H, W) bool, True where padded, at the bottom and the right
        length:  of a clip, a divisor of N
        """

    @abstractmethod
    def layers(self, frames: Frames, length: int) -> ClipLayers:
        """Outputs of the N / length clips that the N frames are, one after the other."""

    def forward(self, images: Tensor, padding: Tensor | None = None) -> ClipOutputs:
        """One clip: T frames of a video, in any number, in order of time.

        images:  (T, 3, H, W) normalised, zero where padded (SeqFormer: H, W multiples of 32)
        padding: (T, H, W) bool, True where padded, at the bottom and the right; None: nowhere
        Raises: ValueError: a shape or type is wrong, or padding lies elsewhere.
        """
        padding = self.checked(images, padding)
        return self.layers(self.frames(images, padding, len(images)), len(images)).clip(0)

    def checked(self, images: Tensor, padding: Tensor | None) -> Tensor:
        """The padding of images (N, 3, H, W), where both are as forward wants them; Raises: as it.

        padding: (N, H, W) bool; None: nowhere
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(
                "images must be (T, 3, H, W), normalised floating-point numbers, got "
                f"{images.dtype} {tuple(images.shape)}. See idol.images.transforms.normalise."
            )
        if 0 in images.shape:
            raise ValueError(f"a clip has frames with pixels, got images {tuple(images.shape)}")
        height, width = images.shape[2:]
        if height % self.divisor or width % self.divisor:
            raise ValueError(
                f"H and W must be multiples of {self.divisor}, got {(height, width)}. Pad with "
                "idol.images.transforms.collate_images, and say where in padding."
            )
        if padding is None:
            return images.new_zeros((len(images), height, width), dtype=torch.bool)
        if padding.shape != images[:, 0].shape or padding.dtype != torch.bool:
            raise ValueError(
                "padding must be (T, H, W) bool like the images, True where padded; got "
                f"{padding.dtype} {tuple(padding.shape)} beside images {tuple(images.shape)}."
            )
        sizes = unpadded_sizes(padding)
        if sizes.min() == 0 or not torch.equal(~padding, _inside(sizes, height, width)):
            raise ValueError(
                "padding must be whole rows at the bottom and whole columns at the right, and "
                "leave a picture in every frame. Is it True where padded?"
            )
        return padding


def _inside(sizes: Tensor, height: int, width: int) -> Tensor:
    """(N, H, W) bool, True within each size (height, width) of sizes (N, 2)."""
    rows = torch.arange(height, device=sizes.device) < sizes[:, :1]
    columns = torch.arange(width, device=sizes.device) < sizes[:, 1:]
    return rows[:, :, None] & columns[:, None, :]
