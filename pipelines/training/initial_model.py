"""The network that a training starts from: random, or weights fitted to the dataset's classes."""

from __future__ import annotations

import hashlib
import logging
import re
from dataclasses import asdict, dataclass

from idol.addresses import is_remote, shown
from idol.config import Config
from idol.config.categories import differing
from idol.network.layers import Network
from idol.weights import checkpoint
from pipelines.storage import claims, layout, manifest, paths
from pipelines.training import checkpoints, networks

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a training starts from.

    weights:          see idol.load, or the directory of a finished training; None: random
    backbone_weights: ImageNet weights for the backbone alone (see idol.weights.imagenet)
    reset_classes:    initialise class heads for other categories instead of raising
    """

    weights: str | None = None
    backbone_weights: str | None = None
    reset_classes: bool = False

    def recorded(self) -> dict[str, str | bool | None]:
        """The fields as settings of a run: of a URL's query, a secret perhaps, 16 bits of hash."""
        return {k: _recorded(v) if isinstance(v, str) else v for k, v in asdict(self).items()}


def _recorded(source: str) -> str:
    name = shown(source)
    if name == source:
        return name
    # The query may be all that tells two files apart; who logs in with it does not matter.
    rest = "".join(re.split(r"([?#])", source, maxsplit=1)[1:])
    return f"{name} ({hashlib.sha256(rest.encode()).hexdigest()[:4]})" if rest else name


def file_of(weights: str) -> str:
    """The file of weights, of the directory of a training its result.

    Raises: ManifestError: of the directory of an unfinished training, or of another stage.
    """
    if weights == "shipped" or (is_remote(weights) and not paths.is_bucket(weights)):
        return weights
    place = paths.at(weights)
    if not claims.is_claimed(place):
        return weights
    manifest.read(place, layout.TRAIN)
    return str(place / checkpoints.WEIGHTS)


def initial_model(config: Config, start: Start) -> Network:
    """The network to start from, in the configuration of this run.

    Raises:
        CheckpointError: the weights do not fit.
        ManifestError: the weights are the directory of an unfinished training.
        ValueError: class heads would be reset unasked, or both kinds of weights are given.
    """
    import torch

    weights = start.weights
    if weights is not None and start.backbone_weights is not None:
        raise ValueError(
            f"weights ({shown(weights)}) bring a backbone of their own: leave out backbone_weights "
            f"({shown(start.backbone_weights)}), or the weights."
        )
    torch.manual_seed(config.train.seed)
    model = networks.make(config)
    if start.backbone_weights is not None:
        from idol.weights.imagenet import load_imagenet

        load_imagenet(model.backbone, start.backbone_weights)
    if weights is None:
        return model
    with paths.fetched(file_of(weights)) as source:
        stored, state = networks.read(source, config)
    checkpoint.adapt_training_heads(state, model)
    known = checkpoint.known_categories(weights, stored)
    other = differing(known, config.categories) if known and config.categories else ""
    unknown = not known and start.reset_classes
    replaced = checkpoint.adapt_classes(state, model, all_heads=bool(other) or unknown)
    if replaced and not start.reset_classes:
        raise ValueError(
            f"{shown(weights)} has class heads for other categories than this dataset's "
            f"{config.model.num_classes} ({', '.join(config.categories[:8])}, ...)"
            f"{': ' + other if other else ''}. Pass --reset-classes to start them from random "
            "weights."
        )
    if not known and not replaced:
        _log.warning(
            "%s does not say which categories it was trained on: its class heads are taken for "
            "those of the dataset, in the order of the category ids",
            shown(weights),
        )
    checkpoint.check_state(model, state, shown(weights))
    model.load_state_dict(state)
    return model
