"""The data that rooms exchange, checked when made. Letters in shapes, the same everywhere:

B images          Q object queries     K categories           C channels
D decoder layers  L feature levels     P sampling points      G true instances
N detections of a frame                M instances in memory
T remembered embeddings                H, W pixels
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

if TYPE_CHECKING:  # detections of an exported network are tracked without torch
    import torch
    from torch import Tensor


def check_shape(name: str, tensor: Tensor, *shape: int | str) -> None:
    """Raise ValueError unless tensor has this shape; a string stands for any size."""
    if tensor.ndim != len(shape) or any(
        isinstance(want, int) and want != have
        for want, have in zip(shape, tensor.shape, strict=True)
    ):
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"{name} must have shape ({wanted}), got {tuple(tensor.shape)}")


def _is_array(value: Any) -> bool:
    return hasattr(value, "dtype") and hasattr(value, "shape")


class _Shapes:
    """Mixin: a repr that prints shapes instead of numbers, and `.to(device)`."""

    __slots__ = ()

    def __repr__(self) -> str:
        parts = []
        for f in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if _is_array(value):
                value = f"{str(value.dtype).removeprefix('torch.')}{tuple(value.shape)}"
            elif isinstance(value, tuple | list) and len(value) > 4:
                value = f"<{len(value)} items>"
            parts.append(f"{f.name}={value}")
        return f"{type(self).__name__}({', '.join(parts)})"

    def to(self, device: torch.device | str) -> Self:
        """A copy with every tensor on device."""

        def move(value: Any) -> Any:
            if isinstance(value, _Shapes) or _is_array(value):
                return value.to(device)
            if isinstance(value, list):
                return [move(v) for v in value]
            return value

        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        moved = {f.name: move(getattr(self, f.name)) for f in fields}
        return dataclasses.replace(self, **moved)  # type: ignore[type-var]


@dataclass(frozen=True, slots=True, repr=False)
class Targets(_Shapes):
    """One frame's truth. Rows of all frames of a clip are the same G instances.

    labels:     (G,)      int64, 0..K-1
    boxes:      (G, 4)    float32, cxcywh in units of the un-padded image
    masks:      (G, H, W) bool, un-padded or padded size
    present:    (G,)      bool, False where the instance is not visible in this frame
    identities: (G,)      int64, numbers in the training set; -1: not known (default)
    """

    labels: Tensor
    boxes: Tensor
    masks: Tensor
    present: Tensor
    identities: Tensor = None  # type: ignore[assignment]  # set in __post_init__

    def __post_init__(self) -> None:
        count = len(self.labels)
        if self.identities is None:
            object.__setattr__(self, "identities", -self.labels.new_ones(self.labels.shape))
        check_shape("labels", self.labels, "G")
        check_shape("boxes", self.boxes, count, 4)
        check_shape("masks", self.masks, count, "H", "W")
        check_shape("present", self.present, count)
        check_shape("identities", self.identities, count)


class Side(NamedTuple):
    """Frames of a batch: images (N, 3, H, W), padding (N, H, W) and the truth of each."""

    images: Tensor
    padding: Tensor
    targets: list[Targets]


@dataclass(frozen=True, slots=True, repr=False)
class PairBatch(_Shapes):
    """B key frames with their B reference frames.

    *_images:  (B, 3, H, W) float32, normalised, zero where padded
    *_padding: (B, H, W)    bool, True where padded
    *_targets: B Targets, masks of the padded size (H, W)
    """

    key_images: Tensor
    key_padding: Tensor
    key_targets: list[Targets]
    reference_images: Tensor
    reference_padding: Tensor
    reference_targets: list[Targets]

    def __post_init__(self) -> None:
        size = len(self.key_images)
        for name in ("key", "reference"):
            images = getattr(self, f"{name}_images")
            check_shape(f"{name}_images", images, size, 3, "H", "W")
            check_shape(
                f"{name}_padding", getattr(self, f"{name}_padding"), size, *images.shape[2:]
            )
            if len(getattr(self, f"{name}_targets")) != size:
                raise ValueError(f"{name}_targets must have {size} entries, one per image")

    def __len__(self) -> int:
        return len(self.key_images)

    def part(self, rows: slice) -> PairBatch:
        """Some of the pairs, without copies."""
        names = [f.name for f in dataclasses.fields(self)]
        return PairBatch(**{name: getattr(self, name)[rows] for name in names})

    def sides(self) -> list[Side]:
        """The key frames, and the reference frames."""
        key = Side(self.key_images, self.key_padding, self.key_targets)
        return [key, Side(self.reference_images, self.reference_padding, self.reference_targets)]

    def with_sides(self, sides: Sequence[Side]) -> PairBatch:
        """The same pairs with other images, as `sides` gives them."""
        return PairBatch(*sides[0], *sides[1])


@dataclass(frozen=True, slots=True, repr=False)
class ClipBatch(_Shapes):
    """B clips of K frames, of the same instances in every frame of a clip (door 2).

    images:  (B, K, 3, H, W) float32, normalised, zero where padded
    padding: (B, K, H, W)    bool, True where padded
    targets: B lists of K Targets, masks of the padded size (H, W)
    """

    images: Tensor
    padding: Tensor
    targets: list[list[Targets]]

    def __post_init__(self) -> None:
        check_shape("images", self.images, "B", "K", 3, "H", "W")
        size, frames = self.images.shape[:2]
        check_shape("padding", self.padding, size, frames, *self.images.shape[3:])
        counts = [len(clip) for clip in self.targets]
        if counts != [frames] * size:
            raise ValueError(f"targets must be {size} lists of {frames}, got lists of {counts}")

    def __len__(self) -> int:
        return len(self.images)

    def part(self, rows: slice) -> ClipBatch:
        """Some of the clips, without copies."""
        return ClipBatch(self.images[rows], self.padding[rows], self.targets[rows])

    def sides(self) -> list[Side]:
        """All frames, clip after clip."""
        targets = [frame for clip in self.targets for frame in clip]
        return [Side(self.images.flatten(0, 1), self.padding.flatten(0, 1), targets)]

    def with_sides(self, sides: Sequence[Side]) -> ClipBatch:
        """The same clips with other images, as `sides` gives them."""
        ((images, padding, targets),) = sides
        clips, frames = self.images.shape[:2]
        return ClipBatch(
            images.reshape(clips, frames, *images.shape[1:]),
            padding.reshape(clips, frames, *padding.shape[1:]),
            [targets[i : i + frames] for i in range(0, len(targets), frames)],
        )

    def pairs(self) -> PairBatch:
        """Clips of two frames as pairs. Raises: ValueError: they have more."""
        if self.images.shape[1] != 2:
            raise ValueError(
                f"a pair has 2 frames, these clips have {self.images.shape[1]}. Read clips with "
                "pairs.clip=2."
            )
        return PairBatch(
            key_images=self.images[:, 0],
            key_padding=self.padding[:, 0],
            key_targets=[clip[0] for clip in self.targets],
            reference_images=self.images[:, 1],
            reference_padding=self.padding[:, 1],
            reference_targets=[clip[1] for clip in self.targets],
        )


@dataclass(frozen=True, slots=True, repr=False)
class Outputs(_Shapes):
    """The network's outputs for B images (door 3).

    logits:        (D, B, Q, K) class logits of every decoder layer
    boxes:         (D, B, Q, 4) cxcywh in units of the un-padded image
    references:    (D, B, Q, 2) reference points, origins of relative coordinates of masks (1.9)
    refined:       (B, Q, 4)    the last layer's refined reference box, detached (3.2)
    embeddings:    (B, Q, C)    contrastive embeddings
    mask_features: (B, 8, H/8, W/8)
    states:        (D, B, Q, C) decoder states
    controller:    states → dynamic mask parameters (169); called only for queries that need a mask
    sizes:         (B, 2)       un-padded (height, width) in pixels
    dense_logits:  None, or (B, S, K) per encoder token (training with dense_auxiliary)
    level_shapes:  [(h, w), ...] of the L feature levels
    identity_head: None, or embeddings (..., C) → logits (..., num_identities)
    """

    logits: Tensor
    boxes: Tensor
    references: Tensor
    refined: Tensor
    embeddings: Tensor
    mask_features: Tensor
    states: Tensor
    sizes: Tensor
    controller: Callable[[Tensor], Tensor]
    dense_logits: Tensor | None = None
    level_shapes: tuple[tuple[int, int], ...] = ()
    identity_head: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True, slots=True, repr=False)
class FrameDetections(_Shapes):
    """The detections of a frame (door 4). Rows in descending score.

    Of an exported network (idol.detection.exported) they are numpy arrays instead of tensors.

    frame_index:  position in the video, from 0
    scores:       (N,)   best class score
    class_scores: (N, K) sigmoid scores of every class
    embeddings:   (N, C)
    overlaps:     (N, N) float32 mask IoU at the resolution of mask logits, smoothed by 1e-6 (4.3)
    boxes:        (N, 4) xyxy, pixels of the original frame
    masks:        N compressed RLE counts at the original size; or () without masks
    time:         of the frame in seconds, for trackers that use it; None: not known
    """

    frame_index: int
    scores: Tensor
    class_scores: Tensor
    embeddings: Tensor
    overlaps: Tensor
    boxes: Tensor
    masks: tuple[bytes, ...] = ()
    time: float | None = None

    def __post_init__(self) -> None:
        count = len(self.scores)
        check_shape("scores", self.scores, "N")
        check_shape("class_scores", self.class_scores, count, "K")
        check_shape("embeddings", self.embeddings, count, "C")
        check_shape("overlaps", self.overlaps, count, count)
        check_shape("boxes", self.boxes, count, 4)
        if len(self.masks) not in (0, count):
            raise ValueError(f"masks must be empty or have {count} entries, got {len(self.masks)}")

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True, slots=True, repr=False)
class Track(_Shapes):
    """One identity of a video (door 5).

    track_id:     unique in the video
    detections:   frame_index -> row of that frame's FrameDetections
    class_scores: (K,) mean over its frames
    """

    track_id: int
    detections: dict[int, int]
    class_scores: Tensor
