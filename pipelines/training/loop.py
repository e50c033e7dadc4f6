"""What every worker of a training does: batches, steps, validation, reports and checkpoints."""

from __future__ import annotations

import contextlib
import ctypes
import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from idol.analysis.cores import usable_cores
from idol.config import Config
from idol.learning import divergence
from idol.learning.divergence import Diverged
from idol.learning.training import Trainer
from idol.structures import ClipBatch, PairBatch
from idol.weights import checkpoint
from pipelines.batches import loader
from pipelines.batches.pair_sets import PairSets
from pipelines.storage import paths
from pipelines.storage.paths import AnyPath
from pipelines.training import checkpoints, measures, networks
from pipelines.training.checkpoints import Progress, Report
from pipelines.training.measures import Speed
from pipelines.training.seat import RaySeat, Seat

START = "_start.safetensors"
"""The weights that all workers start from."""
BEST = "best.safetensors"
"""The weights of the best validation so far."""
PICTURES = "validation"
"""Folder of the pictures of each validation."""
VALIDATED = "validation_"
"""Before the names of what a validation measures, in the reports."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_DIVERGED = "diverged-"  # files about a step that is not finite
_LOOKS = 10  # for machines that leave, from one report to the next


class Validator(Protocol):
    """Measures weights on videos that training does not see."""

    def __call__(self, weights: Mapping[str, Tensor]) -> tuple[dict[str, float], bytes | None]:
        """The metrics, the same on all workers; a JPEG of fixed frames, on the first worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """The settings of a worker: absolute paths, and the step after which to end.

    threads:   of torch; sums of another number of threads are other bits
    validator: given the configuration, the worker's device, its rank and the number of workers
    profile:   steps to record with torch's profiler, soon after the start; 0: none
    """

    config: Config
    pairs: PairSets
    out: AnyPath
    stop: int
    threads: int = 1
    validator: Callable[[Config, torch.device, int, int], Validator] | None = None
    profile: int = 0


def work(settings: dict[str, Any], seat: Seat | None = None) -> None:
    """One worker's training.

    settings: {"loop": a pickled Loop}
    seat:     None: as Ray Train gives it
    """
    seat = seat or RaySeat()
    loop: Loop = pickle.loads(settings["loop"])  # nosec B301
    torch.set_num_threads(loop.threads)
    if seat.device.type == "cpu":
        keep_freed_memory()
    with contextlib.closing(_Worker(loop, seat)) as worker:
        try:
            worker.train()
        except Diverged as error:
            worker.record(error)


def keep_freed_memory() -> None:
    """Have the C library keep what is freed: a step frees and asks for the same hundreds of
    megabytes again, and fresh pages cost it a tenth of its time (glibc; elsewhere no change)."""
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def best_step(curve: Sequence[Report], metric: str) -> int | None:
    """The step of the best validation; of equals the first; None: there was none."""
    found = [(values[VALIDATED + metric], -step) for step, values in curve if _judged(values)]
    return -max(found)[1] if found else None


def stalled(curve: Sequence[Report], config: Config) -> bool:
    """Whether the last validation.patience validations were no better than one before them."""
    patience, metric = config.validation.patience, config.validation.metric
    steps = [step for step, values in curve if _judged(values)]
    best = best_step(curve, metric)
    return bool(patience) and best is not None and len(steps) - 1 - steps.index(best) >= patience


def _judged(values: Mapping[str, float]) -> bool:
    return any(name.startswith(VALIDATED) for name in values)


