"""Small batches of synthetic pairs, with as many instances in each pair as a test wants."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from idol import presets
from idol.config import Config, override
from idol.images.synthetic import SyntheticConfig, make_video
from idol.images.transforms import Clip, Example, Frame, augment, collate
from idol.structures import PairBatch, Targets

SIZES = ((64, 96), (64, 96), (96, 64), (64, 64))
"""Pictures of the pairs, in turn: parts of a batch are padded to other sizes than the whole."""

MANY = dataclasses.replace(SyntheticConfig.easy(), num_objects=(3, 4))


def config(*more: str) -> Config:
    """The tiny preset made smaller, with every loss on and all gradients as they come."""
    every = ("model.num_queries=20", "model.num_identities=9", "losses.identity=1")
    return override(presets.by_name("tiny"), [*every, "train.clip_norm=1e9", *more])


def examples(counts: Sequence[int], seed: int = 0) -> list[Example]:
    """One pair for each count, with so many instances (0 to 3) in both frames."""
    found = []
    for number, count in enumerate(counts):
        video = make_video(MANY, 100 * seed + number)
        clip = Clip(tuple(Frame(video.frames[t], video.masks[t]) for t in (0, 2)), video.labels)
        height, width = SIZES[number % len(SIZES)]
        one = override(config(), [f"transforms.stretch=[{height},{width}]"])
        example = augment(clip, one.transforms, np.random.default_rng([seed, number]))
        targets = [_first(count, truth, 3 * number) for truth in example.targets]
        found.append(dataclasses.replace(example, targets=targets))
    return found


def batch(found: Sequence[Example], dtype: torch.dtype = torch.float32) -> PairBatch:
    """The pairs collated, with pictures of this precision."""
    made = collate(found, 32).pairs()
    images = (made.key_images.to(dtype), made.reference_images.to(dtype))
    return dataclasses.replace(made, key_images=images[0], reference_images=images[1])


def _first(count: int, truth: Targets, number: int) -> Targets:
    assert len(truth.labels) >= count
    kept = {f.name: getattr(truth, f.name)[:count] for f in dataclasses.fields(truth)}
    kept["identities"] = (torch.arange(count) + number) % 9
    return Targets(**kept)
