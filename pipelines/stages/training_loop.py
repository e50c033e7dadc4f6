"""What every worker of a training does: batches, steps, reports and checkpoints."""

from __future__ import annotations

import contextlib
import ctypes
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from idol.analysis.cores import usable_cores
from idol.config import Config
from idol.learning import divergence
from idol.learning.divergence import Diverged
from idol.learning.training import Trainer
from idol.network.model import IDOL
from idol.structures import PairBatch
from idol.weights import checkpoint
from pipelines.batches import loader
from pipelines.batches.speed import Speed
from pipelines.storage import paths, steps
from pipelines.storage.layout import LOSSES
from pipelines.storage.paths import AnyPath

WEIGHTS = "checkpoint.safetensors"
"""The result: weights to evaluate with (the average where there is one), and their config."""
START = "_start.safetensors"
"""The weights that all workers start from."""
Report = tuple[int, dict[str, float]]
"""Step, and the means of its losses since the report before."""
_STATE = "training.pt"  # optimiser, average and step, to go on from
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_DIVERGED = "diverged-"  # files about a step that is not finite


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """The settings of a worker: absolute paths, and the step after which to end."""

    config: Config
    pairs: AnyPath
    out: AnyPath
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """A worker among `world`, `beside` of them on its machine.

    wrap: see Trainer
    """

    rank: int = 0
    world: int = 1
    beside: int = 1
    device: torch.device
    wrap: Any = None

    @classmethod
    def given(cls) -> Seat:
        """By Ray Train."""
        from ray.train import get_context
        from ray.train.torch import get_device, prepare_model

        wrap = partial(prepare_model, parallel_strategy_kwargs={"gradient_as_bucket_view": True})
        return cls(
            rank=get_context().get_world_rank(),
            world=get_context().get_world_size(),
            beside=get_context().get_local_world_size(),
            device=get_device(),
            wrap=wrap,
        )


def work(settings: dict[str, Any], seat: Seat | None = None) -> None:
    """One worker's training.

    settings: {"loop": Loop, "mailbox": the driver's}
    seat:     None: as Ray Train gives it
    """
    seat = seat or Seat.given()
    # One core is what a worker reserves; and sums of another number of threads are other bits.
    torch.set_num_threads(1)
    if seat.device.type == "cpu":
        keep_freed_memory()
    loop: Loop = settings["loop"]
    config = loop.config
    rank, world = seat.rank, seat.world
    trainer, curve = _trainer(loop, seat)
    clips = loader.ClipLoader(
        loop.pairs,
        config,
        rank=rank,
        world_size=world,
        batch=config.train.pairs_per_batch,
        seed=config.train.seed,
        # Those of this machine, shared with the workers beside it.
        threads=max(1, usable_cores() // seat.beside),
        identities=loader.number_instances(loop.pairs) if config.model.num_identities else None,
    )
    batches = clips.batches(trainer.step_number)
    sums: dict[str, float] = {}
    since, speed = 0, Speed()
    while trainer.step_number < loop.stop:
        with speed.waiting():
            batch = next(batches).pairs()
        try:
            numbers = trainer.step(batch)
        except Diverged as error:
            _record(error, trainer.model, batch, clips.names(error.step), loop.out, rank)
            return
        for name, value in numbers.items():
            sums[name] = sums.get(name, 0.0) + value
        since += 1
        done = trainer.step_number
        if done % config.train.report_every == 0 or done == loop.stop:
            means = {name: value / since for name, value in sums.items()}
            curve.append((done, means))
            if rank == 0:
                measured = speed.measured(2 * config.train.pairs_per_batch * since)
                # Not into the curve: equal runs have equal curves.
                settings["mailbox"].put.remote(done, means | measured)
            sums, since, speed = {}, 0, Speed()
        if rank == 0 and (done % config.train.checkpoint_every == 0 or done == loop.stop):
            _commit(trainer, curve, loop.out)


def keep_freed_memory() -> None:
    """Have the C library keep what is freed: a step frees and asks for the same hundreds of
    megabytes again, and fresh pages cost it a tenth of its time (glibc; elsewhere no change)."""
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def _trainer(loop: Loop, seat: Seat) -> tuple[Trainer, list[Report]]:
    """The training as far as it is, and its reports so far."""
    previous = steps.complete(loop.out, LOSSES)
    model = IDOL(loop.config)
    if not previous:
        with paths.local_file(loop.out / START) as start:
            model.load_state_dict(checkpoint.read(start)[1])
    model.to(seat.device)
    trainer = Trainer(model, loop.config, wrap=seat.wrap)
    if not previous:
        return trainer, []
    with paths.local_file(previous[-1] / _STATE) as saved:
        state = torch.load(saved, map_location=seat.device, weights_only=True)
    trainer.load_state_dict(state)
    return trainer, json.loads((previous[-1] / LOSSES).read_text())


def _commit(trainer: Trainer, curve: list[Report], out: AnyPath) -> None:
    """Write the checkpoint of this step in the place of earlier ones."""
    # Not Ray Train's checkpoints: those are registered at the controller's next look, so a killed
    # run loses the newest, and they are resumed from unasked by any run of the same name.
    steps.commit(
        out,
        trainer.step_number,
        {
            WEIGHTS: lambda path: checkpoint.save(trainer.model, path, trainer.weights()),
            _STATE: lambda path: torch.save(trainer.state_dict(), path),
            LOSSES: lambda path: path.write_text(json.dumps(curve)),
        },
    )


def _record(
    error: Diverged, model: IDOL, batch: PairBatch, rows: Sequence[str], out: AnyPath, rank: int
) -> None:
    """Write what a worker knows of it into the run's directory, for `raise_diverged`.

    A worker that raised would be started again by Ray Train, with the same end.

    batch: the worker's pairs of that step; rows: what they are, in words
    """
    named = rows[error.pairs[0] - error.start : error.pairs[1] - error.start + 1]
    name = f"{_DIVERGED}step-{error.step:08d}-worker-{rank}"
    with paths.whole_file(out / f"{name}.pt") as temporary:
        divergence.save(temporary, model, batch, error.step, error.start)
    text = (
        f"{error} These pairs are: {'; '.join(named)}. The step can be computed again with "
        f"idol.learning.divergence.replay on {out / name}.pt"
    )
    told = {"text": text, "step": error.step, "pairs": error.pairs, "start": error.start}
    paths.write_whole(out / f"{name}.json", json.dumps(told).encode())


def raise_diverged(out: AnyPath) -> None:
    """Raise what the workers have recorded. Raises: Diverged: of the fewest pairs, if any."""
    told = [json.loads(path.read_text()) for path in out.glob(f"{_DIVERGED}*.json")]
    if told:
        one = min(told, key=lambda t: t["pairs"][1] - t["pairs"][0])
        raise Diverged(one["text"], one["step"], tuple(one["pairs"]), one["start"])


def forget_divergence(out: AnyPath) -> None:
    """Remove what an earlier attempt has recorded of its end."""
    for path in out.glob(f"{_DIVERGED}*"):
        path.unlink(missing_ok=True)
