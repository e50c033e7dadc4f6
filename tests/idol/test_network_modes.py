"""The network compiled, folded, in 16 bits and with recomputed activations: the same answers."""

import dataclasses

import pytest
import torch

import idol
from idol.config import BackboneConfig, Config
from idol.network import geometry as geometry_module
from idol.network.model import IDOL
from tests.idol import oracle_recipe as recipe

SIZES = [(60, 90), (64, 96)]
HEADS = ("logits", "boxes", "references", "embeddings", "mask_features", "states")


@pytest.fixture(scope="module")
def tiny() -> IDOL:
    return idol.build("tiny")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    for image, (height, width) in zip(x, SIZES, strict=True):
        image[:, height:] = 0
        image[:, :, width:] = 0
    return x


def close(got, expected, **tolerances):
    for name in HEADS:
        a, b = getattr(got, name), getattr(expected, name)
        torch.testing.assert_close(a, b, msg=lambda m, n=name: f"{n}: {m}", **tolerances)


@torch.no_grad()
@pytest.mark.parametrize("given", ["geometry", "sizes", "padding"])
def test_the_compiler_sees_one_graph_of_the_network(given, tiny, images):
    padding = torch.ones(2, 64, 96, dtype=torch.bool)
    for row, (height, width) in zip(padding, SIZES, strict=True):
        row[:height, :width] = False
    how = {
        "geometry": {"geometry": tiny.geometry((64, 96), SIZES)},
        "sizes": {"sizes": SIZES},
        "padding": {"padding": padding},
    }[given]
    compiled = torch.compile(tiny, fullgraph=True, backend="eager")
    close(compiled(images, **how), tiny(images, **how), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_compiler_sees_one_graph_down_to_the_masks(tiny, images):
    def frame(images, geometry, rows, queries):
        outputs = tiny(images, geometry=geometry)
        layers = torch.full_like(queries, len(outputs.states) - 1)
        return tiny.mask_logits(outputs, rows, layers, queries)

    rows, queries = torch.tensor([0, 1, 1]), torch.tensor([5, 0, 7])
    arguments = (images, tiny.geometry((64, 96), SIZES), rows, queries)
    compiled = torch.compile(frame, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*arguments), frame(*arguments), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_sizes_padding_and_geometry_give_the_same_bits(tiny, images):
    padding = torch.ones(2, 64, 96, dtype=torch.bool)
    for row, (height, width) in zip(padding, SIZES, strict=True):
        row[:height, :width] = False
    by_padding = tiny(images, padding)
    close(tiny(images, sizes=SIZES), by_padding, rtol=0, atol=0)
    close(tiny(images, geometry=tiny.geometry((64, 96), SIZES)), by_padding, rtol=0, atol=0)


@torch.no_grad()
def test_a_geometry_is_computed_once_for_a_size(tiny, images, monkeypatch):
    calls = []
    compute = geometry_module._compute
    monkeypatch.setattr(geometry_module, "_compute", lambda *a: calls.append(a[:2]) or compute(*a))
    for _ in range(3):
        tiny.geometry((160, 224), [(151, 203), (151, 203)])
    assert calls == [((160, 224), (151, 203))]


@torch.no_grad()
@pytest.mark.parametrize("how", ["autocast", "whole"])
def test_bfloat16_stays_near_float32_and_keeps_the_answer_in_float32(how, images):
    model = idol.build("tiny")
    exact = model(images, sizes=SIZES)
    if how == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(images, sizes=SIZES)
    else:
        rough = model.to(torch.bfloat16)(images, sizes=SIZES)
    queries = torch.arange(6)
    masks = model.masks(rough, 0, queries)
    for name in ("logits", "boxes", "references", "embeddings"):
        assert getattr(rough, name).dtype == torch.float32, name
    assert masks.dtype == torch.float32
    # 8 bits of mantissa through 3 + 3 layers; what has converged to one box must stay there.
    assert (rough.boxes[-1] - exact.boxes[-1]).abs().mean() < 5e-3
    assert (rough.logits[-1].sigmoid() - exact.logits[-1].sigmoid()).abs().mean() < 5e-3
    cosine = torch.cosine_similarity(rough.embeddings, exact.embeddings, dim=-1)
    assert cosine.median() > 0.99


@torch.no_grad()
def test_folding_norms_keeps_the_answers_of_the_released_network(shared):
    model = IDOL(idol.presets.by_name("ytvis19_r50")).eval()
    model.load_state_dict(recipe.recipe_weights(shared / "reference/state_dict_r50.txt"))
    frames = [recipe.frame(180, 250, 0, 4, 1)[0], recipe.frame(150, 200, 0, 3, 2)[0]]
    batch = recipe.batch(frames, (192, 256))
    plain = model(*batch)
    folded = model.fold()(*batch)
    for name in ("logits", "boxes", "embeddings", "mask_features"):
        assert (getattr(folded, name) - getattr(plain, name)).abs().max() < 1e-4, name


def test_a_folded_network_refuses_to_train(tiny):
    model = idol.build("tiny").fold()
    with pytest.raises(ValueError, match="for inference only"):
        model.train()
    with pytest.raises(ValueError, match=r"call \.eval\(\) first"):
        idol.build("tiny").train().fold()


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_recomputed_activations_give_the_same_gradients(dropout, tiny, images):
    gradients = []
    for thrifty in (False, True):
        config = tiny.config
        config = dataclasses.replace(
            config,
            model=dataclasses.replace(
                config.model, dropout=dropout, checkpoint_activations=thrifty
            ),
        )
        model = IDOL(config)
        model.load_state_dict(tiny.state_dict())
        model.train()
        torch.manual_seed(1)
        outputs = model(images, sizes=SIZES)
        loss = outputs.boxes.square().sum() + outputs.logits.square().mean()
        (loss + outputs.mask_features.square().mean()).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    plain, thrifty = gradients
    assert plain.keys() == thrifty.keys()
    assert len(plain) > 100
    for name, gradient in plain.items():
        torch.testing.assert_close(thrifty[name], gradient, rtol=1e-5, atol=1e-7, msg=name)


def test_recomputing_keeps_less_for_the_backward_pass(images):
    def kept(thrifty: bool) -> int:
        config = Config()
        model = IDOL(
            dataclasses.replace(
                config,
                model=dataclasses.replace(
                    idol.presets.by_name("tiny").model,
                    backbone=BackboneConfig(name="tiny"),
                    checkpoint_activations=thrifty,
                ),
            )
        ).train()
        stored = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            stored[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            outputs = model(images, sizes=SIZES)
        assert outputs.logits.requires_grad
        return sum(stored.values())

    assert kept(True) < 0.6 * kept(False)
