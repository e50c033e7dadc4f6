"""Numbers that are not finite stop training at once and can be looked at afterwards."""

import logging
import pickle

import numpy as np
import pytest
import torch

import idol
from idol.learning import Diverged, divergence
from idol.learning.training import Trainer
from tests.idol.learning import made_up_pairs as made


@pytest.fixture
def trainer() -> Trainer:
    torch.manual_seed(0)
    config = made.config("train.micro_batch=1", "model.dropout=0.1")
    return Trainer(idol.IDOL(config), config)


def test_a_loss_that_is_not_finite_names_its_pairs_and_changes_nothing(trainer):
    batch = made.batch(made.examples((1, 2)))
    trainer.step(batch)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    batch.key_images[1, 0, 5, 5] = torch.inf
    with pytest.raises(Diverged, match=r"step 1, pairs 1 to 1 of its batch: .*must be finite") as e:
        trainer.step(batch)
    assert (e.value.step, e.value.pairs) == (1, (1, 1))
    assert all(torch.equal(v, before[k]) for k, v in trainer.model.state_dict().items())
    assert all(p.grad is None for p in trainer.model.parameters())
    assert trainer.step_number == 1
    # As it is: workers send their errors to the driver.
    again = pickle.loads(pickle.dumps(e.value))
    assert (str(again), again.step, again.pairs) == (str(e.value), 1, (1, 1))
    batch.key_images[1, 0, 5, 5] = 0
    assert np.isfinite(trainer.step(batch)["loss"])


def test_a_dumped_batch_fails_again_in_the_same_way(trainer, tmp_path):
    batch = made.batch(made.examples((1, 2)))
    batch.reference_images[0] = torch.nan
    with pytest.raises(Diverged) as first:
        trainer.step(batch)
    path = tmp_path / "batch.pt"
    divergence.save(path, trainer.model, batch, first.value.step, first=0)
    with pytest.raises(Diverged, match="must be finite") as again:
        divergence.replay(path)
    assert again.value.step == 0
    assert [p.name for p in tmp_path.iterdir()] == ["batch.pt"]


def test_a_replay_computes_the_step_that_was(trainer, tmp_path):
    batch = made.batch(made.examples((2,)))
    path = tmp_path / "batch.pt"
    divergence.save(path, trainer.model, batch, 0, first=0)
    assert divergence.replay(path) == pytest.approx(
        {k: v for k, v in trainer.step(batch).items() if k != "loss"}, rel=1e-6
    )


def test_a_spike_of_the_loss_is_told_once(trainer, caplog):
    weight = next(trainer.model.parameters())
    values = iter([*[2.0] * 25, 30.0, 30.0, 2.0])
    trainer.network = lambda *_: ((0 * weight).sum() + next(values), {})
    batch = made.batch(made.examples((0,)))
    with caplog.at_level(logging.WARNING):
        for _ in range(28):
            trainer.step(batch)
    (message,) = (r.getMessage() for r in caplog.records if "loss" in r.getMessage())
    assert "step 25 is 30, that of the 25 steps before it 2 (median)" in message
