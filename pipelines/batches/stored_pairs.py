"""Pairs as prepare stored them (PAIRS): whole row groups, read once a pass, shuffled in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from idol.images.transforms import Clip, Frame
from idol.masks.rle import decode_masks
from pipelines.batches.row_order import RowOrder
from pipelines.batches.samples import (
    Identities,
    Sample,
    check_labels,
    decoding,
    instances_of,
    numbers_of,
)
from pipelines.errors import ManifestError
from pipelines.sources import image_file
from pipelines.storage import layout, manifest, schemas, tables
from pipelines.storage.paths import AnyPath


def number_instances(directory: str | AnyPath) -> set[tuple[int, int]]:
    """(video_id, instance_id) of every instance that is stored."""
    found: set[tuple[int, int]] = set()
    for path in manifest.shard_paths(directory, layout.PREPARE):
        # Only these two leaves are read: a shard is nearly all pixels and masks.
        with tables.opened(path) as file:
            table = file.read(columns=["video_id", "instances.list.element.instance_id"])
        for chunk in table.to_batches():
            lists = chunk.column("instances")
            ids = lists.flatten().field("instance_id")
            found |= instances_of(chunk.column("video_id"), lists, ids)
    return found


def clip_of_row(row: Mapping[str, Any], identities: Identities | None = None) -> Clip:
    """A PAIRS row as pixels; the mask of an absent instance is empty.

    identities: numbers for Clip.identities, -1 for instances that are not in it; None: no numbers
    Raises: VideoError: a stored frame cannot be decoded.
    """
    size = (int(row["height"]), int(row["width"]))
    instances = row["instances"]
    video_id = int(row["video_id"])

    def frame(name: str) -> Frame:
        path = f"{name} frame {row[f'{name}_index']}"
        image = image_file.decode(row[f"{name}_jpeg"], video_id=video_id, path=path, size=size)
        counts = [instance[f"{name}_rle"] for instance in instances]
        present = [index for index, data in enumerate(counts) if data is not None]
        masks: npt.NDArray[np.bool_] = np.zeros((len(instances), *size), np.bool_)
        masks[present] = decode_masks([counts[index] for index in present], size)
        return Frame(image, masks)

    key = frame("key")
    # A still image is paired with itself and stored once.
    still = row["key_index"] == row["reference_index"]
    return Clip(
        frames=(key, key if still else frame("reference")),
        labels=np.array([instance["label"] for instance in instances], np.int64),
        identities=numbers_of(video_id, [i["instance_id"] for i in instances], identities),
    )


class StoredPairs:
    """The rows of a directory in the order in which they are given out.

    batch:      pairs of a whole batch, of all workers
    buffer:     rows in the shuffle buffers of all workers together
    classes:    of the network: another label is a fault of the data
    identities: see clip_of_row
    Raises: ManifestError: the directory is unfinished or damaged.
    """

    def __init__(
        self,
        directory: str | AnyPath,
        *,
        batch: int,
        buffer: int,
        seed: int,
        classes: int,
        identities: Identities | None = None,
    ) -> None:
        self._paths = manifest.shard_paths(directory, layout.PREPARE)
        self._seed, self._classes, self._identities = seed, classes, identities
        groups = [tables.group_rows(path) for path in self._paths]
        self._places = [(s, g) for s, rows in enumerate(groups) for g in range(len(rows))]
        counts = np.concatenate([np.zeros(0, np.int64), *groups])
        self._order = RowOrder(counts, batch, buffer=buffer, seed=seed)
        total = int(self._order.starts[-1])
        if total != manifest.read(directory, layout.PREPARE).rows:
            reason = f"has {total} pairs in its shards, its manifest has another number"
            raise ManifestError(str(directory), reason, "Make it again with --overwrite.")

    def __len__(self) -> int:
        return int(self._order.starts[-1])

    def name(self, rank: int, step: int) -> str:
        """The pair that a place of a step's batch has, for a message."""
        number = self._order.row(rank, step)
        group = self._group(number)
        columns = ["video_id", "key_index", "reference_index"]
        (row,) = self._read(group, [number - int(self._order.starts[group])], columns)
        return f"video {row['video_id']}, frames {row['key_index']} and {row['reference_index']}"

    def stream(self, rank: int, step: int) -> Iterator[Callable[[], Sample]]:
        """What a place of the batch has from a step on; each row group is read once a pass."""
        for epoch, number, row in self._rows(rank, step):
            yield partial(self._sample, epoch, number, row)

    def _group(self, number: int) -> int:
        """The row group of a row."""
        return int(np.searchsorted(self._order.starts, number, side="right")) - 1

    def _read(
        self, group: int, places: Sequence[int], columns: list[str] | None = None
    ) -> list[dict[str, Any]]:
        """Some rows of a row group."""
        shard, inside = self._places[group]
        with tables.opened(self._paths[shard]) as file:
            table = file.read_row_group(inside, columns=columns, use_threads=False)
            schemas.check(table, schemas.PAIRS, columns)
        rows: list[dict[str, Any]] = table.take(list(places)).to_pylist()
        return rows

    def _rows(self, rank: int, step: int) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """(pass, row number, row) for ever."""
        for found, over in self._order.passes(rank, step):
            given = found.rows[over:].tolist()
            wanted, held = set(given), dict[int, dict[str, Any]]()
            groups = iter(found.groups.tolist())
            for number in given:
                while number not in held:
                    group = next(groups)
                    first, last = (int(self._order.starts[g]) for g in (group, group + 1))
                    here = sorted(wanted.intersection(range(first, last)))
                    rows = self._read(group, [n - first for n in here]) if here else []
                    held.update(zip(here, rows, strict=True))
                yield found.number, number, held.pop(number)

    def _sample(self, epoch: int, number: int, row: Mapping[str, Any]) -> Sample:
        # Seeded by the row, so that neither threads nor the number of workers change it.
        rng = np.random.default_rng([self._seed % 2**64, epoch, number, 2])
        with decoding(self._paths[self._places[self._group(number)][0]]):
            clip = clip_of_row(row, self._identities)
            check_labels(clip, self._classes)
        return Sample(clip, rng)
