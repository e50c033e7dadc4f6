"""From network outputs and truth to a training step: assignment, losses, optimiser."""

from typing import TYPE_CHECKING

from idol.lazy import attach

if TYPE_CHECKING:
    from idol.learning.criterion import Criterion, split
    from idol.learning.divergence import Diverged
    from idol.learning.pair_loss import PairLoss
    from idol.learning.training import Trainer

__all__ = ["Criterion", "Diverged", "PairLoss", "Trainer", "split"]

__getattr__, __dir__ = attach(__name__)
