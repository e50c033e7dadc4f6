"""The network and its criterion as one module. What it draws depends on the pairs, not the run."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from idol.learning.criterion import Criterion, split
from idol.learning.matching import Matches, match, match_clips
from idol.network.model import IDOL
from idol.structures import ClipBatch, Outputs, PairBatch


class PairLoss(nn.Module):
    """The network and its criterion as one module, PairBatch or ClipBatch in, losses out.

    Forward uses all parameters: DistributedDataParallel need not search for unused ones. There is
    no random state: the negatives of a pair depend on seed, step and its position in the batch of
    all workers, dropout on seed, step and the position of the first pair of a call.
    """

    def __init__(
        self, model: IDOL, seed: int = 0, precision: Literal["fp32", "bf16"] = "fp32"
    ) -> None:
        super().__init__()
        self.model = model
        self.criterion = Criterion(model.config)
        self.seed = seed
        self.autocast = precision == "bf16"
        self.failure: str | None = None

    def forward(
        self,
        batch: PairBatch | ClipBatch,
        step: int = 0,
        first: int = 0,
        normalisers: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """batch: B pairs → the weighted total (), and every unweighted loss by its name.

        With losses.contrast "memory" the pairs are clips, here and below.

        step:        of the optimiser
        first:       position of the first pair in the batch of all workers
        normalisers: (D + 3,) as of Criterion.losses, where the step's batch is more than these

        Where numbers are not finite, `failure` says so, the total is NaN with a gradient of NaN for
        every parameter, and there are no losses: workers that wait for one another all learn of it.
        """
        outputs = self._outputs(batch, step, first)
        criterion, found = self.criterion, self._match(outputs, batch)
        if normalisers is None:
            counts = self._nothing(outputs) if found is None else found.counts()
            normalisers = criterion.normalisers(counts)
        if found is not None:
            count = len(batch)
            rngs = [
                random.Random(f"negatives {self.seed} {step} {first + b}") for b in range(count)
            ]
            try:
                losses = criterion.losses(self.model, found, rngs, normalisers=normalisers)
            except FloatingPointError as error:
                self.failure = str(error)
            else:
                return criterion.total(losses), losses
        trained = [p.sum() for p in self.model.parameters() if p.requires_grad]
        return torch.nan * torch.stack(trained).sum(), {}

    def counts(self, batch: PairBatch | ClipBatch, step: int, first: int) -> Tensor:
        """What forward would divide the losses of these pairs by, (D + 3,), before it does."""
        # With gradients enabled, though none is wanted: without, other products are chosen, and a
        # query could be matched that the pass with gradients does not match.
        with torch.enable_grad():
            outputs = self._outputs(batch, step, first)
        found = self._match(outputs, batch)
        return self._nothing(outputs) if found is None else found.counts()

    def normalisers(self, counts: Tensor) -> Tensor:
        """As Criterion.normalisers: counts (D + 3,) to (D + 3,)."""
        return self.criterion.normalisers(counts)

    def _match(self, outputs: Outputs, batch: PairBatch | ClipBatch) -> Matches | None:
        self.failure, config = None, self.model.config
        try:
            if isinstance(batch, ClipBatch):
                return match_clips(outputs, batch, config)
            return match(*split(outputs, len(batch)), batch, config)
        except FloatingPointError as error:
            self.failure = str(error)
            return None

    def _nothing(self, outputs: Outputs) -> Tensor:
        size = len(outputs.logits) + 3
        return torch.zeros(size, dtype=torch.int64, device=outputs.logits.device)

    def _outputs(self, batch: PairBatch | ClipBatch, step: int, first: int) -> Outputs:
        """The network's outputs of all frames: the key frames, then the reference frames."""
        # One pass: the network treats images separately.
        sides = batch.sides()
        images = torch.cat([side.images for side in sides])
        padding = torch.cat([side.padding for side in sides])
        autocast = torch.autocast(images.device.type, torch.bfloat16, enabled=self.autocast)
        with seeded(f"dropout {self.seed} {step} {first}", images.device), autocast:
            outputs: Outputs = self.model(images, padding)
        if self.autocast:
            # The heads that the criterion calls run in float32 too: relative coordinates of masks
            # have up to four digits of pixels, and bfloat16 keeps two and a half.
            outputs = _in_float32(outputs)
        return outputs


@contextmanager
def seeded(name: str, device: torch.device) -> Iterator[None]:
    """A block whose random numbers are those of this name; the caller's go on as if without it."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(random.Random(name).getrandbits(63))
        yield


def _in_float32(outputs: Outputs) -> Outputs:
    values = ((f.name, getattr(outputs, f.name)) for f in dataclasses.fields(outputs))
    floats = {n: v.float() for n, v in values if isinstance(v, Tensor) and v.is_floating_point()}
    return dataclasses.replace(outputs, **floats)  # type: ignore[arg-type]
