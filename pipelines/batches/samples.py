"""What every form of stored data gives to the loader."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from idol.arrays import Ints
from idol.images.transforms import Clip
from pipelines.errors import VideoError, intact
from pipelines.storage.paths import AnyPath

Identities = Mapping[tuple[int, int], int]
"""(video_id, instance_id) → the instance's number among all of the training set."""


class Sample(NamedTuple):
    """A clip as stored.

    rng:         draws its augmentation: seeded by what it is, not by who reads it
    independent: in the place of transforms.independent; None: as the configuration says
    """

    clip: Clip
    rng: np.random.Generator
    independent: bool | None = None


class Samples(Protocol):
    """A finished directory, read in an order that the number of workers does not change."""

    def __len__(self) -> int:
        """What is stored and can be drawn, in units of its own; 0: nothing."""

    def stream(self, rank: int, step: int) -> Iterator[Callable[[], Sample]]:
        """What the rank-th place of a batch has from a step on, without end.

        The functions decode, in any thread. They raise ManifestError where the data is damaged.
        """

    def name(self, rank: int, step: int) -> str:
        """Which frames that place has at a step, for a message."""


def instances_of(
    videos: pa.Array, lists: pa.ListArray, instance_ids: pa.Array
) -> set[tuple[int, int]]:
    """(video_id, instance_id) of all instances of some rows.

    videos:       video_id of each row
    lists:        of the instances of each row
    instance_ids: of all of them, one row after the other
    """
    owners = np.repeat(videos.to_numpy(), np.diff(lists.offsets))
    return set(zip(owners.tolist(), instance_ids.to_pylist(), strict=True))


@contextmanager
def decoding(path: AnyPath) -> Iterator[None]:
    """A block that makes a sample of what a file holds.

    Raises: ManifestError: a frame cannot be decoded, or the block raises a ValueError.
    """
    with intact(path):
        try:
            yield
        except VideoError as error:
            raise ValueError(str(error)) from error


def check_labels(clip: Clip, classes: int) -> None:
    """Raises: ValueError: a label is none of a network of so many classes."""
    for label in clip.labels.tolist():
        if not 0 <= label < classes:
            raise ValueError(f"label {label} of {classes} classes")


def numbers_of(
    video_id: int, instance_ids: Sequence[int], identities: Identities | None
) -> Ints | None:
    """(G,) numbers of the instances of a video, -1 where there is none; None without numbers."""
    if identities is None:
        return None
    return np.array([identities.get((video_id, i), -1) for i in instance_ids], np.int64)
