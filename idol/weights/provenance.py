"""Which preset a file of weights belongs to: by a released file's name, and by its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from idol import presets
from idol.config import Config, ModelConfig
from idol.network.model import IDOL
from idol.weights.report import LoadReport, compare

TRAINING_HEADS = ("dense_head.", "identity_head.")
"""Prefixes of the parts that only training uses; weights for inference may lack them."""

# The names of the released files: cocopretrain_R50.pth, YTVIS19_SWINL_639AP-003.pth, ...
_DATASETS = {"cocopretrain": "coco", "ytvis19": "ytvis19", "ytvis21": "ytvis21", "ovis": "ovis"}
_RELEASED = re.compile(rf"({'|'.join(_DATASETS)})[_-](r50|r101|swinl)(?![a-z0-9])")


@dataclass(frozen=True, slots=True)
class Candidates:
    """Presets by how well their networks take a state dict."""

    fitting: tuple[str, ...]
    """Those that take it as it is."""
    other_classes: tuple[str, ...]
    """Those that take it but for the number of classes."""
    nearest: str
    """The one with the fewest differences."""
    report: LoadReport
    """Those differences, the number of classes aside."""


def named(file_name: str) -> str | None:
    """The preset of a released file by its name: "YTVIS19_R50_502AP.pth" is "ytvis19_r50"."""
    match = _RELEASED.match(file_name.lower())
    if match is None:
        return None
    wanted = _DATASETS[match[1]] + match[2]
    # Presets spell Swin-L as swin_l or swinl; underscores are no difference.
    found = [name for name in presets.PRESETS if name.replace("_", "") == wanted]
    return found[0] if len(found) == 1 else None


def num_classes(state: Mapping[str, Tensor]) -> int | None:
    """K of a state dict by our names; None without a class head."""
    heads = [k for k in state if re.fullmatch(r"class_embed\.0\.(layers\.\d+\.)?bias", k)]
    return len(state[max(heads)]) if heads else None


def candidates(state: Mapping[str, Tensor]) -> Candidates:
    """Presets whose networks take these tensors, by our names; only their shapes are read."""
    shapes = {key: t.to("meta") for key, t in state.items() if not key.startswith(TRAINING_HEADS)}
    classes = num_classes(state)
    models = {name: presets.by_name(name).model for name in presets.PRESETS}
    reports = {
        name: compare(_shapes(model, classes or model.num_classes), shapes)
        for name, model in models.items()
        # A backbone of the transformers library may have to be downloaded to know its shapes.
        if model.backbone.name != "transformers"
    }
    nearest = min(reports, key=lambda name: reports[name].count)
    fitting = [name for name, report in reports.items() if report.fits]
    return Candidates(
        fitting=tuple(name for name in fitting if models[name].num_classes == classes),
        other_classes=tuple(name for name in fitting if models[name].num_classes != classes),
        nearest=nearest,
        report=reports[nearest],
    )


@lru_cache(maxsize=32)
def _shapes(model: ModelConfig, classes: int) -> dict[str, Tensor]:
    """The state dict of such a network for inference, without memory."""
    model = replace(model, num_classes=classes, dense_auxiliary=False, num_identities=0)
    with torch.device("meta"):
        return dict(IDOL(Config(model=model)).state_dict())
