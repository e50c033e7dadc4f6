"""Losses, matches and gradients of SeqFormer and IFC as released, from fixed weights and clips."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import idol
from idol.clips import weights
from idol.clips.criterion import ClipCriterion
from idol.structures import ClipBatch, Targets
from tests.idol import oracle_recipe
from tests.idol.clips import recipe
from tests.idol.test_training_oracle import targets

ALIAS = "detr.detr.transformer.decoder.bbox_embed."


class Frame(NamedTuple):
    """One frame of a stored clip: arguments of oracle_recipe.frame, and which objects are there."""

    arguments: tuple[int, int, int, int, int]
    present: list[int]


def frames(height, width, times, count, seed, absent=()):
    """The frames of one synthetic video; absent: (object, frame) pairs."""
    return [
        Frame(
            (height, width, t, count, seed),
            [int((o, n) not in absent) for o in range(count)],
        )
        for n, t in enumerate(times)
    ]


# case: preset, padded size, clips of (labels, frames)
CASES = {
    "seqformer_train5": (
        "seqformer_r50",
        (192, 256),
        [([3, 7, 12], frames(192, 256, (0, 4, 8, 12, 16), 3, 4, {(1, 2)}))],
    ),
    "seqformer_train_batch2": (
        "seqformer_r50",
        (160, 256),
        [
            (
                [3, 7, 12, 21],
                frames(150, 250, (0, 5, 10), 4, 5, {(0, 0), (2, 0), (2, 1), (2, 2)}),
            ),
            ([0, 9, 9], frames(105, 200, (0, 6, 12), 3, 6, {(1, 1), (1, 2)})),
        ],
    ),
    "ifc_train_single": (
        "ifc_r50",
        (192, 256),
        [([3, 7, 12], frames(192, 256, (0, 2, 5), 3, 4, {(2, 1)}))],
    ),
    "ifc_train_batch2": (
        "ifc_r50",
        (180, 250),
        [
            ([3, 7, 12, 21], frames(180, 250, (0, 4), 4, 5, {(1, 0), (1, 1), (3, 1)})),
            ([0, 9, 9], [Frame((128, 224, 0, 3, 6), [1] * 3), Frame((150, 200, 6, 3, 6), [1] * 3)]),
        ],
    ),
}


def batch_of(size: tuple[int, int], clips: list[Any]) -> ClipBatch:
    """The stored clips as a batch padded to size."""
    pictures, truths = [], []
    for labels, some in clips:
        made: list[Targets] = []
        for arguments, present in some:
            picture, masks = oracle_recipe.frame(*arguments)
            pictures.append(picture)
            made.append(targets(masks, labels, present, size))
        truths.append(made)
    images, padding = oracle_recipe.batch(pictures, size)
    shape = (len(clips), -1)
    return ClipBatch(images.view(*shape, *images.shape[1:]), padding.view(*shape, *size), truths)


@pytest.fixture(scope="module")
def run(shared) -> Callable[[str], Any]:
    """case → (stored numbers, network, outputs, truths, matches, losses), made once."""

    @cache
    def network(preset):
        state = recipe.released_state(shared / f"reference/state_dict_{preset}.txt")
        model = idol.clips.build(preset).train()
        model.load_state_dict(weights.released(state))
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            elif isinstance(module, torch.nn.MultiheadAttention):
                module.dropout = 0.0
        return model

    @cache
    def once(case):
        preset, size, clips = CASES[case]
        model, batch = network(preset), batch_of(size, clips)
        model.zero_grad(set_to_none=True)
        length = batch.images.shape[1]
        inputs = batch.images.flatten(0, 1), batch.padding.flatten(0, 1)
        layers = model.layers(model.frames(*inputs, length), length)
        criterion = ClipCriterion(model.config)
        truths = criterion.truths(batch)
        matched = criterion.match(layers, truths)
        named = criterion(layers, batch)
        total = criterion.total(named)
        total.backward()
        gradients = {
            n: None if p.grad is None else p.grad.clone()
            for n, p in model.named_parameters()
            if p.requires_grad
        }
        values = {name: float(value.detach()) for name, value in named.items()}
        stored = np.load(shared / f"reference/oracle/{case}.npz")
        return stored, layers, truths, matched, values, float(total.detach()), gradients

    return once


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_losses_matches_and_gradients_equal_the_released_ones(case, run):
    stored, layers, truths, matched, named, total, gradients = run(case)
    expected = {
        name.removeprefix("raw/"): float(stored[name])
        for name in stored.files
        if name.startswith("raw/loss_")
    }
    assert named == pytest.approx(expected, rel=1e-5)
    assert len(named) == (30 if "seqformer" in case else 9)
    assert total == pytest.approx(float(stored["total"]), rel=1e-5)
    np.testing.assert_allclose(
        layers.logits[-1].detach(),
        stored["pred_logits"].reshape(layers.logits[-1].shape),
        atol=1e-4,
    )
    for b, truth in enumerate(truths):
        np.testing.assert_array_equal(truth.labels, stored[f"tgt/b{b}/labels"])
        if f"tgt/b{b}/masks" in stored:
            np.testing.assert_array_equal(truth.masks, stored[f"tgt/b{b}/masks"])
        for layer, matches in matched:
            at = f"match/l{layer}/b{b}"
            np.testing.assert_array_equal(matches[b].queries, stored[f"{at}/query"])
            np.testing.assert_array_equal(matches[b].truths, stored[f"{at}/gt"])
    _same_gradients(stored, gradients)


def _same_gradients(stored, gradients):
    names = [str(name).replace(ALIAS, "detr.detr.bbox_embed.") for name in stored["grad_names"]]
    numbered = {name: torch.tensor(float(n)) for n, name in enumerate(names)}
    ours = {names[int(n)]: name for name, n in weights.released(numbered).items()}
    assert set(ours.values()) == set(gradients)
    norms = np.array([float(gradients[ours[name]].norm()) for name in names])
    # Gradients that are zero in exact arithmetic are rounding noise in both.
    total = float(stored["grad_total_norm"])
    np.testing.assert_allclose(norms, stored["grad_norms"], rtol=2e-3, atol=1e-6 * total)
    assert np.sqrt((norms**2).sum()) == pytest.approx(total, rel=1e-4)
    whole = [key for key in stored.files if key.startswith("grad/")]
    assert len(whole) >= 5
    for key in whole:
        name = key.removeprefix("grad/").replace(ALIAS, "detr.detr.bbox_embed.")
        expected, got = stored[key], gradients[ours[name]].numpy()
        np.testing.assert_allclose(got, expected, atol=2e-3 * np.abs(expected).max(), rtol=0)
