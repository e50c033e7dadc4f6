"""Pair rows → PairBatch: streams a prepared directory to a training worker, resumable at a step.

Without Ray. The order of the rows is arithmetic on row numbers, so a restarted worker goes on with
the batch that it would have had.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from idol.config import Config
from idol.images import transforms
from idol.images.transforms import Example, Pair
from idol.masks.rle import decode_masks
from idol.structures import PairBatch
from pipelines.errors import ManifestError
from pipelines.sources import image_file
from pipelines.storage import manifest, tables

_BATCHES_AHEAD = 3
"""Batches decoded before they are asked for."""

Identities = Mapping[tuple[int, int], int]
"""(video_id, instance_id) → the instance's number among all of the training set."""


def number_instances(directory: str | Path) -> dict[tuple[int, int], int]:
    """Classes of the identity head: a prepare output's instances, 0..M-1 by video_id and id."""
    found: set[tuple[int, int]] = set()
    for path in manifest.shard_paths(directory, "prepare"):
        # Only these two leaves are read: a shard is nearly all pixels and masks.
        with pq.ParquetFile(path) as file:
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

    Worker r of w reads the rows with number = r modulo w; at most w - 1 rows at the end are left
    out, so that all have equally many. Every epoch reads the shards in another order, and gives
    out the rows through a shuffle buffer of config.train.shuffle_rows.

    batch_size: pairs per batch of this worker
    seed:       of order and augmentation
    threads:    decode and augment this many pairs at a time
    Raises:
        ManifestError: the directory is unfinished or has too few rows.
        ValueError: an impossible rank, batch size or thread count.
    """

    def __init__(
        self,
        directory: str | Path,
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
        self.config = config
        self.rank, self.world_size = rank, world_size
        self.batch_size, self.seed, self.threads = batch_size, seed, threads
        self.identities = identities
        self._counts = [tables.count_rows(path) for path in self.paths]
        self.total_rows = sum(self._counts)
        self.rows = self.total_rows // world_size
        """Rows of this worker in one epoch."""
        if self.rows == 0:
            raise ManifestError(
                str(directory),
                f"holds {self.total_rows} pairs for {world_size} workers",
                "Use fewer workers, or prepare more videos.",
            )
        # Where shards start, in row numbers over the whole directory.
        self._starts = np.concatenate([[0], np.cumsum(self._counts)])
        self._order_cache: tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None

    def batches(self, start_step: int = 0) -> Iterator[PairBatch]:
        """Batches without end, as an uninterrupted run has them from this step on; close it."""
        return self._generate(start_step)

    def rows_of(self, step: int) -> list[str]:
        """Which pairs the batch of a step holds, for a message: "video 3, frames 4 and 9"."""
        names = []
        for _, number in self._positions(step, step + 1):
            shard = int(np.searchsorted(self._starts, number, side="right")) - 1
            columns = ["video_id", "key_index", "reference_index"]
            table = pq.read_table(self.paths[shard], columns=columns)
            row = table.slice(number - int(self._starts[shard]), 1).to_pylist()[0]
            names.append(
                f"video {row['video_id']}, frames {row['key_index']} and {row['reference_index']}"
            )
        return names

    def _order(self, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """This worker's row numbers in an epoch: as read, and as given out after shuffling."""
        cached = self._order_cache  # once: rows_of may be asked from another thread
        if cached is None or cached[0] != epoch:
            # The same permutation of shards on every worker: they read the same files.
            shards = np.random.default_rng([self.seed % 2**64, epoch]).permutation(len(self.paths))
            mine = [np.arange(self._starts[s], self._starts[s + 1], dtype=np.int64) for s in shards]
            numbers = np.concatenate(mine)
            usable = self.rows * self.world_size
            read = numbers[(numbers % self.world_size == self.rank) & (numbers < usable)]
            rng = np.random.default_rng([self.seed % 2**64, epoch, self.rank, 1])
            given = read[shuffled(len(read), self.config.train.shuffle_rows, rng)]
            self._order_cache = cached = (epoch, read, given)
        return cached[1], cached[2]

    def _positions(self, start_step: int, end_step: int) -> Iterator[tuple[int, int]]:
        """(epoch, row number) of the samples of steps start_step..end_step-1."""
        for position in range(start_step * self.batch_size, end_step * self.batch_size):
            epoch, offset = divmod(position, self.rows)
            yield epoch, int(self._order(epoch)[1][offset])

    def _stream(
        self, start_step: int, stop: threading.Event
    ) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """(epoch, row number, row) for ever, reading files forwards and each group once."""
        epoch, offset = divmod(start_step * self.batch_size, self.rows)
        while True:
            read, given = self._order(epoch)
            source = self._read(read, set(given[offset:].tolist()), stop)
            held: dict[int, dict[str, Any]] = {}
            for number in given[offset:].tolist():
                while number not in held:
                    got = next(source, None)
                    if got is None:  # only after stop is set
                        return
                    held[got[0]] = got[1]
                yield epoch, number, held.pop(number)
            epoch, offset = epoch + 1, 0

    def _read(
        self, order: npt.NDArray[np.int64], wanted: set[int], stop: threading.Event
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """(row number, row) of the wanted rows, in the order of the files."""
        shards = np.searchsorted(self._starts, order, side="right") - 1
        for shard in dict.fromkeys(shards.tolist()):
            first = int(self._starts[shard])
            mine = wanted.intersection(range(first, int(self._starts[shard + 1])))
            if not mine:
                continue
            with pq.ParquetFile(self.paths[shard]) as file:
                for group in range(file.num_row_groups):
                    count = file.metadata.row_group(group).num_rows
                    chosen = sorted(mine.intersection(range(first, first + count)))
                    if chosen and not stop.is_set():
                        table = file.read_row_group(group, use_threads=False)
                        picked = table.take([number - first for number in chosen])
                        yield from zip(chosen, picked.to_pylist(), strict=True)
                    first += count
            if stop.is_set():
                return

    def _example(self, epoch: int, number: int, row: Mapping[str, Any]) -> Example:
        # Seeded by the row, so that neither threads nor the number of workers change it.
        rng = np.random.default_rng([self.seed % 2**64, epoch, number, 2])
        return transforms.augment(pair_of_row(row, self.identities), self.config.transforms, rng)

    def _generate(self, start_step: int) -> Iterator[PairBatch]:
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
            batch: list[Future[Example]] = []
            for epoch, number, row in self._stream(start_step, stop):
                if stop.is_set():
                    return
                batch.append(pool.submit(self._example, epoch, number, row))
                if len(batch) == self.batch_size:
                    ready.put(batch)  # blocks while enough lies ahead
                    batch = []
        except BaseException as error:  # raised again by _generate, in the thread that asks
            ready.put(error)


def shuffled(length: int, buffer: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """The order in which a shuffle buffer gives out `length` items that stream through it.

    buffer:  slots; a random one is emptied for every item that comes in
    returns: (length,) a permutation; no item comes more than `buffer` places early
    """
    slots = list(range(min(buffer, length)))
    given = np.empty(length, np.int64)
    draws = rng.random(length)
    for position in range(length):
        slot = int(draws[position] * len(slots))
        given[position] = slots[slot]
        incoming = position + buffer
        if incoming < length:
            slots[slot] = incoming
        else:
            slots[slot] = slots[-1]
            slots.pop()
    return given


def _empty(waiting: queue.Queue[Any]) -> None:
    with contextlib.suppress(queue.Empty):
        while True:
            waiting.get_nowait()
