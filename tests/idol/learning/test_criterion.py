"""The criterion on a small made-up network, against losses computed pair by pair."""

import dataclasses
import random

import numpy as np
import pytest
import torch
from torch import nn

from idol.config import AssignmentConfig, Config, LossConfig, ModelConfig
from idol.learning import losses
from idol.learning.assignment import Truths, assign_queries, contrastive_samples
from idol.learning.criterion import Criterion, split
from idol.structures import Outputs, PairBatch, Targets

D, Q, K, C, H, W = 3, 12, 4, 6, 64, 96
LEVELS = ((8, 12), (4, 6), (2, 3), (1, 2))
FIVE = ("loss_ce", "loss_bbox", "loss_giou", "loss_mask", "loss_dice")


class FakeModel(nn.Module):
    """Outputs are parameters; a query's mask is its state's first number times the features."""

    def __init__(self, images, seed=0, identities=0):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        tokens = sum(h * w for h, w in LEVELS)
        shapes = {
            "logits": (D, images, Q, K), "boxes": (D, images, Q, 4), "states": (D, images, Q, C),
            "embeddings": (images, Q, C), "features": (images, 8, H // 8, W // 8),
            "dense": (images, tokens, K),
        }  # fmt: skip
        self.values = nn.ParameterDict(
            {name: nn.Parameter(torch.randn(*shape, generator=g)) for name, shape in shapes.items()}
        )
        self.identity_head = nn.Linear(C, identities) if identities else None
        self.asked = 0

    def forward(self):
        v = self.values
        boxes = v["boxes"].sigmoid()
        return Outputs(
            logits=v["logits"],
            boxes=boxes,
            references=boxes[..., :2],
            refined=boxes[-1].detach(),
            embeddings=v["embeddings"],
            mask_features=v["features"],
            states=v["states"],
            sizes=torch.tensor([[H, W]]).expand(len(boxes[0]), 2),
            controller=nn.Identity(),
            dense_logits=v["dense"],
            level_shapes=LEVELS,
            identity_head=self.identity_head,
        )

    def mask_logits(self, outputs, images, layers, queries):
        self.asked += len(images)
        base = outputs.mask_features.mean(1).repeat_interleave(2, 1).repeat_interleave(2, 2)
        return base[images] * outputs.states[layers, images, queries, 0][:, None, None]


def targets(seed, count, present=None):
    """Truths with rectangular masks; absent ones are empty, with a label that is no class."""
    g = np.random.default_rng(seed)
    present = np.ones(count, bool) if present is None else np.array(present, bool)
    masks, boxes = np.zeros((count, H, W), bool), np.zeros((count, 4))
    labels = g.integers(0, K, count)
    for i in np.flatnonzero(present):
        h, w = g.integers(16, 40, 2)
        y, x = g.integers(0, H - h), g.integers(0, W - w)
        masks[i, y : y + h, x : x + w] = True
        boxes[i] = [(x + w / 2) / W, (y + h / 2) / H, w / W, h / H]
    labels[~present] = K
    return Targets(
        labels=torch.from_numpy(labels),
        boxes=torch.from_numpy(boxes).float(),
        masks=torch.from_numpy(masks),
        present=torch.from_numpy(present),
    )


def pairs(*counts, on_key=None, on_reference=None):
    """A batch with so many instances in each pair."""
    images = torch.zeros(len(counts), 3, H, W)
    padding = torch.zeros(len(counts), H, W, dtype=torch.bool)
    here, there = on_key or [None] * len(counts), on_reference or [None] * len(counts)
    return PairBatch(
        key_images=images,
        key_padding=padding,
        key_targets=[targets(i, n, p) for i, (n, p) in enumerate(zip(counts, here, strict=True))],
        reference_images=images,
        reference_padding=padding,
        reference_targets=[
            targets(i, n, p) for i, (n, p) in enumerate(zip(counts, there, strict=True))
        ],
    )


def config(both=False, dense=False, identities=0, assignment=None, **weights):
    return Config(
        model=ModelConfig(
            num_classes=K, decoder_layers=D, dense_auxiliary=dense, num_identities=identities
        ),
        losses=LossConfig(supervise_reference=both, **weights),
        assignment=assignment or AssignmentConfig(),
    )


def run(batch, settings, model=None, seed=0):
    model = model or FakeModel(2 * len(batch.key_targets))
    criterion = Criterion(settings)
    key, reference = split(model(), len(batch.key_targets))
    named = criterion(model, key, reference, batch, random.Random(seed))
    return model, {name: v.detach() for name, v in named.items()}, criterion.total(named)


@torch.no_grad()
def truths(labels, boxes):
    return Truths(labels, boxes, torch.ones_like(labels, dtype=torch.bool))


def eq_4(key, reference, found, chosen, g):
    """Paper Eq. 4 of truth g of the first pair, term by term."""
    v = key.embeddings[0, found.best[g]].double()
    positives = reference.embeddings[0, torch.from_numpy(chosen.positives[g])].double() @ v
    negatives = reference.embeddings[0, torch.from_numpy(chosen.negatives[g])].double() @ v
    return (negatives[None] - positives[:, None]).exp().sum().log1p().item()


@torch.no_grad()
def expected_detection(model, frames, layer):
    """The five losses of a layer, one image and one positive at a time.

    frames: [(Outputs, [Targets, ...]), ...]
    """
    sums, count = dict.fromkeys(FIVE, 0.0), 0
    for outputs, all_targets in frames:
        for b, full in enumerate(all_targets):
            rows = full.present
            labels, boxes, masks = full.labels[rows], full.boxes[rows], full.masks[rows]
            found = assign_queries(
                outputs.logits[layer, b],
                outputs.boxes[layer, b],
                truths(labels, boxes),
                AssignmentConfig(),
            )
            hot = torch.zeros(Q, K)
            for q in np.flatnonzero(found.positive):
                g = found.truth[q]
                hot[q, labels[g]] = 1
                count += 1
                box = outputs.boxes[layer, b, q][None]
                mask = model.mask_logits(outputs, *(torch.tensor([i]) for i in (b, layer, q)))
                truth = masks[g, 2::4, 2::4][None]
                sums["loss_bbox"] += losses.box_l1(box, boxes[g][None])[0]
                sums["loss_giou"] += losses.box_giou(box, boxes[g][None])[0]
                p, m = mask.sigmoid(), truth.float()
                sums["loss_mask"] += losses.sigmoid_focal(mask, truth, 0.25, 2.0).mean()
                sums["loss_dice"] += 1 - (2 * (p * m).sum() + 1) / (p.sum() + m.sum() + 1)
            sums["loss_ce"] += losses.sigmoid_focal(outputs.logits[layer, b], hot, 0.25, 2.0).sum()
    return {name: float(value) / max(count, 1) for name, value in sums.items()}


ON_KEY = [[1, 1, 0], [1, 1], []]
ON_REFERENCE = [[1, 0, 1], [1, 1], []]


@pytest.mark.parametrize("both", [False, True])
def test_detection_losses_are_those_of_one_positive_at_a_time(both):
    batch = pairs(3, 2, 0, on_key=ON_KEY, on_reference=ON_REFERENCE)
    model, named, _ = run(batch, config(both))
    key, reference = split(model(), 3)
    frames = [(key, batch.key_targets)]
    if both:
        # What is on the reference only is a truth there, though its pair cannot contrast it.
        frames.append((reference, batch.reference_targets))
    for layer, suffix in ((2, ""), (0, "_0"), (1, "_1")):
        for name, value in expected_detection(model, frames, layer).items():
            assert float(named[name + suffix]) == pytest.approx(value, rel=1e-4), name + suffix


def test_losses_come_last_layer_first_under_the_released_names():
    _, named, _ = run(pairs(2), config())
    tail = [f"{name}_{layer}" for layer in (0, 1) for name in FIVE]
    assert list(named) == [*FIVE, "loss_reid", "loss_reid_aux", *tail]
    assert all(value.shape == () for value in named.values())


def test_total_weighs_every_loss():
    settings = config(both=True, dense=True)
    _, named, total = run(pairs(3, 1), settings)
    weights = dataclasses.asdict(settings.losses)
    expected = sum(
        weights[name.removeprefix("loss_").removesuffix("_0").removesuffix("_1")] * float(value)
        for name, value in named.items()
    )
    assert float(total.detach()) == pytest.approx(expected, rel=1e-5)


def test_reference_frames_change_the_detection_losses_only_where_supervised():
    batch = pairs(2, 3)
    model = FakeModel(4)
    _, before, _ = run(batch, config(), model)
    _, before_both, _ = run(batch, config(both=True), model)
    with torch.no_grad():
        model.values["logits"][:, 2:] += 1
    _, after, _ = run(batch, config(), model)
    _, after_both, _ = run(batch, config(both=True), model)
    assert float(after["loss_ce_0"]) == float(before["loss_ce_0"])
    assert float(after_both["loss_ce_0"]) != float(before_both["loss_ce_0"])


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("counts", [(0,), (0, 0), (2, 0)])
def test_batches_with_empty_frames_are_finite_and_reach_every_parameter(both, counts):
    model, named, total = run(pairs(*counts), config(both, dense=True))
    total.backward()
    assert all(value.isfinite() for value in named.values())
    for name, parameter in model.values.items():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    if sum(counts) == 0:
        nothing = {name: float(v) for name, v in named.items() if not name.startswith("loss_ce")}
        assert nothing.pop("loss_dense") > 0
        assert set(nothing.values()) == {0.0}


def test_instances_that_never_meet_give_no_contrastive_loss_but_still_a_gradient():
    batch = pairs(2, on_key=[[1, 0]], on_reference=[[0, 1]])
    model, named, total = run(batch, config(both=True))
    total.backward()
    assert float(named["loss_reid"]) == float(named["loss_reid_aux"]) == 0.0
    assert float(named["loss_bbox"]) > 0
    assert model.values["embeddings"].grad.abs().sum() == 0


def test_contrastive_loss_averages_over_instances_seen_in_both_frames():
    # The third instance is absent from the reference: with it or without, the same losses.
    with_it = pairs(3, on_key=[[1, 1, 1]], on_reference=[[1, 1, 0]])
    model, named, _ = run(with_it, config())
    key, reference = split(model(), 1)
    keep = torch.tensor([0, 1])
    here, there = with_it.key_targets[0], with_it.reference_targets[0]
    settings = AssignmentConfig()
    found = assign_queries(
        key.logits[-1, 0], key.boxes[-1, 0], truths(here.labels, here.boxes), settings
    )
    chosen = contrastive_samples(
        reference.logits[-1, 0],
        reference.refined[0],
        truths(there.labels[keep], there.boxes[keep]),
        settings,
    )
    expected = [eq_4(key, reference, found, chosen, g) for g in range(2)]
    assert float(named["loss_reid"]) == pytest.approx(sum(expected) / 2, rel=1e-5)


def test_masks_are_asked_for_matched_queries_only():
    model, _, _ = run(pairs(2, 3), config())
    assert 0 < model.asked < D * 2 * Q


def test_the_same_random_state_draws_the_same_negatives():
    batch, model = pairs(3, 2), FakeModel(4)
    same = [float(run(batch, config(), model, seed)[1]["loss_reid_aux"]) for seed in (5, 5)]
    assert same[0] == same[1]


def test_dense_loss_classifies_tokens_under_a_mask_and_ignores_padding():
    batch = pairs(1)
    here = batch.key_targets[0]
    # One token per level-0 cell: the truth covers rows 0-31, columns 0-47 of 64 x 96.
    here.masks[:] = False
    here.masks[0, :32, :48] = True
    here.labels[0] = 2
    batch.key_padding[:, :, 88:] = True
    model = FakeModel(2)
    with torch.no_grad():
        model.values["dense"].fill_(-30.0)
        cells = [np.zeros(shape, bool) for shape in LEVELS]
        for (h, w), cell in zip(LEVELS, cells, strict=True):
            cell[: h // 2, : w // 2] = True  # centres of the half, at every level here
        # The one row of the last level has its centre at 32: just outside.
        covered = torch.from_numpy(np.concatenate([c.flatten() for c in cells]))
        model.values["dense"][0, covered, 2] = 30.0
    _, right, _ = run(batch, config(dense=True), model)
    assert float(right["loss_dense"]) == pytest.approx(0.0, abs=1e-6)
    with torch.no_grad():
        model.values["dense"][0, 11] = 30.0  # top right, in the padding
    _, padded, _ = run(batch, config(dense=True), model)
    assert float(padded["loss_dense"]) == pytest.approx(0.0, abs=1e-6)
    with torch.no_grad():
        model.values["dense"][0, 8, 1] = 30.0  # real background called class 1
    _, wrong, _ = run(batch, config(dense=True), model)
    # 30 nats times 1 - alpha, over 24 + 6 + 1 covered tokens.
    assert float(wrong["loss_dense"]) == pytest.approx(0.75 * 30 / 31, rel=1e-4)


def test_dense_loss_without_dense_logits_says_what_to_do():
    model = FakeModel(2)
    key, reference = split(dataclasses.replace(model(), dense_logits=None), 1)
    with pytest.raises(ValueError, match=r"model\.train\(\)"):
        Criterion(config(dense=True))(model, key, reference, pairs(1), random.Random(0))


def test_a_loss_that_is_not_finite_is_named_with_its_rows():
    model = FakeModel(4)
    with torch.no_grad():
        model.values["embeddings"][2] = torch.inf
    with pytest.raises(FloatingPointError, match=r"loss_reid.*reference rows \[0\]"):
        run(pairs(2, 2), config(), model)


def test_mask_features_that_are_not_finite_are_named_too():
    model = FakeModel(4)
    with torch.no_grad():
        model.values["features"][1] = torch.nan
    with pytest.raises(FloatingPointError, match=r"loss_mask, loss_dice.*key rows \[1\]"):
        run(pairs(2, 2), config(), model)


def test_outputs_and_batches_that_do_not_fit_are_refused():
    batch = pairs(2, 2)
    model = FakeModel(2)
    key, reference = split(model(), 1)
    with pytest.raises(ValueError, match="2 key and 2 reference"):
        Criterion(config())(model, key, reference, batch, random.Random(0))
    odd = dataclasses.replace(batch, reference_targets=[targets(0, 2), targets(1, 3)])
    with pytest.raises(ValueError, match="pair 1 has 2 and 3"):
        run(odd, config())


def test_wrong_number_of_samples_is_refused():
    model, batch = FakeModel(2), pairs(2)
    with pytest.raises(ValueError, match=r"one entry per truth visible in both .*, 2, got 1"):
        Criterion(config())(model, *split(model(), 1), batch, random.Random(0), samples=[[0]])


def test_split_gives_views_of_key_and_reference_rows():
    outputs = FakeModel(5)()
    key, reference = split(outputs, 2)
    assert key.logits.shape[1] == len(key.embeddings) == len(key.dense_logits) == 2
    assert torch.equal(reference.logits, outputs.logits[:, 2:])
    assert torch.equal(reference.mask_features, outputs.mask_features[2:])
    assert key.logits.data_ptr() == outputs.logits.data_ptr()


def with_identities(batch, numbers):
    """The same batch, its instances numbered: one list per pair."""
    named = {
        side: [
            dataclasses.replace(t, identities=torch.tensor(mine, dtype=torch.int64))
            for t, mine in zip(getattr(batch, side), numbers, strict=True)
        ]
        for side in ("key_targets", "reference_targets")
    }
    return dataclasses.replace(batch, **named)


@pytest.mark.parametrize("both", [False, True])
def test_identity_loss_is_the_mean_over_matched_queries_of_known_instances(both):
    # The second instance's number is not known; the third is on one frame only.
    batch = pairs(3, 1, on_key=[[1, 1, 0], [1]], on_reference=[[1, 1, 1], [0]])
    batch = with_identities(batch, [[4, -1, 2], [0]])
    model = FakeModel(4, identities=5)
    settings = config(both, identities=5, identity=1.0)
    _, named, _ = run(batch, settings, model)
    expected = []
    for outputs, targets_ in zip(
        split(model(), 2), (batch.key_targets, batch.reference_targets), strict=True
    ):
        for b, full in enumerate(targets_):
            rows = full.present
            found = assign_queries(
                outputs.logits[-1, b],
                outputs.boxes[-1, b],
                truths(full.labels[rows], full.boxes[rows]),
                AssignmentConfig(),
            )
            for q in np.flatnonzero(found.positive):
                number = full.identities[rows][found.truth[q]]
                if number >= 0:
                    logits = model.identity_head(outputs.embeddings[b, q])
                    expected.append(-logits.log_softmax(-1)[number].item())
    assert len(expected) >= 4
    assert float(named["loss_identity"]) == pytest.approx(np.mean(expected), rel=1e-5)


@pytest.mark.parametrize("counts", [(0,), (2, 0)])
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_an_identity_head_gets_a_gradient_whatever_is_matched(counts, weight):
    model = FakeModel(2 * len(counts), identities=3)
    settings = config(identities=3, identity=weight)
    _, named, total = run(pairs(*counts), settings, model)  # no identity is known
    total.backward()
    assert float(named["loss_identity"]) == 0.0
    assert model.identity_head.weight.grad.abs().sum() == 0
    batch = with_identities(pairs(*counts), [list(range(n)) for n in counts])
    _, named, total = run(batch, settings, model)
    total.backward()
    moved = model.identity_head.weight.grad.abs().sum() > 0
    assert bool(moved) == (sum(counts) > 0 and weight > 0)


def test_an_identity_head_alone_replaces_the_contrastive_losses():
    batch = with_identities(pairs(2), [[0, 1]])
    model = FakeModel(2, identities=3)
    settings = config(identities=3, identity=1.0, reid=0.0, reid_aux=0.0)
    _, named, total = run(batch, settings, model)
    assert float(named["loss_reid"]) > 0
    rest = sum(
        float(value) * getattr(settings.losses, name.split("_")[1])
        for name, value in named.items()
        if "reid" not in name
    )
    assert float(total.detach()) == pytest.approx(rest, rel=1e-5)


def test_identity_loss_without_a_head_or_with_a_number_too_large_says_what_to_do():
    with pytest.raises(ValueError, match=r"model\.num_identities is 0"):
        run(pairs(1), config(identity=1.0))
    batch = with_identities(pairs(1), [[7]])
    with pytest.raises(ValueError, match=r"below model\.num_identities \(3\), got 7"):
        run(batch, config(identities=3, identity=1.0), FakeModel(2, identities=3))


def test_an_instance_without_a_positive_counts_in_no_contrastive_loss():
    batch = pairs(2, 1)
    model = FakeModel(4)
    by_iou = AssignmentConfig(selection="iou", iou_positive=0.99)
    settings = config(assignment=by_iou)
    _, named, total = run(batch, settings, model)
    total.backward()
    assert float(named["loss_reid"]) == float(named["loss_reid_aux"]) == 0.0
    assert (model.values["embeddings"].grad == 0).all()
    # One query of the reference lies on the first truth: only that truth counts.
    truth = batch.reference_targets[0].boxes[0]
    with torch.no_grad():
        model.values["boxes"][-1, 2, 5] = truth.clamp(1e-6, 1 - 1e-6).logit()
    _, named, _ = run(batch, settings, model)
    key, reference = split(model(), 2)
    here = batch.key_targets[0]
    found = assign_queries(
        key.logits[-1, 0], key.boxes[-1, 0], truths(here.labels, here.boxes), by_iou
    )
    there = batch.reference_targets[0]
    chosen = contrastive_samples(
        reference.logits[-1, 0], reference.refined[0], truths(there.labels, there.boxes), by_iou
    )
    assert chosen.positives[0].tolist() == [q == 5 for q in range(Q)]
    expected = eq_4(key, reference, found, chosen, 0)
    assert float(named["loss_reid"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "assignment",
    [
        AssignmentConfig.paper(),
        AssignmentConfig(cost="exact", repair="exact"),
        AssignmentConfig(selection="iou"),
    ],
)
def test_every_option_trains_crowds_and_empty_frames(assignment):
    batch = pairs(7, 0, 14, on_reference=[[1, 0] * 3 + [1], [], [1] * 14])  # 14 of 12 queries
    model, named, total = run(batch, config(both=True, assignment=assignment))
    total.backward()
    assert all(value.isfinite() for value in named.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.values.values()
               if p is not model.values["dense"])  # fmt: skip


def test_losses_are_computed_in_float32_under_autocast():
    batch = with_identities(pairs(2, 3), [[0, 1], [2, 3, 4]])
    model = FakeModel(4, identities=5)
    settings = config(both=True, dense=True, identities=5)
    _, plain, _ = run(batch, settings, model)
    with torch.autocast("cpu", torch.bfloat16):
        _, mixed, _ = run(batch, settings, model)
    for name, value in plain.items():
        assert mixed[name].dtype == torch.float32, name
        # The identity head is a part of the network, which computes in bfloat16 here.
        tolerance = 1e-2 if name == "loss_identity" else 1e-6
        assert float(mixed[name]) == pytest.approx(float(value), rel=tolerance), name


def test_outputs_in_bfloat16_give_nearly_the_same_losses():
    batch, model = pairs(2, 3), FakeModel(4)
    _, plain, _ = run(batch, config(both=True), model)
    model = model.to(torch.bfloat16)
    _, rough, total = run(batch, config(both=True), model)
    total.backward()
    for name, value in plain.items():
        assert rough[name].dtype == torch.float32
        assert float(rough[name]) == pytest.approx(float(value), rel=0.1), name
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_the_global_normaliser_is_the_local_one_on_a_single_worker():
    batch, model = pairs(2, 3), FakeModel(4)
    _, local, _ = run(batch, config(), model)
    _, whole, _ = run(batch, config(normaliser="global"), model)
    assert {k: float(v) for k, v in local.items()} == {k: float(v) for k, v in whole.items()}


def test_the_global_normaliser_divides_by_the_mean_over_workers(monkeypatch):
    batch, model = pairs(2, 3), FakeModel(4)
    _, local, _ = run(batch, config(), model)

    def three_times(count):  # as if two more workers had matched twice as much together
        count.mul_(3)

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", three_times)
    _, whole, _ = run(batch, config(normaliser="global"), model)
    for name, value in local.items():
        assert float(whole[name]) == pytest.approx(2 / 3 * float(value), rel=1e-5), name
