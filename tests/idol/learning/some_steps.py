"""A few training steps, as a program of its own.

python -m tests.idol.learning.some_steps OUT LAST [STATE] [--preset]: on from STATE, if given, up to
step LAST; what a checkpoint holds goes to OUT.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import idol
from idol import presets
from idol.config import Config
from idol.learning.training import Trainer
from tests.idol.learning import made_up_pairs as made

SMALL = ("train.ema_decay=0.9", "model.dropout=0.1", "train.micro_batch=2", "train.clip_norm=1")
COUNTS = ((2, 1, 3, 0), (1, 0, 0, 2), (0, 0, 0, 0))


def start(config: Config) -> Trainer:
    """A trainer whose weights are the same in every process."""
    torch.manual_seed(0)
    return Trainer(idol.IDOL(config), config)


def small() -> Config:
    """All losses, dropout, a weight average and two micro-batches."""
    return made.config(*SMALL)


def go_on(trainer: Trainer, last: int) -> Trainer:
    """Take the steps up to one; the batch of a step depends on nothing but its number."""
    while trainer.step_number < last:
        step = trainer.step_number
        trainer.step(made.batch(made.examples(COUNTS[step % 3], seed=step)))
    return trainer


def main(arguments: list[str]) -> None:
    """Read the command line above."""
    torch.set_num_threads(1)
    preset = "--preset" in arguments
    out, last, *state = (a for a in arguments if a != "--preset")
    trainer = start(presets.by_name("tiny") if preset else small())
    if state:
        trainer.load_state_dict(torch.load(Path(state[0]), weights_only=True))
    torch.save(go_on(trainer, int(last)).state_dict(), Path(out))


if __name__ == "__main__":
    main(sys.argv[1:])
