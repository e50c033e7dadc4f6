"""Stored pairs or frames → ClipBatch: the batches of a training worker, resumable at a step.

Without Ray, and with threads in place of worker processes: 12 ms of CPU an image where torch's
DataLoader takes 21 and Ray Data 26, and resumed on any number of workers, which torchdata's
StatefulDataLoader and Ray Data refuse (docs/internals/performance.md, "Loaders"). The order is
arithmetic (`row_order`, `video_order`), so training goes on with the batch it would have had.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from idol.config import Config
from idol.images import transforms
from idol.images.transforms import Example
from idol.learning.pieces import part_of_batch
from idol.structures import ClipBatch
from pipelines.batches import pair_sets, stored_frames, stored_pairs
from pipelines.batches.joint import DirectoryOrder, JointSamples
from pipelines.batches.pair_sets import Pairs, PairSets
from pipelines.batches.samples import Identities, Sample, Samples
from pipelines.batches.stored_frames import StoredFrames
from pipelines.batches.stored_pairs import StoredPairs
from pipelines.errors import ManifestError

_BATCHES_AHEAD = 3
"""Batches decoded before they are asked for."""


def number_instances(pairs: Pairs) -> list[dict[tuple[int, int], int]]:
    """Classes of the identity head: the instances of each directory by video_id and id.

    The numbers run from 0 by (directory, video_id, id): videos of two directories may have one id.
    """
    numbers = itertools.count()
    every = []
    for directory in pair_sets.of(pairs).directories:
        released = pair_sets.stored_config(directory).sampling == "released"
        found = (stored_frames if released else stored_pairs).number_instances(directory)
        every.append(dict(zip(sorted(found), numbers, strict=False)))
    return every


class ClipLoader:
    """The batches of one training worker, from what the prepare stage wrote.

    Worker r of w has the r-th part of every batch (`part_of_batch`: parts differ by one clip at
    most); what a batch holds does not depend on w. What a pass over the data is, and how clips are
    drawn, says the pairs section that it was made with. Of several directories (`joint`) those of
    pseudo pairs alone have separate draws for the two frames, whatever transforms.independent says.

    batch:      clips of a whole batch, of all workers
    seed:       of order, draws and augmentation
    threads:    read, decode and augment this many clips at a time
    identities: as of number_instances; None: no numbers
    Raises:
        ManifestError: a directory is unfinished or holds nothing to draw.
        ValueError: an impossible rank or thread count, or a worker would have no clip.
    """

    def __init__(
        self,
        pairs: Pairs,
        config: Config,
        *,
        rank: int = 0,
        world_size: int = 1,
        batch: int,
        seed: int = 0,
        threads: int = 2,
        identities: Sequence[Identities] | None = None,
    ) -> None:
        if threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        self._ranks = part_of_batch(batch, rank, world_size)
        sets = pair_sets.of(pairs)
        self._transforms = config.transforms
        # Of object storage most of the time is spent waiting.
        local = all(isinstance(directory, Path) for directory in sets.directories)
        self._threads = threads if local else max(threads, 16)
        self._samples = _samples(sets, config, batch, seed, identities)

    def batches(self, start_step: int = 0) -> Generator[ClipBatch, None, None]:
        """Batches without end, as an uninterrupted run has them from this step on; close it."""
        return self._generate(start_step)

    def names(self, step: int) -> list[str]:
        """What the batch of a step holds, for a message: "video 3, frames 4 and 9"."""
        return [self._samples.name(rank, step) for rank in self._ranks]

    def _example(self, sample: Callable[[], Sample]) -> Example:
        clip, rng, independent = sample()
        config = self._transforms
        if independent is not None:
            config = replace(config, independent=independent)
        return transforms.augment(clip, config, rng)

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


def _samples(
    sets: PairSets,
    config: Config,
    batch: int,
    seed: int,
    identities: Sequence[Identities] | None,
) -> Samples:
    """What the places of a batch draw from."""
    several, train, made = len(sets.directories) > 1, config.train, sets.configs()
    every: list[Samples] = []
    for number, (directory, stored) in enumerate(zip(sets.directories, made, strict=True)):
        # Else the n-th visits to two directories would have the same draws.
        own = np.random.default_rng([seed % 2**64, number, 5]).integers(2**63)
        common: dict[str, Any] = {
            "batch": batch,
            "seed": int(own) if several else seed,
            "classes": config.model.num_classes,
            "identities": None if identities is None else identities[number],
        }
        samples: Samples
        if stored.sampling == "released":
            samples = StoredFrames(directory, stored, group=train.group_pairs, **common)
        else:
            samples = StoredPairs(directory, buffer=train.shuffle_rows, **common)
        if len(samples) == 0:
            raise ManifestError(str(directory), "holds no pairs", "Prepare other videos.")
        every.append(samples)
    if not several:
        return every[0]
    order = DirectoryOrder(sets.weights, batch, train.group_pairs, seed=seed)
    names = [str(directory) for directory in sets.directories]
    return JointSamples(every, names, [one.pseudo for one in made], order)


def _empty(waiting: queue.Queue[Any]) -> None:
    with contextlib.suppress(queue.Empty):
        while True:
            waiting.get_nowait()