class _Worker:
    """Everything that one worker holds."""

    def __init__(self, loop: Loop, seat: Seat) -> None:
        self.loop, self.seat, self.config = loop, seat, loop.config
        self.batch: PairBatch | ClipBatch | None = None
        self.trainer, self.progress = self._trainer()
        config, train = loop.config, loop.config.train
        self.clips = loader.ClipLoader(
            loop.pairs,
            config,
            rank=seat.rank,
            world_size=seat.world,
            batch=train.pairs_per_batch,
            seed=train.seed,
            # Those of this machine, shared with the workers beside it.
            threads=max(1, usable_cores() // seat.beside),
            identities=loader.number_instances(loop.pairs) if config.model.num_identities else None,
        )
        self.validator: Validator | None = None
        if loop.validator is not None:
            self.validator = loop.validator(config, seat.device, seat.rank, seat.world)
        self._batches = self.clips.batches(self.trainer.step_number)
        self._speed, self._timed = Speed(), 0

    def close(self) -> None:
        """Stop reading."""
        self._batches.close()

    def train(self) -> None:
        """Steps until the last one, or until validation gets no better."""
        leaving = False
        with measures.profiled(self.loop.profile, self.seat.rank, self.loop.out) as step_over:
            while self.trainer.step_number < self.loop.stop and not stalled(
                self.progress.curve, self.config
            ):
                self._step()
                step_over()
                # A checkpoint before a machine is taken away, and then as always.
                left, leaving = leaving, leaving or self._leaving()
                self._after_step(at_once=leaving and not left)

    def _step(self) -> None:
        with self._speed.waiting():
            self.batch = networks.batch(self.config, next(self._batches))
        sums = self.progress.sums
        for name, value in self.trainer.step(self.batch).items():
            sums[name] = sums.get(name, 0.0) + value
        self.progress.count += 1
        self._timed += 1

    def _leaving(self) -> bool:
        every = max(1, self.config.train.report_every // _LOOKS)
        return self.trainer.step_number % every == 0 and self.seat.leaving()

    def _after_step(self, at_once: bool) -> None:
        """Report, validate and write a checkpoint where it is time."""
        done, config, seat = self.trainer.step_number, self.config, self.seat
        last = done == self.loop.stop
        validate = self.validator is not None and (last or done % config.validation.every == 0)
        save = validate or last or done % config.train.checkpoint_every == 0
        values: dict[str, float] = {}
        if save or done % config.train.report_every == 0:
            values = self._reported(validate)
        elif not at_once:
            return
        files = checkpoints.files(self.trainer, self.progress) if save or at_once else None
        seat.report(done, values, self.loop.out, files, config.train.keep_checkpoints)

    def _reported(self, validate: bool) -> dict[str, float]:
        """Add a report to the curve; what to tell of it: what was measured is not in the curve, so
        that equal runs have equal curves."""
        done, config, progress = self.trainer.step_number, self.config, self.progress
        frames = config.pairs.clip * config.train.pairs_per_batch
        told = self._speed.measured(frames * self._timed)
        told["learning_rate"] = self.trainer.optimizer.param_groups[0]["lr"]
        told |= measures.machine(self.seat.device)
        values = {name: value / progress.count for name, value in progress.sums.items()}
        if validate:
            values |= self._validated(done)
        progress.curve.append((done, values))
        progress.sums, progress.count = {}, 0
        best = best_step(progress.curve, config.validation.metric)
        if validate and self.seat.rank == 0 and best == done:
            # Before the checkpoint: after a kill between the two it is written again.
            with paths.whole_file(self.loop.out / BEST) as temporary:
                checkpoint.save(self.trainer.model, temporary, self.trainer.weights())
        self._speed, self._timed = Speed(), 0
        return values | told

    def _validated(self, step: int) -> dict[str, float]:
        """What the weights of now reach on the validation videos."""
        assert self.validator is not None
        found, picture = self.validator(self.trainer.weights())
        if picture is not None:
            place = self.loop.out / PICTURES / f"{checkpoints.name(step)}.jpg"
            paths.write_whole(place, picture)
        return {VALIDATED + name: value for name, value in found.items()}

    def _trainer(self) -> tuple[Trainer, Progress]:
        """The training as far as it is."""
        loop, seat = self.loop, self.seat
        # Looked up by one worker: others may still see an older listing of a network disk.
        step = seat.agreed(checkpoints.newest_step(loop.out))
        model = networks.make(loop.config)
        if not step:
            with paths.local_file(loop.out / START) as start:
                model.load_state_dict(networks.read(str(start), loop.config)[1])
        model.to(seat.device)
        trainer = Trainer(model, loop.config, wrap=seat.wrap, loss=networks.loss(loop.config))
        if not step:
            return trainer, Progress()
        state, progress = checkpoints.read(loop.out, step, seat.device)
        trainer.load_state_dict(state)
        return trainer, progress

    def record(self, error: Diverged) -> None:
        """Write what this worker knows of it into the run's directory, for `raise_diverged`.

        A worker that raised would be started again, with the same end.
        """
        assert self.batch is not None
        out, rank, rows = self.loop.out, self.seat.rank, self.clips.names(error.step)
        named = rows[error.pairs[0] - error.start : error.pairs[1] - error.start + 1]
        name = f"{_DIVERGED}step-{error.step:08d}-worker-{rank}"
        with paths.whole_file(out / f"{name}.pt") as temporary:
            divergence.save(temporary, self.trainer.model, self.batch, error.step, error.start)
        text = (
            f"{error} These pairs are: {'; '.join(named)}. The step can be computed again with "
            f"idol.learning.divergence.replay on {out / name}.pt"
        )
        told = {"text": text, "step": error.step, "pairs": error.pairs, "start": error.start}
        told["known"] = error.known
        paths.write_whole(out / f"{name}.json", json.dumps(told).encode())


def raise_diverged(out: AnyPath) -> None:
    """Raise what the workers have recorded, of all the most certain and of the fewest pairs.

    Raises: Diverged: if there is any.
    """
    told = [json.loads(path.read_text()) for path in out.glob(f"{_DIVERGED}*.json")]
    if told:
        one = min(told, key=lambda t: (not t["known"], t["pairs"][1] - t["pairs"][0]))
        pairs = one["pairs"][0], one["pairs"][1]
        raise Diverged(one["text"], one["step"], pairs, one["start"], one["known"])


def forget_divergence(out: AnyPath) -> None:
    """Remove what an earlier attempt has recorded of its end."""
    for path in out.glob(f"{_DIVERGED}*"):
        path.unlink(missing_ok=True)
