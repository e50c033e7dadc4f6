"""The training step: it learns, it resumes exactly, and it stops at numbers that are not finite."""

from itertools import pairwise

import numpy as np
import pytest
import torch

import idol
from idol.config import TrainConfig, override
from idol.synthetic import SyntheticConfig, make_video
from idol.training import Trainer, learning_rate_factor
from idol.transforms import Pair, augment, collate

SMALL = ("transforms.stretch=[64,96]", "model.num_queries=20", "train.warmup_steps=5")


@pytest.fixture(scope="module")
def config():
    return override(idol.presets.by_name("tiny"), SMALL)


@pytest.fixture(scope="module")
def batch(config):
    rng = np.random.default_rng(0)
    examples = []
    for seed in (1, 2):
        video = make_video(SyntheticConfig.easy(), seed)
        pair = Pair(video.frames[0], video.frames[2], video.labels, video.masks[0], video.masks[2])
        examples.append(augment(pair, config.transforms, rng))
    return collate(examples)


def make_trainer(config, seed=0):
    torch.manual_seed(seed)
    return Trainer(idol.IDOL(config), config)


def test_the_loss_falls_on_a_batch_seen_again_and_again(config, batch):
    trainer = make_trainer(config)
    values = [trainer.step(batch)["loss"] for _ in range(25)]
    assert np.mean(values[-3:]) < 0.75 * np.mean(values[:3])


def test_equal_seeds_give_equal_weights(config, batch):
    a, b = make_trainer(config), make_trainer(config)
    for trainer in (a, b):
        for _ in range(3):
            trainer.step(batch)
    assert all(torch.equal(x, b.weights()[k]) for k, x in a.weights().items())


def test_a_resumed_run_continues_as_the_uninterrupted_one(config, batch, tmp_path):
    config = override(config, ["losses.reid_aux=0"])  # its negatives are drawn, not stored
    whole, first = make_trainer(config), make_trainer(config)
    for _ in range(4):
        whole.step(batch)
    for _ in range(2):
        first.step(batch)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = make_trainer(config, seed=9)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in range(2):
        second.step(batch)
    for key, value in whole.weights().items():
        torch.testing.assert_close(second.weights()[key], value, atol=1e-6, rtol=1e-5)


def test_every_parameter_gets_a_gradient(config, batch):
    # What DistributedDataParallel needs, with truths and without any.
    model = make_trainer(config)
    for present in (True, False):
        for targets in batch.key_targets + batch.reference_targets:
            targets.present.fill_(present)
        total, _ = model.network(batch)
        total.backward()
        missing = [n for n, p in model.model.named_parameters() if p.grad is None]
        assert missing == []
        model.optimizer.zero_grad(set_to_none=True)
    for targets in batch.key_targets + batch.reference_targets:
        targets.present.copy_(targets.masks.flatten(1).any(1))


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(config, batch):
    trainer = make_trainer(config)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    handle = trainer.model.embedding_head.layers[0].weight.register_hook(lambda g: g * float("inf"))
    with pytest.raises(FloatingPointError, match="learning_rate"):
        trainer.step(batch)
    handle.remove()
    assert all(torch.equal(v, before[k]) for k, v in trainer.model.state_dict().items())


def test_released_schedule_drops_by_ten_at_the_milestone():
    config = TrainConfig()
    assert learning_rate_factor(7999, config) == 1.0
    assert learning_rate_factor(8000, config) == pytest.approx(0.1)


def test_cosine_schedule_warms_up_and_ends_at_its_final_rate():
    config = TrainConfig(schedule="cosine", warmup_steps=10, steps=100, final_rate=0.02)
    factors = [learning_rate_factor(step, config) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[10] == 1.0
    assert factors[100] == pytest.approx(0.02)
    assert all(a >= b for a, b in pairwise(factors[10:]))
