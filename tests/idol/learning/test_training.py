"""The training step: it learns, it resumes exactly, and it stops at numbers that are not finite."""

from itertools import pairwise

import numpy as np
import pytest
import torch

import idol
from idol.config import Config, TrainConfig, override
from idol.images.synthetic import SyntheticConfig, make_video
from idol.images.transforms import Clip, Frame, augment, collate
from idol.learning.pair_loss import PairLoss
from idol.learning.training import Trainer, learning_rate_factor, make_optimizer
from idol.structures import PairBatch

SMALL = ("transforms.stretch=[64,96]", "model.num_queries=20", "train.warmup_steps=5")


@pytest.fixture(scope="module")
def config() -> Config:
    return override(idol.presets.by_name("tiny"), SMALL)


@pytest.fixture(scope="module")
def batch(config) -> PairBatch:
    rng = np.random.default_rng(0)
    examples = []
    for seed in (1, 2):
        video = make_video(SyntheticConfig.easy(), seed)
        clip = Clip(tuple(Frame(video.frames[t], video.masks[t]) for t in (0, 2)), video.labels)
        examples.append(augment(clip, config.transforms, rng))
    return collate(examples, 32).pairs()


def make_trainer(config, seed=0):
    torch.manual_seed(seed)
    return Trainer(idol.IDOL(config), config)


def test_the_loss_falls_on_a_batch_seen_again_and_again(config, batch):
    trainer = make_trainer(config)
    values = [trainer.step(batch)["loss"] for _ in range(25)]
    assert np.mean(values[-3:]) < 0.75 * np.mean(values[:3])


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


def test_a_step_in_bfloat16_is_near_one_in_float32_and_learns(config, batch):
    totals = {}
    for precision in ("fp32", "bf16"):
        trainer = make_trainer(override(config, [f"train.precision={precision}"]))
        losses = [trainer.step(batch) for _ in range(12)]
        totals[precision] = losses[0]
        assert losses[-1]["loss"] < 0.85 * losses[0]["loss"]
        weights = trainer.weights().values()
        assert all(w.dtype == torch.float32 for w in weights if w.is_floating_point())
    for name, value in totals["fp32"].items():
        assert totals["bf16"][name] == pytest.approx(value, rel=0.05), name


def test_the_released_optimiser_decays_everything_and_slows_the_backbone_only():
    released = idol.presets.by_name("ytvis19_r50")
    model = idol.IDOL(released)
    optimizer = make_optimizer(model, released.train)
    names = {id(p): name for name, p in model.named_parameters()}
    factor = {names[id(p)]: g["factor"] for g in optimizer.param_groups for p in g["params"]}
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert factor.keys() == trainable
    assert len(trainable) == 360  # as many as the released network trains
    assert {name for name, f in factor.items() if f == 0.1} == {
        name for name in trainable if name.startswith("backbone.")
    }
    assert set(factor.values()) == {0.1, 1.0}
    for group in optimizer.param_groups:
        assert group["weight_decay"] == 1e-4
        assert group["betas"] == (0.9, 0.999)
        assert group["eps"] == 1e-8
    assert (released.train.clip_norm, released.train.learning_rate) == (0.01, 1e-4)
    assert (released.train.steps, released.train.milestones) == (12000, (8000,))


def test_a_step_is_adamw_on_the_clipped_gradient(config, batch):
    config = override(config, ["train.clip_norm=0.01", "train.warmup_steps=0"])
    ours = make_trainer(config)
    torch.manual_seed(0)
    model = idol.IDOL(config).train()
    loss = PairLoss(model, seed=0)
    norms = []
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.train.learning_rate, weight_decay=config.train.weight_decay
    )  # tiny: the backbone's rate is the others'
    for step in range(2):  # from the third on rounding decides which query is matched
        got = ours.step(batch)
        optimizer.param_groups[0]["lr"] = config.train.learning_rate * learning_rate_factor(
            step, config.train
        )
        optimizer.zero_grad()
        loss(batch, step)[0].backward()
        norm = torch.sqrt(sum((p.grad**2).sum() for p in model.parameters()))
        norms.append(float(norm))
        assert got["gradient_norm"] == pytest.approx(norms[-1], rel=1e-3)
        for p in model.parameters():
            p.grad *= 0.01 / norm
        optimizer.step()
    assert min(norms) > 0.01
    for name, p in model.named_parameters():
        torch.testing.assert_close(ours.model.state_dict()[name], p.detach(), atol=2e-5, rtol=1e-3)
