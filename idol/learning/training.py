"""One optimiser step of the method, on any device, alone or under DistributedDataParallel."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from idol.config import Config, TrainConfig
from idol.learning.criterion import Criterion, split
from idol.network.model import IDOL
from idol.structures import Outputs, PairBatch


class PairLoss(nn.Module):
    """The network and its criterion as one module, PairBatch in, losses out.

    Forward uses all parameters: DistributedDataParallel need not search for unused ones.
    """

    def __init__(
        self, model: IDOL, seed: int = 0, precision: Literal["fp32", "bf16"] = "fp32"
    ) -> None:
        super().__init__()
        self.model = model
        self.criterion = Criterion(model.config)
        self.random = random.Random(seed)
        self.autocast = precision == "bf16"

    def forward(self, batch: PairBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """batch: B pairs → the weighted total (), and every unweighted loss by its name."""
        # One pass over all key and reference frames: the network treats images separately.
        with torch.autocast(batch.key_images.device.type, torch.bfloat16, enabled=self.autocast):
            outputs = self.model(
                torch.cat([batch.key_images, batch.reference_images]),
                torch.cat([batch.key_padding, batch.reference_padding]),
            )
        if self.autocast:
            # The heads that the criterion calls run in float32 too: relative coordinates of masks
            # have up to four digits of pixels, and bfloat16 keeps two and a half.
            outputs = _in_float32(outputs)
        key, reference = split(outputs, len(batch.key_images))
        losses = self.criterion(self.model, key, reference, batch, self.random)
        return self.criterion.total(losses), losses


def _in_float32(outputs: Outputs) -> Outputs:
    values = ((f.name, getattr(outputs, f.name)) for f in dataclasses.fields(outputs))
    floats = {n: v.float() for n, v in values if isinstance(v, Tensor) and v.is_floating_point()}
    return dataclasses.replace(outputs, **floats)  # type: ignore[arg-type]


def learning_rate_factor(step: int, config: TrainConfig) -> float:
    """Learning rate of the step, from 0, as a fraction of the peak (TrainConfig.schedule)."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "step":
        return float(0.1 ** sum(step >= milestone for milestone in config.milestones))
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return config.final_rate + (1 - config.final_rate) * cosine


def make_optimizer(model: IDOL, config: TrainConfig) -> torch.optim.AdamW:
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
    """Optimiser, schedule, gradient clip and weight average around a PairLoss.

    wrap: given the PairLoss, returns the module to call, for example DistributedDataParallel
    """

    def __init__(
        self,
        model: IDOL,
        config: Config,
        *,
        seed: int = 0,
        wrap: Callable[[PairLoss], nn.Module] | None = None,
    ) -> None:
        self.config = config.train
        self.model = model.train()
        pair_loss = PairLoss(model, seed, config.train.precision)
        self.network: nn.Module = wrap(pair_loss) if wrap is not None else pair_loss
        self.optimizer = make_optimizer(model, config.train)
        self.step_number = 0
        self.average: dict[str, Tensor] | None = None
        if config.train.ema_decay > 0:
            self.average = {k: v.clone() for k, v in model.state_dict().items()}

    def step(self, batch: PairBatch) -> dict[str, float]:
        """One optimiser step. Returns the total, every loss and the gradient norm as numbers.

        Raises: FloatingPointError: the gradient is not finite; the weights are unchanged.
        """
        rate = self.config.learning_rate * learning_rate_factor(self.step_number, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        total, losses = self.network(batch)
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        numbers = torch.stack([total, norm, *losses.values()]).tolist()
        if not math.isfinite(numbers[1]):
            self.optimizer.zero_grad(set_to_none=True)
            raise FloatingPointError(
                f"the gradient norm is {numbers[1]} at step {self.step_number} with losses "
                f"{dict(zip(losses, numbers[2:], strict=True))}. Lower train.learning_rate."
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step_number += 1
        self._update_average()
        return dict(zip(("loss", "gradient_norm", *losses), numbers, strict=True))

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
        """All that a resumed run needs."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "step": self.step_number,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where state_dict was taken."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average = state["average"]
        self.step_number = int(state["step"])
