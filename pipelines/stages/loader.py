"""Pair rows → PairBatch: streams a prepared directory to a training worker, resumable at a step.

Without Ray. The order of the rows is arithmetic on row numbers (`row_order`), so training goes on
with the batch that it would have had, also with another number of workers.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from idol.config import Config
from idol.images import transforms
from idol.images.transforms import Example, Pair
from idol.masks.rle import decode_masks
from idol.structures import PairBatch
from pipelines.errors import ManifestError, VideoError, intact
from pipelines.sources import image_file
from pipelines.stages.row_order import RowOrder
from pipelines.storage import manifest, schemas, tables
from pipelines.storage.paths import AnyPath

_BATCHES_AHEAD = 3
"""Batches decoded before they are asked for."""

Identities = Mapping[tuple[int, int], int]
"""(video_id, instance_id) → the instance's number among all of the training set."""


def number_instances(directory: str | AnyPath) -> dict[tuple[int, int], int]:
    """Classes of the identity head: a prepare output's instances, 0..M-1 by video_id and id."""
    found: set[tuple[int, int]] = set()
    for path in manifest.shard_paths(directory, "prepare"):
        # Only these two leaves are read: a shard is nearly all pixels and masks.
        with tables.opened(path) as file:
            table = file.read(columns=["video_id", "instances.list.element.instance_id"])
        for chunk in table.to_batches():
            lists = chunk.column("instances")
            videos = np.repeat(chunk.column("video_id").to_numpy(), np.diff(lists.offsets))
            numbers = lists.flatten().field("instance_id").to_numpy()
            found.update(zip(videos.tolist(), numbers.tolist(), strict=True))
    return {name: number for number, name in enumerate(sorted(found))}


def pair_of_row(row: Mapping[str, Any], identities: Identities | None = None) -> Pair:
    """A PAIRS row as pixels (door 2); the mask of an absent instance is empty.

    identities: numbers for Pair.identities, -1 for instances that are not in it; None: no numbers
    Raises: VideoError: a stored frame cannot be decoded.
    """
    size = (int(row["height"]), int(row["width"]))
    instances = row["instances"]
    video_id = int(row["video_id"])

    def image(name: str) -> image_file.Image:
        path = f"{name} frame {row[f'{name}_index']}"
        return image_file.decode(row[f"{name}_jpeg"], video_id=video_id, path=path, size=size)

    def masks(name: str) -> npt.NDArray[np.bool_]:
        counts = [instance[f"{name}_rle"] for instance in instances]
        present = [index for index, data in enumerate(counts) if data is not None]
        decoded = np.zeros((len(instances), *size), np.bool_)
        decoded[present] = decode_masks([counts[index] for index in present], size)
        return decoded

    numbers = None
    if identities is not None:
        names = [(video_id, instance["instance_id"]) for instance in instances]
        numbers = np.array([identities.get(name, -1) for name in names], np.int64)
    # A still image is paired with itself and stored once.
    reference = "key" if row["key_index"] == row["reference_index"] else "reference"
    return Pair(
        key_image=image("key"),
        reference_image=image(reference),
        labels=np.array([instance["label"] for instance in instances], np.int64),
        key_masks=masks("key"),
        reference_masks=masks(reference),
        identities=numbers,
    )


