"""One optimiser step of the method, on any device, alone or under DistributedDataParallel."""

from __future__ import annotations

import logging
import math
import statistics
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, distributed, nn

from idol.config import Config, TrainConfig
from idol.learning.divergence import Diverged
from idol.learning.pair_loss import PairLoss
from idol.learning.pieces import Batch, cut, joined_size, part_of_batch, resized, trimmed_size
from idol.network.layers import Network
from idol.structures import ClipBatch, PairBatch

_log = logging.getLogger(__name__)

_SPIKE = 10.0  # times the median of the last losses
_REMEMBERED = 100  # steps, as many without another warning
_ENOUGH = 20  # losses that make a median


def learning_rate_factor(step: int, config: TrainConfig) -> float:
    """Learning rate of the step, from 0, as a fraction of the peak (TrainConfig.schedule)."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "step":
        return float(0.1 ** sum(step >= milestone for milestone in config.milestones))
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return config.final_rate + (1 - config.final_rate) * cosine


class BatchLoss(Protocol):
    """A network with its criterion, called as PairLoss is, on whatever batches it is for."""

    failure: str | None

    def counts(self, batch: Any, step: int, first: int) -> Tensor:
        """What forward would divide the losses of these samples by, before it does."""

    def normalisers(self, counts: Tensor) -> Tensor:
        """What to divide by, of the counts of a worker's whole part of a batch."""


