"""A step's batch, cut over workers and into the micro-batches that a worker takes in turn."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from idol.structures import ClipBatch, PairBatch, Side


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


Batch = PairBatch | ClipBatch


def cut(batch: Batch, size: int) -> list[Batch]:
    """The batch in micro-batches of so many pairs or clips (the last may have fewer), without
    copies."""
    return [batch.part(slice(i, i + size)) for i in range(0, len(batch), size)]


def joined_size(batches: Sequence[Batch]) -> tuple[int, int]:
    """The (H, W) that all the batches fit into."""
    shapes = [side.images.shape[2:] for batch in batches for side in batch.sides()]
    return max(h for h, _ in shapes), max(w for _, w in shapes)


def trimmed_size(batch: Batch, divisor: int) -> tuple[int, int]:
    """The (H, W), multiples of divisor, that a batch would have had if collated by itself."""
    used = torch.stack([(~side.padding).any(0) for side in batch.sides()]).any(0)
    sides = (int(torch.nonzero(used.any(1 - axis)).max()) + 1 for axis in (0, 1))
    height, width = (-(-side // divisor) * divisor for side in sides)
    return height, width


def resized(batch: Batch, size: tuple[int, int]) -> Batch:
    """The batch with padding added or taken away at the bottom and the right: (H, W) = size.

    Raises: ValueError: a picture does not fit into size.
    """
    sides = batch.sides()
    height, width = sides[0].images.shape[2:]
    if (height, width) == size:
        return batch
    grown = (0, max(0, size[1] - width), 0, max(0, size[0] - height))
    made = []
    for images, padding, targets in sides:
        if not padding[:, size[0] :].all() or not padding[:, :, size[1] :].all():
            raise ValueError(f"pictures of {height}x{width} with padding do not fit into {size}")
        cropped = [dataclasses.replace(t, masks=t.masks[:, : size[0], : size[1]]) for t in targets]
        images = F.pad(images, grown)[:, :, : size[0], : size[1]]
        padding = F.pad(padding, grown, value=True)[:, : size[0], : size[1]]
        made.append(Side(images, padding, cropped))
    return batch.with_sides(made)
