"""Trained weights by name: those that the authors of the method released, and those shipped here.

A name never means random weights: `idol.build` makes an untrained network of a preset.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

from idol.weights import hub

_REPOSITORY = "hf://QHL067/VNext_ECCV/IDOL"
_AUTHORS = "not stated; github.com/wjf5203/VNext"
_SHOWN = ("name", "preset", "trained_on", "ap", "megabytes", "licence")


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """Trained weights that have a name.

    source:     what `idol.load` takes as well
    preset:     the configuration that they belong to
    trained_on: their data
    ap:         AP on the validation videos of that data as the authors publish it (of COCO and of
                our own none is published), in percent
    megabytes:  of the tensors alone, in 10^6 bytes; a released file can be larger
    licence:    of the weights, as far as their owners state one; data sets have terms of their own
    note:       what else there is to know
    """

    name: str
    source: str
    preset: str
    trained_on: str
    ap: float | None
    megabytes: int
    licence: str
    note: str = ""


def _released(
    name: str, file: str, preset: str, data: str, ap: float | None, megabytes: int, note: str = ""
) -> Model:
    return Model(
        name=name,
        source=f"{_REPOSITORY}/{file}",
        preset=preset,
        trained_on=data,
        ap=ap,
        megabytes=megabytes,
        licence=_AUTHORS,
        note=note,
    )


_19, _21, _OVIS = "YouTube-VIS 2019", "YouTube-VIS 2021", "OVIS"
_START = "to start training from (steps 1 and 2 of the paper)"

MODELS: tuple[Model, ...] = (
    Model(
        name="shipped",
        source="shipped",
        preset="tiny",
        trained_on="synthetic videos",
        ap=None,
        megabytes=4,
        licence="Apache-2.0",
        note="knows drawn shapes only; scores are in the README",
    ),
    _released("ytvis19-r50", "YTVIS19_R50_502AP.pth", "ytvis19_r50", _19, 50.2, 173),
    _released(
        *("ytvis19-r50-495", "YTVIS19_R50_495AP.pth", "ytvis19_r50", _19, 49.3, 173),
        note="an earlier run of ytvis19-r50",
    ),
    _released("ytvis19-r101", "YTVIS19_R101_501AP.pth", "ytvis19_r101", _19, 50.1, 249),
    _released("ytvis19-swinl", "YTVIS19_SWINL_639AP-003.pth", "ytvis19_swin_l", _19, 64.3, 856),
    _released("ytvis21-r50", "YTVIS21_R50_478AP.pth", "ytvis21_r50", _21, 47.7, 173),
    _released("ytvis21-r101", "YTVIS21_R101_485AP.pth", "ytvis21_r101", _21, 48.5, 249),
    _released("ytvis21-swinl", "YTVIS21_SwinL_608AP-002.pth", "ytvis21_swin_l", _21, 60.8, 856),
    _released("ovis-r50", "OVIS_R50_294AP.pth", "ovis_r50", _OVIS, 29.5, 173),
    _released("ovis-swinl", "OVIS_SwinL_414AP.pth", "ovis_swin_l", _OVIS, 41.4, 856),
    _released("coco-r50", "cocopretrain_R50.pth", "coco_r50", "COCO", None, 173, _START),
    _released("coco-r101", "cocopretrain_R101.pth", "coco_r101", "COCO", None, 249, _START),
    _released("coco-swinl", "cocopretrain_SWINL.pth", "coco_swin_l", "COCO", None, 856, _START),
)
"""In the order in which a user looks for them."""


def models() -> tuple[Model, ...]:
    """Every model that has a name, for `idol.load`, `idol.track` and --weights.

    That the network computes with a released file what the released code does is proven on stored
    outputs of that code with random weights of every backbone (tests/idol): logits, boxes and
    embeddings within 5e-5, masks within 1e-4. The files themselves, and the published AP, could
    not be had where this was developed.
    """
    return MODELS


def find(source: str | os.PathLike[str]) -> Model | None:
    """The model of this name; None where it is none, or a file has that name."""
    name = os.fspath(source)
    found = next((model for model in MODELS if model.name == name.lower()), None)
    return None if found is None or Path(name).is_file() else found


def likely(source: str) -> str:
    """The hint "Did you mean 'x'? " with the nearest name; "" where none is near."""
    names = [model.name for model in MODELS]
    near = difflib.get_close_matches(source.lower().replace("_", "-"), names, n=1)
    return f"Did you mean {near[0]!r}? " if near else ""


def fetch(model: Model) -> Path:
    """The file of a released model on this machine, downloaded unless it is here.

    Raises: FetchError: it cannot be had; the message says how to get it by hand.
    """
    try:
        return hub.fetch(model.source)
    except hub.FetchError as error:
        raise hub.FetchError(f"{model.name} ({model.megabytes} MB and more): {error}") from error


def table() -> str:
    """The models as lines of text, for people."""
    rows = [_SHOWN, *(_row(model) for model in MODELS)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_SHOWN) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[-1]])
        for row in rows
    )


def _row(model: Model) -> tuple[str, ...]:
    ap = "-" if model.ap is None else f"{model.ap:.1f}"
    shown = (model.name, model.preset, model.trained_on, ap, str(model.megabytes), model.licence)
    return (*shown[:-1], "; ".join(filter(None, (shown[-1], model.note))))
