"""A network of clips and its criterion as one module, for idol.learning.Trainer."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from idol.clips.criterion import ClipCriterion
from idol.clips.network import ClipLayers, ClipNetwork
from idol.clips.weights import make
from idol.config import Config
from idol.learning.pair_loss import seeded
from idol.structures import ClipBatch


class ClipLoss(nn.Module):
    """ClipBatch in, losses out; Trainer(model, config, loss=ClipLoss). As PairLoss has it, what is
    random depends on seed, step and position, and `failure` says where numbers are not finite."""

    def __init__(
        self, model: ClipNetwork, seed: int = 0, precision: Literal["fp32", "bf16"] = "fp32"
    ) -> None:
        super().__init__()
        self.model = model
        self.criterion = ClipCriterion(model.config)
        self.seed = seed
        self.autocast = precision == "bf16"
        self.failure: str | None = None

    def forward(
        self, batch: ClipBatch, step: int = 0, first: int = 0, normalisers: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """batch: B clips → the weighted total (), and every unweighted loss by its name.

        step, first: of the optimiser; position of the first clip in the batch of all workers
        normalisers: (2,) as of ClipCriterion.normalisers, where a worker's part is more than these
        """
        self.failure, criterion = None, self.criterion
        layers = self._layers(batch, step, first)
        truths = criterion.truths(batch)
        if normalisers is None:
            normalisers = criterion.normalisers(criterion.counts(truths))
        try:
            matched = criterion.match(layers, truths)
            losses = criterion.losses(layers, matched, truths, normalisers)
        except FloatingPointError as error:
            self.failure = str(error)
            trained = [p.sum() for p in self.model.parameters() if p.requires_grad]
            return torch.nan * torch.stack(trained).sum(), {}
        return criterion.total(losses), losses

    def counts(self, batch: ClipBatch, step: int, first: int) -> Tensor:
        """(2,) what the losses of these clips are divided by; needs no pass, step or first."""
        return self.criterion.counts(self.criterion.truths(batch))

    def normalisers(self, counts: Tensor) -> Tensor:
        """As ClipCriterion.normalisers: counts (2,) to (2,)."""
        return self.criterion.normalisers(counts)

    def _layers(self, batch: ClipBatch, step: int, first: int) -> ClipLayers:
        images, padding, length = batch.images, batch.padding, batch.images.shape[1]
        autocast = torch.autocast(images.device.type, torch.bfloat16, enabled=self.autocast)
        with seeded(f"dropout {self.seed} {step} {first}", images.device), autocast:
            frames = self.model.frames(images.flatten(0, 1), padding.flatten(0, 1), length)
            return self.model.layers(frames, length)


def clip_loss(config: Config) -> ClipLoss:
    """A new network with its criterion, for idol.learning.divergence.replay."""
    return ClipLoss(make(config), config.train.seed, config.train.precision)
