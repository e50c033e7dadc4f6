"""What happens while a network is trained: the worker's loop, its checkpoints, what it tells.

A file is one noun of a training. The stage that starts it is `pipelines.stages.train`.
"""

from typing import TYPE_CHECKING

from idol.lazy import attach

if TYPE_CHECKING:
    from pipelines.training.initial_model import Start, initial_model
    from pipelines.training.workers import Workers

__all__ = ["Start", "Workers", "initial_model"]

__getattr__, __dir__ = attach(__name__)
