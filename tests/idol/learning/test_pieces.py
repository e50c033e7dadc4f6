"""Cutting a batch changes no gradient with the global normaliser, and no padding with the local."""

import pytest
import torch

import idol
from idol.learning.pieces import cut, part_of_batch, resized, trimmed_size
from idol.learning.training import Trainer
from tests.idol.learning import made_up_pairs as made


def gradients(config, batch):
    """Every parameter's gradient in the first step, and the step's numbers."""
    torch.manual_seed(0)
    trainer = Trainer(idol.IDOL(config).to(batch.key_images.dtype), config)
    found = {}

    def keep(*_):
        found.update({name: p.grad.clone() for name, p in trainer.model.named_parameters()})

    trainer.optimizer.register_step_pre_hook(keep)
    numbers = trainer.step(batch)
    return found, numbers


def worst(found, expected):
    """Largest norm of a difference over the norm of the expected gradient, of all parameters."""
    return max(float((found[k] - v).norm() / v.norm()) for k, v in expected.items() if v.any())


@pytest.mark.parametrize(
    ("counts", "sizes", "dtype", "tolerance"),
    [((2, 0, 3, 1), (1, 3), torch.float64, 1e-12), ((0, 0, 3), (1,), torch.float32, 1e-5)],
)
def test_micro_batches_have_the_gradient_of_the_whole_batch(counts, sizes, dtype, tolerance):
    batch = made.batch(made.examples(counts), dtype)
    every = made.config("losses.normaliser=global")
    expected, whole = gradients(every, batch)
    assert set(whole) >= {"loss_reid", "loss_reid_aux", "loss_dense", "loss_identity", "loss_ce_0"}
    assert whole["loss_reid"] > 0
    assert whole["loss_reid_aux"] > 0
    for size in sizes:
        cut_up = made.config("losses.normaliser=global", f"train.micro_batch={size}")
        found, numbers = gradients(cut_up, batch)
        assert worst(found, expected) < tolerance
        assert numbers == pytest.approx(whole, rel=1e-5)


def test_the_local_normaliser_is_the_mean_of_micro_batches_collated_alone():
    examples = made.examples((2, 1, 3, 1))
    expected = {}
    for first in (0, 2):
        torch.manual_seed(0)
        module = idol.learning.PairLoss(idol.IDOL(made.config()).double().train())
        part = made.batch(examples[first : first + 2], torch.float64)
        module(part, first=first)[0].backward()
        for name, p in module.model.named_parameters():
            expected[name] = expected.get(name, 0) + p.grad / 2
    found, _ = gradients(
        made.config("train.micro_batch=2"), made.batch(examples, dtype=torch.float64)
    )
    assert worst(found, expected) < 1e-12


def test_parts_cover_the_batch_and_differ_by_one_pair_at_most():
    for workers in range(1, 8):
        parts = [part_of_batch(7, rank, workers) for rank in range(workers)]
        assert [i for part in parts for i in part] == list(range(7))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    with pytest.raises(ValueError, match=r"for 1\.\.7 workers, got worker 0 of 8.*pairs_per_batch"):
        part_of_batch(7, 0, 8)


def test_a_piece_can_be_padded_and_trimmed_to_what_it_was():
    examples = made.examples((1, 2, 3))
    whole = made.batch(examples)
    assert whole.key_images.shape[2:] == (96, 96)
    alone = made.batch(examples[:2])
    assert alone.key_images.shape[2:] == (64, 96)
    first = cut(whole, 2)[0]
    assert trimmed_size(first, 32) == (64, 96)
    for got, expected in ((resized(first, (64, 96)), alone), (resized(alone, (96, 96)), first)):
        torch.testing.assert_close(got.key_images, expected.key_images, rtol=0, atol=0)
        torch.testing.assert_close(got.reference_padding, expected.reference_padding)
    small = resized(first, (64, 96)).key_targets
    assert all(torch.equal(a.masks, b.masks) for a, b in zip(small, alone.key_targets, strict=True))
    with pytest.raises(ValueError, match="do not fit into"):
        resized(whole, (64, 96))


def test_a_micro_batch_of_more_than_the_batch_is_refused():
    with pytest.raises(ValueError, match=r"micro_batch must lie in \[0, 4\], got 5"):
        made.config("train.micro_batch=5")
