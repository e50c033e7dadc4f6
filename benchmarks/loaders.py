"""Which loader feeds training: torch's, torchdata's, Ray Data's or ours, by what each costs.

python -m benchmarks.loaders                   60 videos of 36 frames of 720p
python -m benchmarks.loaders --videos 20 --keep FOLDER --only ours

Every row is a process of its own that takes batches of 4 pairs, with the augmentation of
ytvis19_r50 in all of them: seconds of processors of it and of all that it has started, images a
second, memory for themselves (the most at any time), the time until the first batch. "resumed" is
what batch 8 of a run with two workers is when it is asked for by a new run with one.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks import machine, processes
from idol import presets
from idol.config import Config, override
from idol.images import transforms
from idol.structures import ClipBatch
from pipelines.batches import loader
from pipelines.batches.stored_frames import clip_of_rows
from pipelines.sources import annotations as annotation_files
from pipelines.sources.annotations import Dataset
from pipelines.stages import shard_rows
from pipelines.storage import paths

BATCH = 4
_WARM, _MEASURED, _RESUMED = 4, 40, 8
CONFIG = presets.by_name("ytvis19_r50")


class Folder(torch.utils.data.Dataset[transforms.Example]):
    """Pairs straight from JPEG files, as one would write it without this project.

    Item n visits the n-th video, over and over, and draws by n, so that workers do not matter.
    """

    def __init__(self, dataset: Dataset, config: Config, length: int = 10_000) -> None:
        self.videos, self.labels = list(dataset.videos), dataset.labels
        self.config, self.length = config, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> transforms.Example:
        rng = np.random.default_rng(index)
        video, gap = self.videos[index % len(self.videos)], self.config.pairs.max_gap
        key = int(rng.integers(len(video)))
        low, high = max(0, key - gap), min(len(video) - 1, key + gap)
        partner = int(rng.integers(low, high))
        pair = sorted((key, partner + (partner >= key)))
        plan = [shard_rows.planned_frame(video, t, self.labels) for t in pair]
        rows, _ = shard_rows.fill_frames(plan, self.config.pairs)
        return transforms.augment(clip_of_rows(rows), self.config.transforms, rng)


class Ours(torch.utils.data.Dataset[transforms.Example]):
    """What our loader reads, in our order, for another loader's worker processes."""

    def __init__(self, path: Path, config: Config) -> None:
        self.path, self.config = path, config
        self._streams: dict[int, Any] = {}
        self._samples: Any = None

    def __len__(self) -> int:
        return 10_000

    def __getitem__(self, index: int) -> transforms.Example:
        step, rank = divmod(index, BATCH)
        if self._samples is None:
            self._samples = loader.ClipLoader(self.path, self.config, batch=BATCH)._samples
        at, stream = self._streams.get(rank, (step, None))
        if stream is None or step < at:
            at, stream = step, self._samples.stream(rank, step)
        for _ in range(step - at):  # other workers have these
            next(stream)
        sample = next(stream)
        self._streams[rank] = (step + 1, stream)
        clip, rng, _ = sample()
        return transforms.augment(clip, self.config.transforms, rng)


collate = functools.partial(transforms.collate, divisor=CONFIG.transforms.size_divisor)


def one_thread(_: int = 0) -> None:
    """In every process: its own threads are not what is compared."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def torch_batches(
    items: Any, workers: int, start: int = 0, kind: Any = torch.utils.data.DataLoader
) -> Iterator[ClipBatch]:
    """Batches of torch's DataLoader; start: by skipping indices, for its own state has no place."""
    return iter(
        kind(
            torch.utils.data.Subset(items, range(start * BATCH, len(items))),
            batch_size=BATCH,
            collate_fn=collate,
            num_workers=workers,
            multiprocessing_context="spawn" if workers else None,
            worker_init_fn=one_thread,
        )
    )


