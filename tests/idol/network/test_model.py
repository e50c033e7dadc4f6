"""The network against the released one's stored numbers, and its laws."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import idol
from idol.config import Config
from idol.network.model import IDOL
from tests.idol import oracle_recipe as recipe


@pytest.fixture(scope="module")
def r50(shared) -> IDOL:
    model = IDOL(idol.presets.by_name("ytvis19_r50")).eval()
    model.load_state_dict(recipe.recipe_weights(shared / "reference/state_dict_r50.txt"))
    return model


def test_recipe_weights_have_the_stored_checksums(shared):
    sums = json.loads((shared / "reference/oracle/weight_checksums.json").read_text())
    state = recipe.released_state(shared / "reference/state_dict_r50.txt")
    for key, expected in sums.items():
        if key in state:
            x = state[key].double().flatten()
            got = [x.sum(), x.abs().sum(), x[0], x[-1]]
            np.testing.assert_allclose([float(v) for v in got], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("case", ["infer_basic", "infer_padded"])
def test_outputs_equal_the_released_network(case, r50, shared):
    if case == "infer_basic":
        frames = [recipe.frame(192, 256, t, 4, 0)[0] for t in range(3)]
    else:
        frames = [recipe.frame(180, 250, 0, 4, 1)[0], recipe.frame(150, 200, 0, 3, 2)[0]]
    stored = np.load(shared / f"reference/oracle/{case}.npz")
    with torch.inference_mode():
        outputs = r50(*recipe.batch(frames, (192, 256)))
        queries = torch.from_numpy(stored["mask_query_idx"].astype(np.int64))
        masks = torch.stack([r50.masks(outputs, i, queries) for i in range(len(frames))])
    got = {
        "pred_logits": outputs.logits[-1],
        "pred_boxes": outputs.boxes[-1],
        "pred_inst_embed": outputs.embeddings,
        "hs_sub": outputs.states[:, :, ::10],
        "inter_references": outputs.boxes,
        "mask_feat": outputs.mask_features,
        "pred_masks_sub": masks,
    }
    for name, value in got.items():
        tolerance = 1e-4 if "mask" in name else 5e-5
        difference = np.abs(value.numpy() - stored[name].reshape(value.shape)).max()
        assert difference <= tolerance, f"{name} differs by {difference}"


def test_released_key_list_loads_without_a_missing_or_unexpected_key(shared, tmp_path):
    state = recipe.released_state(shared / "reference/state_dict_r50.txt")
    path = tmp_path / "released.pth"
    torch.save({"model": {f"module.{k}": v for k, v in state.items()}, "iteration": 1}, path)
    model = idol.load(path, preset="ytvis19_r50")
    ours = recipe.recipe_weights(shared / "reference/state_dict_r50.txt")
    assert all(torch.equal(v, ours[k]) for k, v in model.state_dict().items())


def test_masks_do_not_depend_on_which_others_are_asked_for():
    model = idol.build("tiny")
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 64, 96, generator=generator)
    with torch.inference_mode():
        outputs = model(images, torch.zeros(2, 64, 96, dtype=torch.bool))
        every = model.masks(outputs, 1, torch.arange(40))
        some = model.masks(outputs, 1, torch.tensor([7, 3]))
        mixed = model.mask_logits(
            outputs, torch.tensor([1, 0, 1]), torch.tensor([2, 0, 2]), torch.tensor([3, 9, 7])
        )
    torch.testing.assert_close(some, every[[7, 3]])
    torch.testing.assert_close(mixed[[2, 0]], some)


def test_an_image_says_the_same_alone_and_in_a_batch():
    model = idol.build("tiny")
    images = torch.randn(3, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    padding = torch.zeros(3, 64, 96, dtype=torch.bool)
    with torch.inference_mode():
        together, alone = model(images, padding), model(images[1:2], padding[1:2])
    torch.testing.assert_close(together.logits[:, 1:2], alone.logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together.embeddings[1:2], alone.embeddings, atol=1e-4, rtol=1e-4)


def test_the_controller_gives_169_parameters_for_every_state():
    model = idol.build("tiny")
    images = torch.zeros(1, 3, 64, 64)
    with torch.inference_mode():
        outputs = model(images, torch.zeros(1, 64, 64, dtype=torch.bool))
        assert outputs.controller(outputs.states).shape == (3, 1, 40, 169)


def test_wrong_image_sizes_are_refused_with_the_rule():
    model = IDOL(idol.presets.by_name("tiny"))
    with pytest.raises(ValueError, match="multiples of 32"):
        model(torch.zeros(1, 3, 60, 64), torch.zeros(1, 60, 64, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"images must be \(B, 3, H, W\)"):
        model(torch.zeros(3, 64, 64), torch.zeros(1, 64, 64, dtype=torch.bool))


def test_the_first_two_backbone_stages_are_frozen_as_released():
    model = IDOL(Config())
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert len(frozen) == 11
    assert all(n.startswith(("backbone.stem", "backbone.res2")) for n in frozen)
    assert sum(p.numel() for p in model.parameters()) == 43_065_787


def _small(**changes):
    config = idol.presets.by_name("tiny")
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **changes))


def test_heads_start_as_in_the_released_code():
    # Specification 1.7: clones of one head, scores of 0.01, box deltas of zero, and half sides of
    # logit -2 from the first layer, whose reference is a point.
    torch.manual_seed(0)
    model = idol.IDOL(idol.presets.by_name("ytvis19_r50"))
    assert len(model.class_embed) == len(model.bbox_embed) == 6
    first = model.class_embed[0]
    assert first.bias.detach().sigmoid().numpy() == pytest.approx(0.01, rel=1e-5)
    bound = 256**-0.5  # torch's own start of a linear layer of 256 inputs
    assert 0.99 * bound < first.weight.abs().max() <= bound
    for head in model.class_embed[1:]:
        assert head is not first
        assert torch.equal(head.weight, first.weight)
    for number, head in enumerate(model.bbox_embed):
        *hidden, last = head.layers
        assert not last.weight.any()
        assert last.bias.tolist() == ([0.0, 0.0, -2.0, -2.0] if number == 0 else [0.0] * 4)
        for mine, one in zip(hidden, model.bbox_embed[0].layers, strict=False):
            assert torch.equal(mine.weight, one.weight)
            assert mine.weight.abs().max() <= bound
    out = model.eval()(torch.randn(1, 3, 64, 96), sizes=[(64, 96)])
    # Whatever the picture shows: all layers agree, and sides are those of the bias.
    sides = out.boxes[..., 2:].detach().numpy()
    assert sides == pytest.approx(float(torch.tensor(-2.0).sigmoid()), rel=1e-4)
    centres = out.boxes[..., :2]
    torch.testing.assert_close(centres, centres[:1].expand_as(centres))


def test_the_paper_class_head_is_a_three_layer_network_that_starts_at_a_score_of_one_percent():
    model = IDOL(_small(class_head="mlp"))
    heads = list(model.class_embed)
    assert [len(head.layers) for head in heads] == [3, 3, 3]
    assert heads[0].layers[-1].out_features == model.config.model.num_classes
    with torch.no_grad():
        for head in heads:
            at_zero = head.layers[-1](torch.zeros(1, model.config.model.width))
            torch.testing.assert_close(at_zero.sigmoid(), torch.full_like(at_zero, 0.01))
        outputs = model.eval()(torch.zeros(1, 3, 64, 64), torch.zeros(1, 64, 64).bool())
    torch.testing.assert_close(outputs.logits[1], heads[1](outputs.states[1]))


def test_the_identity_head_is_there_only_when_asked_for():
    images, padding = torch.zeros(1, 3, 64, 64), torch.zeros(1, 64, 64).bool()
    assert IDOL(_small())(images, padding).identity_head is None
    model = IDOL(_small(num_identities=11))
    outputs = model(images, padding)
    assert outputs.identity_head(outputs.embeddings[0, :5]).shape == (5, 11)
    assert {k for k in model.state_dict() if "identity" in k} == {
        "identity_head.weight", "identity_head.bias"
    }  # fmt: skip


def test_class_heads_and_identities_outside_the_rules_are_refused():
    with pytest.raises(ValueError, match="num_identities must be >= 0, got -1"):
        _small(num_identities=-1)
    with pytest.raises(ValueError, match="class_head must be one of"):
        idol.config.override(_small(), ["model.class_head=transformer"])
