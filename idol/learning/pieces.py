"""A step's batch, cut over workers and into the micro-batches that a worker takes in turn."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from idol.structures import PairBatch, Targets


def part_of_batch(pairs: int, rank: int, workers: int) -> range:
    """Which pairs of a step's batch a worker has: parts that differ by one pair at most.

    Raises: ValueError: a worker would have none.
    """
    if not 0 <= rank < workers <= pairs:
        raise ValueError(
            f"a batch of {pairs} pairs is for 1..{pairs} workers, got worker {rank} of {workers}. "
            "Use fewer workers, or more train.pairs_per_batch."
        )
    return range(rank * pairs // workers, (rank + 1) * pairs // workers)


def cut(batch: PairBatch, size: int) -> list[PairBatch]:
    """The batch in micro-batches of so many pairs (the last may have fewer), without copies."""
    count = len(batch.key_images)
    fields = [f.name for f in dataclasses.fields(batch)]
    return [
        PairBatch(**{name: getattr(batch, name)[i : i + size] for name in fields})
        for i in range(0, count, size)
    ]


def joined_size(batches: Sequence[PairBatch]) -> tuple[int, int]:
    """The (H, W) that all the batches fit into."""
    shapes = [b.key_images.shape[2:] for b in batches]
    return max(h for h, _ in shapes), max(w for _, w in shapes)


def trimmed_size(batch: PairBatch, divisor: int) -> tuple[int, int]:
    """The (H, W), multiples of divisor, that a batch would have had if collated by itself."""
    used = ~torch.cat([batch.key_padding, batch.reference_padding]).all(0)
    sides = (int(torch.nonzero(used.any(1 - axis)).max()) + 1 for axis in (0, 1))
    height, width = (-(-side // divisor) * divisor for side in sides)
    return height, width


def resized(batch: PairBatch, size: tuple[int, int]) -> PairBatch:
    """The batch with padding added or taken away at the bottom and the right: (H, W) = size.

    Raises: ValueError: a picture does not fit into size.
    """
    height, width = batch.key_images.shape[2:]
    if (height, width) == size:
        return batch
    grown = (0, max(0, size[1] - width), 0, max(0, size[0] - height))
    fields: dict[str, object] = {}
    for side in ("key", "reference"):
        padding = getattr(batch, f"{side}_padding")
        if not padding[:, size[0] :].all() or not padding[:, :, size[1] :].all():
            raise ValueError(f"pictures of {height}x{width} with padding do not fit into {size}")
        images = F.pad(getattr(batch, f"{side}_images"), grown)
        fields[f"{side}_images"] = images[:, :, : size[0], : size[1]]
        fields[f"{side}_padding"] = F.pad(padding, grown, value=True)[:, : size[0], : size[1]]
        targets: list[Targets] = getattr(batch, f"{side}_targets")
        fields[f"{side}_targets"] = [
            dataclasses.replace(t, masks=t.masks[:, : size[0], : size[1]]) for t in targets
        ]
    return PairBatch(**fields)  # type: ignore[arg-type]
