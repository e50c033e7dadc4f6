"""A full configuration is a function; a variant calls another and replaces fields."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace

from idol.config import (
    BackboneConfig,
    Config,
    DetectConfig,
    LossConfig,
    ModelConfig,
    PairConfig,
    TrackerConfig,
    TrainConfig,
    TransformConfig,
)


def ytvis19_r50() -> Config:
    """YouTube-VIS 2019, ResNet-50, as released: 480 pixels at test, 32 pairs, 12,000 steps."""
    return Config(name="ytvis19_r50")


def ovis_r50() -> Config:
    """OVIS, ResNet-50, as released: 720 pixels at test, 16 pairs, stricter tracker."""
    base = ytvis19_r50()
    return replace(
        base,
        name="ovis_r50",
        model=replace(base.model, num_classes=25),
        transforms=replace(
            base.transforms,
            train_short_sides=tuple(range(480, 801, 32)),
            train_max_side=1333,
            test_short_side=720,
        ),
        train=replace(base.train, pairs_per_batch=16),
        tracker=TrackerConfig.released("ovis"),
    )


def tiny() -> Config:
    """The same method with about a million parameters: learns on two CPU cores in minutes.

    Ours: a small GroupNorm backbone, both frames supervised, a dense auxiliary classification,
    relative coordinates divided by 8, moving average of the weights, larger steps, and the
    contrastive loss at 0.25 instead of 2: with 40 queries most negatives of Eq. 4 are duplicates of
    the positives, and at 2 its gradient drowned the others (after 300 steps 16 % of the objects got
    the right class, 99 % at 0.25; identities were told apart equally well or better). Every frame
    is stretched to 128x192, and tracks are made by TrackerConfig.robust().
    """
    return Config(
        name="tiny",
        model=ModelConfig(
            num_classes=4,
            backbone=BackboneConfig(name="tiny", frozen_stages=0),
            num_queries=40,
            width=64,
            num_heads=4,
            encoder_layers=2,
            decoder_layers=3,
            feedforward=256,
            dropout=0.0,
            embedding_size=64,
            mask_coordinate_scale=8.0,
            dense_auxiliary=True,
        ),
        transforms=TransformConfig(stretch=(128, 192), crop_probability=0.0),
        pairs=PairConfig(max_gap=7),
        losses=LossConfig(supervise_reference=True, reid=0.25),
        train=TrainConfig(
            pairs_per_batch=4,
            steps=5500,
            learning_rate=3e-3,
            backbone_rate=1.0,
            schedule="cosine",
            warmup_steps=100,
            clip_norm=1.0,
            ema_decay=0.998,
        ),
        detect=DetectConfig(score_floor=0.05, mask_resize="smooth"),
        tracker=TrackerConfig.robust(),
    )


PRESETS: dict[str, Callable[[], Config]] = {
    "ytvis19_r50": ytvis19_r50,
    "ovis_r50": ovis_r50,
    "tiny": tiny,
}
"""Every preset by its name."""


def by_name(name: str) -> Config:
    """The configuration of this name.

    Errors: ValueError listing the known names.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no preset is called {name!r}; there are {', '.join(PRESETS)}.{hint}")
    return PRESETS[name]()
