"""A training step whose numbers are not finite: the error, the batch on disk, and its replay."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from idol.config import Config, from_dict, to_dict
from idol.files import whole_file
from idol.learning.pair_loss import PairLoss
from idol.network.layers import Network
from idol.network.model import IDOL
from idol.structures import ClipBatch, PairBatch, Targets


class Diverged(FloatingPointError):
    """A loss or a gradient is not finite. The weights are as before the step, and the same step
    ends in the same way: do not try again.

    step:  number of the step, from 0
    pairs: positions in the batch of all workers: of the first and the last pair of the micro-batch
           whose loss was not finite; where only the gradient was not, of all that the worker had
    start: position of the first pair that the worker had
    known: whether the loss of these pairs is at fault; False: they may be those of another worker,
           whose gradients all share
    """

    def __init__(
        self, message: str, step: int, pairs: tuple[int, int], start: int, known: bool = True
    ) -> None:
        super().__init__(message, step, pairs, start, known)
        self.step, self.pairs, self.start, self.known = step, pairs, start, known

    def __str__(self) -> str:
        return str(self.args[0])


def save(path: Path, model: Network, batch: PairBatch | ClipBatch, step: int, first: int) -> None:
    """Write what a replay of a step needs: weights, configuration and the worker's pairs.

    first: position of the first of the pairs in the batch of all workers
    """
    state = {
        "config": to_dict(model.config),
        "model": model.state_dict(),
        "batch": _plain(batch),
        "step": step,
        "first": first,
    }
    with whole_file(path) as temporary:
        torch.save(state, temporary)


def _pair_loss(config: Config) -> PairLoss:
    return PairLoss(IDOL(config), config.train.seed, config.train.precision)


def replay(path: Path, loss: Callable[[Config], Any] = _pair_loss) -> dict[str, float]:
    """Compute the saved step once more, forward and backward, on the CPU and in one piece.

    loss:    makes the network with its criterion; idol.clips.training.clip_loss for clips
    returns: every loss, and "gradient_norm"
    Raises: Diverged: the losses are not finite, as when the step was computed.
    """
    state = torch.load(path, map_location="cpu", weights_only=True)
    network = loss(from_dict(Config, state["config"]))
    model = network.model.train()
    model.load_state_dict(state["model"])
    step, first, batch = state["step"], state["first"], _batch(state["batch"])
    total, losses = network(batch, step, first)
    if network.failure is not None:
        last = first + len(batch) - 1
        raise Diverged(network.failure, step, (first, last), first)
    total.backward()
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    return {"gradient_norm": float(norm), **{name: v.item() for name, v in losses.items()}}


def _plain(value: Any) -> Any:
    """Dataclasses as dicts, so that the file holds nothing but tensors, lists and dicts."""
    if isinstance(value, PairBatch | ClipBatch | Targets):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return value.clone() if isinstance(value, torch.Tensor) else value


def _batch(fields: dict[str, Any]) -> PairBatch | ClipBatch:
    if "targets" in fields:
        targets = [[Targets(**t) for t in clip] for clip in fields["targets"]]
        return ClipBatch(**{**fields, "targets": targets})
    sides = ("key_targets", "reference_targets")
    return PairBatch(**{**fields, **{s: [Targets(**t) for t in fields[s]] for s in sides}})