class PairLoader:
    """The batches of one training worker, from the directory that the prepare stage wrote.

    Worker r of w has the r-th part of every batch; which rows a batch has does not depend on w. A
    pass over the data visits every row once, through shuffle buffers of config.train.shuffle_rows
    rows, which the workers share.

    batch_size: pairs per batch of this worker
    seed:       of order and augmentation
    threads:    decode and augment this many pairs at a time
    Raises:
        ManifestError: the directory is unfinished or holds no pair.
        ValueError: an impossible rank, batch size or thread count.
    """

    def __init__(
        self,
        directory: str | AnyPath,
        config: Config,
        *,
        rank: int = 0,
        world_size: int = 1,
        batch_size: int,
        seed: int = 0,
        threads: int = 2,
        identities: Identities | None = None,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in 0..{world_size - 1}, got {rank}")
        if batch_size < 1 or threads < 1:
            raise ValueError(
                f"batch_size and threads must be at least 1, got {batch_size} and {threads}"
            )
        self.paths = manifest.shard_paths(directory, "prepare")
        self.config, self.seed, self.threads = config, seed, threads
        self.identities = identities
        groups = [tables.group_rows(path) for path in self.paths]
        self._places = [(s, g) for s, rows in enumerate(groups) for g in range(len(rows))]
        self._ranks = range(rank * batch_size, (rank + 1) * batch_size)
        self._order = RowOrder(
            np.concatenate([np.zeros(0, np.int64), *groups]),
            batch_size * world_size,
            buffer=config.train.shuffle_rows,
            seed=seed,
        )
        self.total_rows = int(self._order.starts[-1])
        if self.total_rows != manifest.read(directory, "prepare").rows:
            reason = f"has {self.total_rows} pairs in its shards, its manifest has another number"
            raise ManifestError(str(directory), reason, "Make it again with --overwrite.")
        if self.total_rows == 0:
            raise ManifestError(str(directory), "holds no pairs", "Prepare other videos.")

    def batches(self, start_step: int = 0) -> Generator[PairBatch, None, None]:
        """Batches without end, as an uninterrupted run has them from this step on; close it."""
        return self._generate(start_step)

    def rows_of(self, step: int) -> list[str]:
        """Which pairs the batch of a step holds, for a message: "video 3, frames 4 and 9"."""
        names = []
        for rank in self._ranks:
            number = self._order.row(rank, step)
            group = self._group(number)
            columns = ["video_id", "key_index", "reference_index"]
            row = self._read(group, [number - int(self._order.starts[group])], columns)[0]
            names.append(
                f"video {row['video_id']}, frames {row['key_index']} and {row['reference_index']}"
            )
        return names

    def _group(self, number: int) -> int:
        """The row group of a row."""
        return int(np.searchsorted(self._order.starts, number, side="right")) - 1

    def _read(
        self, group: int, places: Sequence[int], columns: list[str] | None = None
    ) -> list[dict[str, Any]]:
        """Some rows of a row group."""
        shard, inside = self._places[group]
        with tables.opened(self.paths[shard]) as file:
            table = file.read_row_group(inside, columns=columns, use_threads=False)
            schemas.check(table, schemas.PAIRS, columns)
        rows: list[dict[str, Any]] = table.take(list(places)).to_pylist()
        return rows

    def _stream(self, rank: int, start_step: int) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """(pass, row number, row) of a virtual rank for ever; each row group is read once."""
        for found, over in self._order.passes(rank, start_step):
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

    def _example(self, epoch: int, number: int, row: Mapping[str, Any]) -> Example:
        # Seeded by the row, so that neither threads nor the number of workers change it.
        rng = np.random.default_rng([self.seed % 2**64, epoch, number, 2])
        with intact(self.paths[self._places[self._group(number)][0]]):
            try:
                pair = pair_of_row(row, self.identities)
            except VideoError as error:
                raise ValueError(str(error)) from error
            classes = self.config.model.num_classes
            for label in pair.labels.tolist():
                if not 0 <= label < classes:
                    raise ValueError(f"label {label} of {classes} classes")
        return transforms.augment(pair, self.config.transforms, rng)

    def _generate(self, start_step: int) -> Generator[PairBatch, None, None]:
        cv2.setNumThreads(1)  # the threads below are the parallelism
        stop = threading.Event()
        ready: queue.Queue[list[Future[Example]] | BaseException] = queue.Queue(_BATCHES_AHEAD)
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="pair-decode")
        feeder = threading.Thread(
            target=self._feed, args=(start_step, pool, ready, stop), name="pair-reader", daemon=True
        )
        feeder.start()
        try:
            while True:
                batch = ready.get()
                if isinstance(batch, BaseException):
                    raise batch
                examples = [future.result() for future in batch]
                yield transforms.collate(examples, self.config.transforms.size_divisor)
        finally:
            stop.set()
            while feeder.is_alive():  # it may be waiting for room in the queue
                _empty(ready)
                feeder.join(timeout=0.02)
            pool.shutdown(wait=True, cancel_futures=True)

    def _feed(
        self,
        start_step: int,
        pool: ThreadPoolExecutor,
        ready: queue.Queue[list[Future[Example]] | BaseException],
        stop: threading.Event,
    ) -> None:
        """Read rows and hand them to the pool, a batch at a time, until stop is set."""
        try:
            streams = [self._stream(rank, start_step) for rank in self._ranks]
            while not stop.is_set():
                batch = [pool.submit(self._example, *next(stream)) for stream in streams]
                ready.put(batch)  # blocks while enough lies ahead
        except BaseException as error:  # raised again by _generate, in the thread that asks
            ready.put(error)


def _empty(waiting: queue.Queue[Any]) -> None:
    with contextlib.suppress(queue.Empty):
        while True:
            waiting.get_nowait()
