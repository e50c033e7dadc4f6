"""All training losses of the released code, from fixed weights and fixed pairs of frames."""

import random
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

import idol
from idol.learning.assignment import Truths, assign_queries, contrastive_samples
from idol.learning.criterion import Criterion, split
from idol.network.model import IDOL
from idol.structures import PairBatch, Targets
from idol.weights.released import from_released
from tests.idol import oracle_recipe as recipe

SIZE = (192, 256)
# One pair: key and reference (height, width, t, objects, seed), labels, and which of the objects
# are there (an id of -1 in the stored case) on the key and on the reference frame.
SINGLE = [((192, 256, 0, 4, 4), (192, 256, 3, 4, 4), [3, 7, 12, 21], [1] * 4, [1] * 4)]
BATCH = [
    ((180, 250, 0, 4, 5), (150, 200, 4, 4, 5), [3, 7, 12, 21], [1] * 4, [1, 0, 1, 1]),
    ((128, 224, 0, 3, 6), (190, 200, 6, 3, 6), [0, 9, 9], [1, 0, 1], [1, 1, 1]),
]
PAIRS = {"train_single": SINGLE, "train_batch2": BATCH}


def targets(masks, labels, present, size=SIZE):
    """Truth of one frame; what is absent has no mask and no box."""
    height, width = masks.shape[1:]
    masks = masks & np.array(present, bool)[:, None, None]
    xyxy = np.array([recipe.tight_box(m) for m in masks]) / [width, height, width, height]
    boxes = np.concatenate([(xyxy[:, :2] + xyxy[:, 2:]) / 2, xyxy[:, 2:] - xyxy[:, :2]], 1)
    padded = np.zeros((len(masks), *size), bool)
    padded[:, :height, :width] = masks
    return Targets(
        labels=torch.tensor(labels),
        boxes=torch.from_numpy(boxes).float(),
        masks=torch.from_numpy(padded),
        present=torch.tensor(present, dtype=torch.bool),
    )


def pair_batch(case):
    pictures, truths = {"key": [], "reference": []}, {"key": [], "reference": []}
    for key, reference, labels, on_key, on_reference in PAIRS[case]:
        for side, arguments, present in (
            ("key", key, on_key),
            ("reference", reference, on_reference),
        ):
            picture, masks = recipe.frame(*arguments)
            pictures[side].append(picture)
            truths[side].append(targets(masks, labels, present))
    key_images, key_padding = recipe.batch(pictures["key"], SIZE)
    images, padding = recipe.batch(pictures["reference"], SIZE)
    return PairBatch(
        key_images=key_images,
        key_padding=key_padding,
        key_targets=truths["key"],
        reference_images=images,
        reference_padding=padding,
        reference_targets=truths["reference"],
    )


@pytest.fixture(scope="module")
def r50(shared) -> IDOL:
    model = IDOL(idol.presets.by_name("ytvis19_r50")).eval()
    model.load_state_dict(recipe.recipe_weights(shared / "reference/state_dict_r50.txt"))
    return model


@pytest.fixture(scope="module")
def run(shared, r50) -> Callable[..., Any]:
    """case → (stored numbers, batch, key outputs, reference outputs, losses, total), made once."""
    criterion = Criterion(r50.config)

    @cache
    def once(case):
        stored = np.load(shared / f"reference/oracle/{case}.npz")
        batch = pair_batch(case)
        with torch.no_grad():
            outputs = r50(
                torch.cat([batch.key_images, batch.reference_images]),
                torch.cat([batch.key_padding, batch.reference_padding]),
            )
            key, reference = split(outputs, len(batch.key_targets))
            named = criterion(r50, key, reference, batch, random.Random(1234))
        return stored, batch, key, reference, named, criterion.total(named)

    return once


@pytest.mark.parametrize("case", PAIRS)
def test_all_losses_and_their_sum_equal_the_released_ones(case, run):
    stored, _, _, _, named, total = run(case)
    expected = {k.removeprefix("raw/"): float(stored[k]) for k in stored.files if "raw/" in k}
    assert set(named) == set(expected)
    assert len(named) == 32
    for name, value in named.items():
        assert float(value) == pytest.approx(expected[name], rel=1e-5), name
    assert float(total) == pytest.approx(float(stored["total"]), rel=1e-5)


