"""Consistent training: the memory of a clip, what is contrasted with it, and its losses."""

from __future__ import annotations

import dataclasses
import math
import random

import numpy as np
import pytest
import torch
from torch import Tensor

from idol.config import override
from idol.images.synthetic import make_video
from idol.images.transforms import Clip, Frame, augment, collate
from idol.learning.consistent import FUSED, Item, MemoryContrast, fuse, items
from idol.learning.matching import match_clips
from idol.learning.pair_loss import PairLoss
from idol.learning.training import Trainer
from idol.network.model import IDOL
from idol.structures import ClipBatch
from tests.idol.learning.made_up_pairs import MANY, config

SMALL = ("losses.contrast=memory", "transforms.stretch=[64,96]")


def clips(frames: int, count: int = 2) -> ClipBatch:
    """Clips of so many frames; the first instance is not visible in every second one."""
    settings = override(config(*SMALL), [f"pairs.clip={frames}"])
    found = []
    for number in range(count):
        video = make_video(dataclasses.replace(MANY, length=(frames, frames)), 70 + number)
        shown = [Frame(video.frames[t], video.masks[t]) for t in range(frames)]
        rng = np.random.default_rng(number)
        example = augment(Clip(tuple(shown), video.labels), settings.transforms, rng)
        for target in example.targets[1::2]:
            target.present[0] = False
        found.append(example)
    return collate(found, 32)


def model_of(*more: str) -> PairLoss:
    torch.manual_seed(0)
    return PairLoss(IDOL(config(*SMALL, *more)).train())


def contrast_of(loss: PairLoss, batch: ClipBatch) -> MemoryContrast:
    outputs = loss.model(batch.images.flatten(0, 1), batch.padding.flatten(0, 1))
    found = match_clips(outputs, batch, loss.model.config).contrast
    assert isinstance(found, MemoryContrast)
    return found


def slowly_fused(vectors: list[Tensor]) -> Tensor:
    """The memory after these sightings, one by one."""
    memory = vectors[0]
    for t in range(1, len(vectors)):
        alike = [torch.cosine_similarity(vectors[t], old, dim=0) for old in vectors[:t]]
        share = max(0.0, float(sum(alike)) / t)
        memory = (1 - share) * memory + share * vectors[t]
    return memory


@pytest.mark.parametrize("seed", range(4))
def test_the_memory_is_fused_by_similarity(seed: int) -> None:
    torch.manual_seed(seed)
    vectors, entered = torch.randn(5, 7, 6).double() + 0.7, torch.rand(5, 7) > 0.4
    states = fuse(vectors, entered)
    for n in range(5):
        for t in range(7):
            known = [vectors[n, s] for s in range(t + 1) if entered[n, s]]
            expected = slowly_fused(known) if known else torch.zeros(6).double()
            torch.testing.assert_close(states[n, t], expected)


def test_every_sighting_but_the_first_frame_is_contrasted() -> None:
    seen = np.zeros((1, 5, 3), bool)
    seen[0, [0, 2, 3], 0] = True  # seen before: its last sighting, or the memory
    seen[0, [1, 4], 1] = True  # first seen in frame 1: the next sighting, then as above
    seen[0, 2, 2] = True  # seen once: nothing to agree with
    drawn = [items(seen, [random.Random(seed)]) for seed in range(40)]
    assert all([(i.row, i.frame) for i in some] == [(0, 2), (0, 3), (1, 1), (1, 4)]
               for some in drawn)  # fmt: skip
    assert {some[0].positive for some in drawn} == {FUSED, 0}
    assert {some[1].positive for some in drawn} == {FUSED, 2}
    assert {some[2].positive for some in drawn} == {4}
    assert {some[3].positive for some in drawn} == {FUSED, 1}


def slow_losses(found: MemoryContrast, wanted: list[Item]) -> tuple[float, float]:
    """Both losses, summed one item after the other; all negatives are sampled."""
    embeddings = found.outputs.embeddings.detach().double()
    frames = found.seen.shape[1]
    contrastive = auxiliary = 0.0
    for item in wanted:
        base = item.clip * frames
        vectors = {t: embeddings[base + t, found.best[base + t, item.row]]
                   for t in range(frames) if found.seen[item.clip, t, item.row]}  # fmt: skip
        anchor, before = vectors[item.frame], item.frame - 1
        if item.positive == FUSED:
            positive = slowly_fused([v for t, v in vectors.items() if t < item.frame])
        else:
            positive = vectors[item.positive]
        others = embeddings[base + before]
        if before in vectors:
            others = others[torch.from_numpy(found.chosen.negatives[base + before, item.row])]
        gaps = (others @ anchor - positive @ anchor).exp()
        contrastive += math.log1p(float(gaps.sum()))
        cosines = torch.cosine_similarity(others, anchor[None])
        right = torch.cosine_similarity(positive, anchor, dim=0)
        auxiliary += float(((right - 1) ** 2 + (cosines**2).sum()) / (1 + len(others)))
    return contrastive, auxiliary


@pytest.mark.parametrize("seed", range(3))
def test_the_losses_are_those_of_the_description(seed: int) -> None:
    found = contrast_of(model_of(), clips(5))
    wanted = items(found.seen, [random.Random(seed), random.Random(seed + 9)])
    assert len(wanted) == found.count > 10
    rngs = [random.Random(seed), random.Random(seed + 9)]
    got = found.losses(10_000, rngs)
    assert [x.item() for x in got] == pytest.approx(slow_losses(found, wanted), rel=1e-4)


def test_noise_puts_other_queries_into_the_memory() -> None:
    quiet = contrast_of(model_of(), clips(5))
    noisy = dataclasses.replace(quiet, noise=1.0)
    losses = [found.losses(10, [random.Random(1), random.Random(2)]) for found in (quiet, noisy)]
    assert losses[0][0].item() != losses[1][0].item()
    assert noisy.count == quiet.count


def test_a_clip_of_two_has_the_detection_losses_of_a_supervised_pair() -> None:
    batch = clips(2)
    _, with_memory = model_of()(batch)
    torch.manual_seed(0)
    pairs = PairLoss(IDOL(config("transforms.stretch=[64,96]", "losses.supervise_reference=true")))
    _, of_pairs = pairs.train()(batch.pairs())
    same = [name for name in of_pairs if "reid" not in name]
    assert len(same) > 15
    for name in same:
        assert with_memory[name].item() == pytest.approx(of_pairs[name].item(), rel=1e-5), name


@pytest.mark.parametrize("visible", [True, False])
def test_every_parameter_gets_a_gradient(visible: bool) -> None:
    loss, batch = model_of(), clips(3)
    if not visible:
        for targets in batch.sides()[0].targets:
            targets.present.fill_(False)
    total, _ = loss(batch)
    total.backward()
    assert [n for n, p in loss.model.named_parameters() if p.grad is None] == []


def test_it_learns_and_micro_batches_add_up() -> None:
    alone = ("losses.identity=0", "model.num_identities=0", "train.warmup_steps=2")
    batch, settings = clips(4), config(*SMALL, "losses.normaliser=global", *alone)
    runs = []
    for size in (0, 1):
        torch.manual_seed(0)
        trainer = Trainer(IDOL(settings), override(settings, [f"train.micro_batch={size}"]))
        runs.append([trainer.step(batch) for _ in range(25 if size == 0 else 1)])
    assert runs[0][-1]["loss_reid"] < 0.7 * runs[0][0]["loss_reid"]
    assert runs[1][0] == pytest.approx(runs[0][0], rel=1e-4)