def stateful_batches(items: Any, workers: int, start: int = 0) -> Iterator[ClipBatch]:
    """Batches of torchdata's StatefulDataLoader, resumed by its state of a run with two workers."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    def make(count: int) -> Any:
        return StatefulDataLoader(
            items,
            batch_size=BATCH,
            collate_fn=collate,
            num_workers=count,
            multiprocessing_context="spawn" if count else None,
            worker_init_fn=one_thread,
        )

    made = make(workers)
    if start:
        before = make(2)
        batches = iter(before)
        for _ in range(start):
            next(batches)
        made.load_state_dict(before.state_dict())
    return iter(made)


def ray_batches(items: Any, workers: int, start: int = 0) -> Iterator[ClipBatch]:
    """Batches of Ray Data, whose rows are pickled examples; it starts from the first row."""
    if start:
        raise NotImplementedError("iter_batches has no state to start from")
    import pickle

    import ray

    ray.init(address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False

    def example(row: dict[str, Any]) -> dict[str, Any]:
        one_thread()
        return {"example": pickle.dumps(items[int(row["id"])])}

    rows = ray.data.range(1000, override_num_blocks=125).map(example)
    for batch in rows.iter_batches(batch_size=BATCH, prefetch_batches=3):
        yield collate([pickle.loads(data) for data in batch["example"]])


def our_batches(path: Path, workers: int, start: int = 0) -> Iterator[ClipBatch]:
    """Batches of our loader; workers: threads."""
    made = loader.ClipLoader(path, CONFIG, batch=BATCH, threads=workers)
    return made.batches(start)


def candidates(folder: Path) -> dict[str, Callable[..., Iterator[ClipBatch]]]:
    """By name: (workers, start) → batches."""

    def files() -> Folder:
        return Folder(annotation_files.read(folder / "jpeg.json", folder / "frames"), CONFIG)

    return {
        "DataLoader, JPEG files": lambda n, start=0: torch_batches(files(), n, start),
        "StatefulDataLoader, JPEG files": lambda n, start=0: stateful_batches(files(), n, start),
        "Ray Data, JPEG files": lambda n, start=0: ray_batches(files(), n, start),
        "DataLoader, stored frames in our order": lambda n, start=0: torch_batches(
            Ours(folder / "stored", CONFIG), n, start
        ),
        "ours, stored frames": lambda n, start=0: our_batches(folder / "stored", n, start),
        "ours, stored frames of 640 pixels": lambda n, start=0: our_batches(
            folder / "small", n, start
        ),
    }


def measured(batches: Callable[..., Iterator[ClipBatch]], workers: int) -> dict[str, Any]:
    """The figures of one candidate, in this process."""
    one_thread()
    start = time.perf_counter()
    given = batches(workers)
    next(given)
    first = time.perf_counter() - start
    for _ in range(_WARM - 1):
        next(given)
    root, most = os.getpid(), 0.0
    before, start, images = _cpu(root), time.perf_counter(), 0
    for number in range(_MEASURED):
        batch = next(given)
        images += batch.images.shape[0] * batch.images.shape[1]
        if number % 10 == 0:
            most = max(most, sum(process.memory() for process in processes.below(root)))
    passed = time.perf_counter() - start
    found = {
        "cpu": (_cpu(root) - before) / images,
        "rate": images / passed,
        "memory": most,
        "first": first,
    }
    with contextlib.suppress(AttributeError):
        given.close()  # type: ignore[attr-defined]
    return found


def _cpu(root: int) -> float:
    return sum(process.cpu() for process in processes.below(root))


def resumed(batches: Callable[..., Iterator[ClipBatch]]) -> str:
    """Whether a run with one worker goes on as one with two did, in words."""
    given = batches(2)
    for _ in range(_RESUMED):
        next(given)
    wanted = next(given)
    try:
        found = next(batches(1, _RESUMED))
    except Exception as error:
        told = str(error).splitlines() or [""]
        return f"refused: {type(error).__name__} {told[0][:60]}"
    return "equal" if torch.equal(found.images, wanted.images) else "another batch"


def prepare(folder: Path, videos: int) -> None:
    """The made videos, and what our loader reads, where they are not there yet."""
    from benchmarks import data

    if not (folder / "jpeg.json").exists():
        data.make(folder, videos)
    dataset = annotation_files.read(folder / "jpeg.json", folder / "frames")
    for name, config in (("stored", CONFIG), ("small", override(CONFIG, ["pairs.max_side=640"]))):
        if not (folder / name).exists():
            data.prepared(dataset, paths.at(folder / name), config)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=int, default=60)
    parser.add_argument("--keep", type=Path, help="keep the made videos here, and use those there")
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # what to do, name, workers
    options = parser.parse_args()
    if options.one:
        what, name, workers = options.one
        batches = candidates(options.keep.resolve())[name]
        found = resumed(batches) if what == "resume" else measured(batches, int(workers))
        if "ray" in sys.modules:
            sys.modules["ray"].shutdown()
        print("\n" + json.dumps(found), flush=True)
        os._exit(0)  # without waiting for worker processes, which end with this one
    print(machine.header(machine.command("benchmarks.loaders")))
    heads = "loader", "workers", "CPU, ms an image", "images/s", "MiB", "first batch, s", "resumed"
    print(f"| {' | '.join(heads)} |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.keep or Path(temporary)).resolve()
        prepare(folder, options.videos)
        for name in candidates(folder):
            if options.only not in name:
                continue
            for workers in (1, 2):
                row = _asked("measure", name, workers, folder)
                again = _asked("resume", name, workers, folder) if workers == 2 else ""
                print(
                    f"| {name} | {workers} | {1e3 * row['cpu']:.1f} | {row['rate']:.1f} "
                    f"| {row['memory']:.0f} | {row['first']:.1f} | {again} |",
                    flush=True,
                )


def _asked(what: str, name: str, workers: int, folder: Path) -> Any:
    """What a process of its own has found."""
    words = ["-m", "benchmarks.loaders", "--keep", str(folder), "--one", what, name, str(workers)]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
