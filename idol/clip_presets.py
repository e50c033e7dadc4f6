"""Full configurations of the offline rivals, SeqFormer and IFC, as functions.

Numbers are those of the released files (SeqFormer specification 3.5, IFC specification 7).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from idol.config import (
    BackboneConfig,
    ClipConfig,
    Config,
    LossConfig,
    ModelConfig,
    PairConfig,
    TrainConfig,
    TransformConfig,
)
from idol.config.categories import BENCHMARKS

_CLASSES = {"ytvis19": 40, "ytvis21": 40, "ovis": 25, "coco": 80}
_RESNETS = {"r50": BackboneConfig(), "r101": BackboneConfig(name="resnet101")}
_SWIN_L = BackboneConfig(name="swin")


def seqformer(dataset: str, backbone: str) -> Config:
    """SeqFormer: base_ytvis.yaml, and large_model/swin_ytvis.yaml for swin_l.

    Of r101, ytvis21 and ovis no file was released: they are base_ytvis with another backbone or
    number of classes; on OVIS clips of 10 frames are joined, as in the IDOL paper (Table 5).
    """
    large = backbone == "swin_l"
    return Config(
        model=ModelConfig(
            method="seqformer",
            num_classes=_CLASSES[dataset],
            backbone=_SWIN_L if large else _RESNETS[backbone],
        ),
        transforms=TransformConfig(
            train_max_side=768 if large else 1333,
            test_short_side=480 if large else 360,
            crop_probability=0.0,
        ),
        pairs=PairConfig(clip=5, max_gap=15 if large else 10),
        train=TrainConfig(pairs_per_batch=16, group_pairs=2, learning_rate=2e-4),
        clips=ClipConfig(length=10 if dataset == "ovis" else 0),
    )


def ifc(dataset: str, backbone: str) -> Config:
    """IFC: base_ytvis.yaml and R101_ytvis.yaml; of the other data sets the same."""
    msra = backbone == "r101"
    return Config(
        model=ModelConfig(
            method="ifc",
            num_classes=_CLASSES[dataset],
            backbone=replace(_RESNETS[backbone], stride_in_1x1=msra),
            num_queries=100,
            encoder_layers=3,
            decoder_layers=3,
            feedforward=2048,
        ),
        transforms=TransformConfig(
            train_short_sides=(360, 480),
            train_max_side=1333,
            test_short_side=360,
            crop_probability=0.0,
            pixels="bgr" if msra else "rgb",
            size_divisor=1,
        ),
        pairs=PairConfig(clip=5, max_gap=20),
        losses=LossConfig(ce=1.0, mask=3.0, dice=3.0),
        train=TrainConfig(
            pairs_per_batch=16, group_pairs=2, steps=6000, milestones=(4000,), checkpoint_every=5000
        ),
        clips=ClipConfig(length=5, match_threshold=0.05, score_threshold=0.01),
    )


def ifc_coco(backbone: str) -> Config:
    """IFC's pre-training: base_coco.yaml and R101_coco.yaml, about 300 and 500 epochs.

    A clip there is one image, here two views of it (pairs.pseudo), so a step has half as many.
    """
    steps, drop = (1_848_000, 1_232_000) if backbone == "r101" else (1_108_800, 739_200)
    base = ifc("coco", backbone)
    return replace(
        base,
        transforms=replace(
            base.transforms,
            train_short_sides=tuple(range(480, 801, 32)),
            test_short_side=800,
            crop_probability=1.0,
            independent=True,
        ),
        pairs=replace(base.pairs, clip=2, pseudo=True),
        train=replace(base.train, steps=steps, milestones=(drop,)),
        clips=replace(base.clips, length=1),
    )


def tiny(method: str) -> Config:
    """Ours: SeqFormer or IFC with about a million parameters, beside the preset "tiny"."""
    config = (seqformer if method == "seqformer" else ifc)("ytvis19", "r50")
    return replace(
        config,
        model=replace(
            config.model,
            num_classes=4,
            backbone=BackboneConfig(name="tiny", frozen_stages=0),
            num_queries=40,
            width=64,
            num_heads=4,
            encoder_layers=2,
            decoder_layers=3,
            feedforward=256,
            dropout=0.0,
            mask_coordinate_scale=8.0,
        ),
        transforms=replace(config.transforms, stretch=(128, 192)),
        pairs=replace(config.pairs, max_gap=7),
        train=TrainConfig(
            pairs_per_batch=4,
            group_pairs=1,
            steps=5500,
            learning_rate=3e-3 if config.model.method == "seqformer" else 1e-3,
            backbone_rate=1.0,
            schedule="cosine",
            warmup_steps=100,
            clip_norm=1.0,
            ema_decay=0.998,
        ),
        clips=replace(config.clips, length=5),
    )


def _made(name: str) -> Config:
    method, dataset, backbone = name.split("_", 2)
    if dataset == "coco":
        config = ifc_coco(backbone)
    else:
        config = (seqformer if method == "seqformer" else ifc)(dataset, backbone)
    names = BENCHMARKS.get(dataset, ())
    return replace(
        config, name=name, categories=names, category_ids=tuple(range(1, len(names) + 1))
    )


_VIDEO = ("ytvis19", "ytvis21", "ovis")
_NAMES = (
    *(f"seqformer_{d}_{b}" for d in _VIDEO for b in ("r50", "r101", "swin_l")),
    *(f"ifc_{d}_{b}" for d in (*_VIDEO, "coco") for b in ("r50", "r101")),
)

PRESETS: dict[str, Callable[[], Config]] = {
    **{name: partial(_made, name) for name in _NAMES},
    "seqformer_tiny": lambda: replace(tiny("seqformer"), name="seqformer_tiny"),
    "ifc_tiny": lambda: replace(tiny("ifc"), name="ifc_tiny"),
}
"""Every preset of a network of clips by its name, <method>_<data set>_<backbone>."""


_ALSO = {"ytvis": "ytvis19", "ytvis2019": "ytvis19", "ytvis2021": "ytvis21", "swinl": "swin-l"}


def spelt(name: str) -> str:
    """A name as PRESETS has it: parts in any order and case; ytvis19 and r50 where none is named.

    "ifc_r101" and "ytvis19-IFC-R101" are "ifc_ytvis19_r101"; other names come back as they are.
    """
    words = name.lower().replace("-", "_").replace("swin_l", "swinl").split("_")
    rest = {_ALSO.get(word, word) for word in words}
    tiny = "tiny" in rest
    kinds = ({"seqformer", "ifc"}, _CLASSES.keys(), {"r50", "r101", "swin-l", "tiny"})
    defaults = ("", "" if tiny else "ytvis19", "r50")
    parts = [
        next(iter(rest & known), default) for known, default in zip(kinds, defaults, strict=True)
    ]
    found = "_".join(filter(None, parts)).replace("-", "_")
    return found if found in PRESETS and rest <= {*parts} else name
