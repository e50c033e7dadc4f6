"""Stored pairs or frames → ClipBatch: the batches of a training worker, resumable at a step.

Without Ray, and with threads in place of worker processes: 12 ms of CPU an image where torch's
DataLoader takes 21 and Ray Data 26, and resumed on any number of workers, which torchdata's
StatefulDataLoader and Ray Data refuse (docs/internals/performance.md, "Loaders"). The order is
arithmetic (`row_order`, `video_order`), so training goes on with the batch it would have had.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2

from idol.config import Config, PairConfig, from_dict
from idol.images import transforms
from idol.images.transforms import Example
from idol.learning.pieces import part_of_batch
from idol.structures import ClipBatch
from pipelines.batches import stored_frames, stored_pairs
from pipelines.batches.samples import Identities, Sample, Samples
from pipelines.batches.stored_frames import StoredFrames
from pipelines.batches.stored_pairs import StoredPairs
from pipelines.errors import ManifestError, intact
from pipelines.storage import layout, manifest, paths
from pipelines.storage.paths import AnyPath

_BATCHES_AHEAD = 3
"""Batches decoded before they are asked for."""


def stored_config(directory: str | AnyPath) -> PairConfig:
    """What a finished directory was made with. Raises: ManifestError: it is none of prepare."""
    found = manifest.read(directory, layout.PREPARE).config
    with intact(f"{directory}/{manifest.MANIFEST}"):
        return from_dict(PairConfig, found, "pairs.")


def number_instances(directory: str | AnyPath) -> dict[tuple[int, int], int]:
    """Classes of the identity head: a prepare output's instances, 0..M-1 by video_id and id."""
    released = stored_config(directory).sampling == "released"
    found = (stored_frames if released else stored_pairs).number_instances(directory)
    return {name: number for number, name in enumerate(sorted(found))}


class ClipLoader:
    """The batches of one training worker, from the directory that the prepare stage wrote.

    Worker r of w has the r-th part of every batch (`part_of_batch`: parts differ by one clip at
    most); what a batch holds does not depend on w. What a pass over the data is, and how clips are
    drawn, says the pairs section that it was made with.

    batch:   clips of a whole batch, of all workers
    seed:    of order, draws and augmentation
    threads: read, decode and augment this many clips at a time
    Raises:
        ManifestError: the directory is unfinished or holds nothing to draw.
        ValueError: an impossible rank or thread count, or a worker would have no clip.
    """

    def __init__(
        self,
        directory: str | AnyPath,
        config: Config,
        *,
        rank: int = 0,
        world_size: int = 1,
        batch: int,
        seed: int = 0,
        threads: int = 2,
        identities: Identities | None = None,
    ) -> None:
        if threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        self._ranks = part_of_batch(batch, rank, world_size)
        self._transforms = config.transforms
        # Of object storage most of the time is spent waiting.
        self._threads = threads if isinstance(paths.at(directory), Path) else max(threads, 16)
        stored, train = stored_config(directory), config.train
        common: dict[str, Any] = {
            "batch": batch,
            "seed": seed,
            "classes": config.model.num_classes,
            "identities": identities,
        }
        self._samples: Samples
        if stored.sampling == "released":
            self._samples = StoredFrames(directory, stored, group=train.group_pairs, **common)
        else:
            self._samples = StoredPairs(directory, buffer=train.shuffle_rows, **common)
        if len(self._samples) == 0:
            raise ManifestError(str(directory), "holds no pairs", "Prepare other videos.")

    def batches(self, start_step: int = 0) -> Generator[ClipBatch, None, None]:
        """Batches without end, as an uninterrupted run has them from this step on; close it."""
        return self._generate(start_step)

    def names(self, step: int) -> list[str]:
        """What the batch of a step holds, for a message: "video 3, frames 4 and 9"."""
        return [self._samples.name(rank, step) for rank in self._ranks]

    def _example(self, sample: Callable[[], Sample]) -> Example:
        clip, rng = sample()
        return transforms.augment(clip, self._transforms, rng)

    def _generate(self, start_step: int) -> Generator[ClipBatch, None, None]:
        cv2.setNumThreads(1)  # the threads below are the parallelism
        stop = threading.Event()
        ready: queue.Queue[list[Future[Example]] | BaseException] = queue.Queue(_BATCHES_AHEAD)
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="clip-decode")
        feeder = threading.Thread(
            target=self._feed, args=(start_step, pool, ready, stop), name="clip-reader", daemon=True
        )
        feeder.start()
        try:
            while True:
                batch = ready.get()
                if isinstance(batch, BaseException):
                    raise batch
                examples = [future.result() for future in batch]
                yield transforms.collate(examples, self._transforms.size_divisor)
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
        """Hand what the batches hold to the pool, a batch at a time, until stop is set."""
        try:
            streams = [self._samples.stream(rank, start_step) for rank in self._ranks]
            while not stop.is_set():
                batch = [pool.submit(self._example, next(stream)) for stream in streams]
                ready.put(batch)  # blocks while enough lies ahead
        except BaseException as error:  # raised again by _generate, in the thread that asks
            ready.put(error)


def _empty(waiting: queue.Queue[Any]) -> None:
    with contextlib.suppress(queue.Empty):
        while True:
            waiting.get_nowait()