def make_optimizer(model: Network, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with a lower rate for the backbone, weight decay on everything (specification 6)."""
    backbone: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (backbone if name.startswith("backbone.") else rest).append(parameter)
    groups = [{"params": rest, "factor": 1.0}, {"params": backbone, "factor": config.backbone_rate}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        fused=True,
    )


class Trainer:
    """Optimiser, schedule, gradient clip and weight average around a network with its criterion.

    In a process group every worker has a Trainer and gives it its part of each batch
    (`part_of_batch` of config.train.pairs_per_batch). Nothing random has a state: a run that goes
    on from state_dict, with as many workers and threads, ends with the bits of one that never
    stopped.

    wrap: given the loss, returns the module to call, for example DistributedDataParallel
    loss: given network, seed and precision, the module of it with its criterion: a BatchLoss. The
          default is for pairs; "pairs" below are clips where it is for clips
    """

    def __init__(
        self,
        model: Network,
        config: Config,
        *,
        wrap: Callable[[Any], nn.Module] | None = None,
        loss: Callable[..., Any] = PairLoss,
    ) -> None:
        self.config = config.train
        self.divisor = config.transforms.size_divisor
        self.pair_loss: BatchLoss = loss(model, config.train.seed, config.train.precision)
        self.whole = config.losses.normaliser == "global" or config.model.method != "idol"
        self.model = model.train()
        self.network: Any = wrap(self.pair_loss) if wrap is not None else self.pair_loss
        self.optimizer = make_optimizer(model, config.train)
        self.step_number = 0
        self.average: dict[str, Tensor] | None = None
        if config.train.ema_decay > 0:
            self.average = {k: v.clone() for k, v in model.state_dict().items()}
        self._recent: deque[float] = deque(maxlen=_REMEMBERED)
        self._quiet_until = 0

    def step(self, batch: PairBatch | ClipBatch) -> dict[str, float]:
        """One optimiser step. Returns the total, every loss and the gradient norm as numbers, the
        mean over the workers.

        batch: this worker's pairs, on any device; without a process group any number of them
        Raises:
            Diverged: a loss or the gradient is not finite; the weights are unchanged.
            ValueError: the batch is not this worker's part.
        """
        rate = self.config.learning_rate * learning_rate_factor(self.step_number, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        values, failure = self._gradients(batch)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        if failure is not None or not math.isfinite(norm):
            self.optimizer.zero_grad(set_to_none=True)
            raise failure or self._no_gradient(batch, float(norm), values)
        numbers = torch.stack([*values.values(), norm])
        if _workers() > 1:
            distributed.all_reduce(numbers)
            numbers /= _workers()
        found = dict(zip([*values, "gradient_norm"], numbers.tolist(), strict=True))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._watch(found["loss"])
        self.step_number += 1
        self._update_average()
        return found

    def part(self, batch: PairBatch | ClipBatch) -> range:
        """The positions of this worker's pairs in the batch of all workers. Raises: as step."""
        count = len(batch)
        if _workers() == 1:
            return range(count)
        mine = part_of_batch(self.config.pairs_per_batch, distributed.get_rank(), _workers())
        if len(mine) != count:
            raise ValueError(
                f"worker {distributed.get_rank()} of {_workers()} has {len(mine)} of the "
                f"{self.config.pairs_per_batch} pairs of a batch, got {count}."
            )
        return mine

    def _gradients(self, batch: PairBatch | ClipBatch) -> tuple[dict[str, Tensor], Diverged | None]:
        """Set the gradients of the step; total and losses (), and what is not finite in them."""
        mine = self.part(batch)
        pairs = len(mine) if _workers() == 1 else self.config.pairs_per_batch
        size = self.config.micro_batch or pairs
        firsts = range(mine.start, mine.stop, size)
        pieces = list(zip(firsts, self._pieces(batch, size), strict=True))
        normalisers = None
        # Also where only other workers have several: all take part in the sum of the counts.
        if self.whole and -(-pairs // _workers()) > size:
            counts = [self.pair_loss.counts(p, self.step_number, first) for first, p in pieces]
            normalisers = self.pair_loss.normalisers(torch.stack(counts).sum(0))
        sums: dict[str, Tensor] = {}
        failure = None
        for first, piece in pieces:
            count = len(piece)
            share = 1.0 if self.whole else _workers() * count / pairs
            with nullcontext() if first == firsts[-1] else self._unsynchronised():
                total, losses = self.network(piece, self.step_number, first, normalisers)
                (total * share).backward()
            for name, value in {"loss": total, **losses}.items():
                sums[name] = sums.get(name, 0.0) + share * value.detach()
            if self.pair_loss.failure is not None:
                last = first + count - 1
                text = f"step {self.step_number}, pairs {first} to {last} of its batch: "
                failure = Diverged(
                    text + self.pair_loss.failure, self.step_number, (first, last), mine.start
                )
        return sums, failure

    def _no_gradient(
        self, batch: PairBatch | ClipBatch, norm: float, values: dict[str, Tensor]
    ) -> Diverged:
        mine = self.part(batch)
        losses = {name: float(value) for name, value in values.items()}
        return Diverged(
            f"the gradient norm is {norm} at step {self.step_number} with losses {losses} of pairs "
            f"{mine.start} to {mine.stop - 1}. Lower train.learning_rate.",
            self.step_number,
            (mine.start, mine.stop - 1),
            mine.start,
            known=False,
        )

    def _pieces(self, batch: Batch, size: int) -> list[Batch]:
        """The micro-batches on the device, padded as the normaliser needs it."""
        device = next(self.model.parameters()).device
        here = batch.sides()[0].images.device == device
        pieces = cut(batch if here else batch.to(device), size)
        if not self.whole:
            # Each has the padding of its own pictures, as on a worker of its own.
            alone = len(pieces) == 1
            return pieces if alone else [resized(p, trimmed_size(p, self.divisor)) for p in pieces]
        # Padding is part of what norms and mask losses average over: one size on all workers.
        height, width = joined_size(pieces)
        if _workers() > 1:
            sides = torch.tensor([height, width], device=device)
            distributed.all_reduce(sides, distributed.ReduceOp.MAX)
            height, width = sides.tolist()
        return [resized(piece, (height, width)) for piece in pieces]

    def _unsynchronised(self) -> AbstractContextManager[object]:
        """A context in which DistributedDataParallel adds up gradients without sharing them."""
        no_sync = getattr(self.network, "no_sync", nullcontext)
        context: AbstractContextManager[object] = no_sync()
        return context

    def _watch(self, loss: float) -> None:
        """Warn of a loss far above those before it, once in a while."""
        step = self.step_number
        if len(self._recent) >= _ENOUGH and step >= self._quiet_until:
            usual = statistics.median(self._recent)
            if loss > _SPIKE * usual:
                _log.warning(
                    "the loss of step %d is %.4g, that of the %d steps before it %.4g (median). If "
                    "it stays so, lower train.learning_rate.",
                    step, loss, len(self._recent), usual,
                )  # fmt: skip
                self._quiet_until = step + _REMEMBERED
        self._recent.append(loss)

    @torch.no_grad()
    def _update_average(self) -> None:
        if self.average is None:
            return
        # In the first steps the average follows faster, so that the random start is forgotten.
        decay = min(self.config.ema_decay, (1 + self.step_number) / (10 + self.step_number))
        mine, theirs = [], []
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                mine.append(self.average[name])
                theirs.append(value)
            else:
                self.average[name].copy_(value)
        torch._foreach_lerp_(mine, theirs, 1 - decay)

    def weights(self) -> dict[str, Tensor]:
        """The weights to evaluate with: the moving average if there is one."""
        return self.model.state_dict() if self.average is None else self.average

    def state_dict(self) -> dict[str, Any]:
        """All that a run needs to go on, on any number of workers."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "step": self.step_number,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where state_dict was taken.

        Raises: ValueError: one of the two runs averages its weights, the other does not.
        """
        if (state["average"] is None) != (self.average is None):
            raise ValueError(
                "train.ema_decay is 0 in one of the two runs and not in the other: go on with the "
                "configuration that the checkpoint was made with."
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, value in (self.average or {}).items():
            value.copy_(state["average"][name])
        self.step_number = int(state["step"])


def _workers() -> int:
    running = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if running else 1
