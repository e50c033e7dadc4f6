"""Training on clips: it learns, micro-batches change nothing, and what is not finite is told."""

from dataclasses import replace

import pytest
import torch

import idol
from idol.clips.criterion import ClipCriterion, Match, Matched, ifc_match
from idol.clips.targets import ClipTruth, ifc_truth, seqformer_truth
from idol.clips.training import ClipLoss, clip_loss
from idol.config import override
from idol.learning import divergence
from idol.learning.divergence import Diverged
from idol.learning.training import Trainer
from idol.structures import ClipBatch, Targets

TINY = ("seqformer_tiny", "ifc_tiny")
SMALL = ("train.warmup_steps=0", "train.ema_decay=0", "model.width=32", "model.num_queries=8")


def small(preset, *changes):
    return override(idol.presets.by_name(preset), [*SMALL, *changes])


def square(t, size=(64, 64), visible=True):
    """One object of class 1 that moves, and one of class 2 that stays; not there: no pixel."""
    masks = torch.zeros(2, *size, dtype=torch.bool)
    masks[0, 8:24, 8 + 4 * t : 24 + 4 * t] = True
    masks[1, 36:56, 30:50] = visible
    centres = torch.tensor([[16 + 4.0 * t, 16.0, 16.0, 16.0], [40.0, 46.0, 20.0, 20.0]])
    present = torch.tensor([True, visible])
    return Targets(torch.tensor([1, 2]), centres / 64 * present[:, None], masks, present)


def batch(clips=2, length=3, empty=False):
    generator = torch.Generator().manual_seed(0)
    truths, images = [], []
    for _ in range(clips):
        frames = [square(t, visible=t != 1) for t in range(length)]
        if empty:
            none = slice(0, 0)
            frames = [
                Targets(f.labels[none], f.boxes[none], f.masks[none], f.present[none])
                for f in frames
            ]
        truths.append(frames)
        shown = torch.stack([square(t, visible=t != 1).masks.any(0) for t in range(length)])
        noise = 0.1 * torch.randn(length, 3, 64, 64, generator=generator)
        images.append(noise + shown[:, None])
    padding = torch.zeros(clips, length, 64, 64, dtype=torch.bool)
    return ClipBatch(torch.stack(images), padding, truths)


def trainer(config):
    torch.manual_seed(0)
    return Trainer(idol.clips.weights.make(config), config, loss=ClipLoss)


@pytest.mark.parametrize("preset", TINY)
def test_losses_fall_on_a_clip_seen_again_and_again(preset):
    one = trainer(small(preset))
    losses = [one.step(batch(1))["loss"] for _ in range(12)]
    assert losses[-1] < 0.85 * losses[0]


@pytest.mark.parametrize("preset", TINY)
def test_micro_batches_give_the_gradient_of_the_whole_batch(preset):
    found = []
    for size in (0, 1):
        one = trainer(small(preset, f"train.micro_batch={size}", "model.dropout=0"))
        found.append(one.step(batch(3)))
        assert all(p.grad is None for p in one.model.parameters())
    whole, cut = found
    assert whole == pytest.approx(cut, rel=1e-3)


@pytest.mark.parametrize("preset", TINY)
def test_clips_without_an_instance_give_every_parameter_a_gradient(preset):
    network = ClipLoss(trainer(small(preset)).model)
    total, losses = network(batch(empty=True))
    total.backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)
    assert float(losses["loss_mask"].detach()) == float(losses["loss_dice_0"].detach()) == 0
    assert float(losses["loss_ce"].detach()) > 0


@pytest.mark.parametrize("preset", TINY)
def test_what_is_not_finite_is_told_and_can_be_computed_again(preset, tmp_path):
    one = trainer(small(preset))
    bad = batch()
    bad.images[1, 0, 0, 5, 5] = torch.nan
    with pytest.raises(Diverged, match="finite"):
        one.step(bad)
    divergence.save(tmp_path / "step.pt", one.model, bad, 0, 0)
    with pytest.raises(Diverged, match="finite"):
        divergence.replay(tmp_path / "step.pt", clip_loss)
    divergence.save(tmp_path / "fine.pt", one.model, batch(), 0, 0)
    assert divergence.replay(tmp_path / "fine.pt", clip_loss)["gradient_norm"] > 0


def test_instances_in_no_frame_count_for_seqformer_and_not_for_ifc():
    frames = [replace(square(t), present=torch.tensor([True, False])) for t in (0, 1)]
    kept = seqformer_truth(frames, (64, 64))
    assert kept.labels.tolist() == [1, 0]  # as released: class 0, without boxes and masks
    assert not kept.boxes[1].any()
    assert not kept.masks[1].any()
    assert kept.masks.shape == (2, 2, 16, 16)
    assert ifc_truth(frames, (64, 64)).labels.tolist() == [1]


def test_frames_with_other_rows_are_no_clip():
    one = square(0)
    fewer = Targets(one.labels[:1], one.boxes[:1], one.masks[:1], one.present[:1])
    with pytest.raises(ValueError, match=r"frames with \[1, 2\] rows"):
        seqformer_truth([one, fewer], (64, 64))
    with pytest.raises(ValueError, match=r"do not fit into the input's \(32, 64\)"):
        ifc_truth([one], (32, 64))


def test_every_instance_gets_the_query_whose_masks_are_its_own():
    truth = ifc_truth([square(0), square(1)], (64, 64))
    masks = torch.full((5, 2, 16, 16), -20.0)
    masks[3] = torch.where(truth.masks[0] > 0.5, 20.0, -20.0)
    masks[1] = torch.where(truth.masks[1] > 0.5, 20.0, -20.0)
    match = ifc_match(torch.zeros(5, 4), masks, truth)
    assert match.queries.tolist() == [1, 3]
    assert match.truths.tolist() == [1, 0]
    with pytest.raises(FloatingPointError, match="must be finite to be matched"):
        ifc_match(torch.full((5, 4), torch.nan), masks, truth)


def test_perfect_masks_have_no_dice_loss():
    config = small("ifc_tiny")
    truth = ifc_truth([square(0), square(0)], (64, 64))
    perfect = torch.where(truth.masks > 0.5, 30.0, -30.0)
    outputs = idol.clips.ClipLayers(torch.zeros(1, 1, 2, 5), None, 2, lambda *_: perfect)
    criterion = ClipCriterion(config)
    matched = [Matched(0, [Match(torch.arange(2), torch.arange(2))])]
    soft = ClipTruth(truth.labels, truth.boxes, (truth.masks > 0.5).float())
    counts = criterion.normalisers(criterion.counts([soft]))
    losses = criterion.losses(outputs, matched, [soft], counts)
    assert float(losses["loss_dice"]) == pytest.approx(0, abs=1e-3)
    assert float(losses["loss_mask"]) == pytest.approx(0, abs=1e-6)