@pytest.mark.parametrize("case", PAIRS)
def test_every_layer_is_assigned_as_released(case, run):
    stored, batch, key, reference, _, _ = run(case)
    config = idol.presets.by_name("ytvis19_r50").assignment
    for b, (here, there) in enumerate(zip(batch.key_targets, batch.reference_targets, strict=True)):
        # The stored truth rows are those that are there on the key frame.
        rows = here.present
        labels, boxes, visible = here.labels[rows], here.boxes[rows], there.present[rows]
        truths = Truths(labels, boxes, torch.ones_like(visible))
        for layer in range(6):
            found = assign_queries(key.logits[layer, b], key.boxes[layer, b], truths, config)
            at = f"match/l{layer}/b{b}"
            positive = np.unpackbits(stored[f"{at}/mask"])[:300].astype(bool)
            np.testing.assert_array_equal(found.positive, positive)
            np.testing.assert_array_equal(found.truth[positive], stored[f"{at}/gt"])
            np.testing.assert_array_equal(found.best, stored[f"{at}/best"])
        chosen = contrastive_samples(
            reference.logits[-1, b],
            reference.refined[b],
            Truths(labels, there.boxes[rows], visible),
            config,
        )
        for g, seen in enumerate(visible):
            assert (f"sel/b{b}/g{g}/pos" in stored.files) == bool(seen)
            if seen:
                for name, got in (("pos", chosen.positives), ("neg", chosen.negatives)):
                    expected = np.unpackbits(stored[f"sel/b{b}/g{g}/{name}"])[:300].astype(bool)
                    np.testing.assert_array_equal(got[g], expected)


def test_injected_samples_replace_the_drawn_ones(run, r50):
    stored, batch, key, reference, named, _ = run("train_single")
    samples = [stored[f"aux_sample/{n}"].tolist() for n in range(4)]
    with torch.no_grad():
        again = Criterion(r50.config)(
            r50, key, reference, batch, random.Random(99), samples=samples
        )
    assert float(again["loss_reid_aux"]) == pytest.approx(
        float(stored["raw/loss_reid_aux"]), rel=1e-5
    )
    assert float(again["loss_reid"]) == float(named["loss_reid"])


@pytest.mark.parametrize("case", PAIRS)
def test_gradients_of_every_parameter_equal_the_released_ones(case, r50, shared):
    stored = np.load(shared / f"reference/oracle/{case}.npz")
    batch = pair_batch(case)
    r50.zero_grad()
    outputs = r50(
        torch.cat([batch.key_images, batch.reference_images]),
        torch.cat([batch.key_padding, batch.reference_padding]),
    )
    criterion = Criterion(r50.config)
    pairs = split(outputs, len(batch.key_targets))
    named = criterion(r50, *pairs, batch, random.Random(1234))
    criterion.total(named).backward()

    released = [str(name) for name in stored["grad_names"]]
    alias = "detr.detr.transformer.decoder.bbox_embed."
    names = [name.replace(alias, "detr.detr.bbox_embed.") for name in released]
    ours = {name: next(iter(from_released({name: torch.empty(0)}))) for name in names}
    parameters = dict(r50.named_parameters())
    trainable = {name for name, p in parameters.items() if p.requires_grad}
    assert trainable == set(ours.values())
    norms = np.array([float(parameters[ours[name]].grad.norm()) for name in names])
    np.testing.assert_allclose(norms, stored["grad_norms"], rtol=2e-3, atol=1e-4)
    assert np.sqrt((norms**2).sum()) == pytest.approx(float(stored["grad_total_norm"]), rel=1e-4)
    whole = [key for key in stored.files if key.startswith("grad/")]
    assert len(whole) == 5
    for key in whole:
        name = key.removeprefix("grad/").replace(alias, "detr.detr.bbox_embed.")
        expected, got = stored[key], parameters[ours[name]].grad.numpy()
        np.testing.assert_allclose(got, expected, atol=1e-3 * np.abs(expected).max(), rtol=0)
