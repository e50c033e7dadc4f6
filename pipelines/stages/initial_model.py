"""The network that a training starts from: random, or weights fitted to the dataset's classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from idol.config import Config
from idol.network.model import IDOL
from idol.weights import checkpoint

_TRAINING_ONLY = ("dense_head.", "identity_head.")  # parts that weights may lack, or have unasked


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a training starts from.

    weights:          see idol.load; None: random
    backbone_weights: ImageNet weights for the backbone alone (see idol.weights.imagenet)
    reset_classes:    initialise class heads of another size instead of raising
    """

    weights: str | None = None
    backbone_weights: str | None = None
    reset_classes: bool = False


def initial_model(config: Config, start: Start) -> IDOL:
    """The network to start from, in the configuration of this run.

    Raises:
        CheckpointError: the weights do not fit.
        ValueError: class heads would be reset unasked, or both kinds of weights are given.
    """
    import torch

    weights = start.weights
    if weights is not None and start.backbone_weights is not None:
        raise ValueError(
            f"weights ({weights}) bring a backbone of their own: leave out backbone_weights "
            f"({start.backbone_weights}), or the weights."
        )
    torch.manual_seed(config.train.seed)
    model = IDOL(config)
    if start.backbone_weights is not None:
        from idol.weights.imagenet import load_imagenet

        load_imagenet(model.backbone, start.backbone_weights)
    if weights is None:
        return model
    state = checkpoint.read(weights)[1]
    _settle_training_heads(state, model)
    replaced = checkpoint.adapt_classes(state, model)
    if replaced and not start.reset_classes:
        raise ValueError(
            f"{weights} has class heads of another size than this dataset's "
            f"{config.model.num_classes} categories ({', '.join(config.categories[:8])}, ...). "
            "Pass --reset-classes to start them anew."
        )
    checkpoint.check_state(model, state, weights)
    model.load_state_dict(state)
    return model


def _settle_training_heads(state: dict[str, Any], model: IDOL) -> None:
    """Make the training heads of a state those of the model.

    Heads that the model lacks are dropped; heads that the state lacks are added, as initialised.
    An identity head for another number of instances belongs to another training set, and is
    initialised too.
    """
    own = model.state_dict()
    for key in [k for k in state if k.startswith(_TRAINING_ONLY)]:
        foreign = key.startswith("identity_head.") and (
            key in own and own[key].shape != state[key].shape
        )
        if key not in own or foreign:
            del state[key]
    for key, value in own.items():
        if key.startswith(_TRAINING_ONLY):
            state.setdefault(key, value)
