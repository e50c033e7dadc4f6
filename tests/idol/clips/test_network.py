"""SeqFormer and IFC against the released networks' stored numbers, and their laws."""

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

import idol
from idol.clips import weights
from idol.clips.network import ClipNetwork
from tests.idol.clips import recipe

TINY = ("seqformer_tiny", "ifc_tiny")
# case: key list, arguments of recipe.clip
CASES = {
    "seqformer_infer3": ("seqformer_r50", ((0, 6, 12), 192, 256, 4, 0)),
    "seqformer_infer5_padded": (
        "seqformer_r50",
        ((0, 3, 6, 9, 12), 180, 250, 4, 1, (192, 256)),
    ),
    "ifc_infer_basic": ("ifc_r50", ((0, 1, 2), 192, 256, 4, 0)),
    "ifc_infer_odd": ("ifc_r50", ((0, 2, 4, 6, 8), 179, 250, 4, 1)),
    "ifc_infer_r101": ("ifc_r101", ((0, 2), 96, 128, 3, 6)),
}
TOLERANCE = {"seqformer_r50": (5e-5, 1e-4), "ifc_r50": (1e-4, 5e-4), "ifc_r101": (1e-3, 5e-3)}


@pytest.fixture(scope="module")
def released(shared) -> Callable[[str], ClipNetwork]:
    """Preset → the network with the weights of the stored numbers, by the authors' keys."""

    @cache
    def load(preset):
        state = recipe.released_state(shared / f"reference/state_dict_{preset}.txt")
        model = idol.clips.build(preset)
        model.load_state_dict(weights.released(state))
        return model

    return load


@pytest.mark.parametrize("method", ["seqformer", "ifc"])
def test_recipe_weights_have_the_stored_checksums(method, shared):
    sums = json.loads((shared / f"reference/oracle/{method}_weight_checksums.json").read_text())
    weight = recipe.ifc_weight if method == "ifc" else recipe.seqformer_weight
    shapes = dict(recipe.keys(shared / f"reference/state_dict_{method}_r50.txt"))
    for key, expected in sums.items():
        x = weight(key, shapes[key]).double().flatten()
        got = [float(v) for v in (x.sum(), x.abs().sum(), x[0], x[-1])]
        np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_outputs_equal_the_released_network(case, released, shared):
    preset, arguments = CASES[case]
    stored = np.load(shared / f"reference/oracle/{case}.npz")
    images, padding, _ = recipe.clip(*arguments, bgr=preset == "ifc_r101")
    with torch.inference_mode():
        outputs = released(preset)(images, padding)
        masks = outputs.masks(stored["mask_query_idx"].astype(np.int64))
    got = {"pred_logits": outputs.logits, "pred_masks_sub": masks}
    if outputs.boxes is not None:
        got["pred_boxes"] = outputs.boxes
    for name, value in got.items():
        tolerance = TOLERANCE[preset]["mask" in name]
        difference = np.abs(value.numpy() - stored[name].reshape(value.shape)).max()
        assert difference <= tolerance, f"{name} differs by {difference}"
    if "top10" in stored:
        scores = outputs.logits.sigmoid().amax(1)
        np.testing.assert_array_equal(scores.topk(10).indices, stored["top10"])


@pytest.mark.slow
def test_all_layers_of_two_padded_clips_equal_the_released_network(released, shared):
    stored = np.load(shared / "reference/oracle/ifc_infer_padded.npz")
    first = recipe.clip((0, 3, 6, 9, 12), 180, 250, 4, 1)
    second = recipe.clip((0, 2, 4, 6, 8), 150, 200, 3, 2, (180, 250))
    images, padding = (torch.cat(pair) for pair in zip(first[:2], second[:2], strict=True))
    queries = torch.from_numpy(stored["mask_query_idx"].astype(np.int64))
    with torch.inference_mode():
        model = released("ifc_r50")
        layers = model.layers(model.frames(images, padding, 5), 5)
        masks = torch.stack([layers.mask_logits(2, b, queries) for b in (0, 1)])
        early = [
            torch.stack([layers.mask_logits(n, b, torch.arange(0, 100, 20)) for b in (0, 1)])
            for n in (0, 1)
        ]
    np.testing.assert_allclose(layers.logits[-1], stored["pred_logits"], atol=1e-4)
    np.testing.assert_allclose(layers.logits[:2], stored["aux_logits"], atol=1e-4)
    np.testing.assert_allclose(masks, stored["pred_masks_sub"], atol=5e-4)
    np.testing.assert_allclose(torch.stack(early), stored["aux_masks_sub"], atol=5e-4)


@pytest.mark.parametrize("preset", ["seqformer_r50", "ifc_r50", "ifc_r101"])
def test_every_released_key_has_its_place_but_for_those_without_effect(preset, shared):
    shapes = dict(recipe.keys(shared / f"reference/state_dict_{preset}.txt"))
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in shapes.items()}
        own = weights.make(idol.presets.by_name(preset)).state_dict()
    # Of box heads, which are stored twice, the second copy is the first.
    alias = "detr.detr.transformer.decoder.bbox_embed."
    unused = [
        k for k in state if ("encoder" in k and "output_proj_box" in k) or "empty_weight" in k
    ]
    copies = [key for key in state if key.startswith(alias)]
    renamed = weights.released({k: v for k, v in state.items() if k not in copies})
    assert {k: v.shape for k, v in renamed.items()} == {k: v.shape for k, v in own.items()}
    assert len(renamed) == len(state) - len(unused) - len(copies)
    assert len(unused) == (12 if "seqformer" in preset else 1)


def small(preset: str = "seqformer_tiny", clips: int = 1) -> tuple[ClipNetwork, Any, Any]:
    """A tiny network, and padded images and padding of clips of 3 frames."""
    torch.manual_seed(0)
    model = idol.clips.build(preset)
    images = torch.randn(3 * clips, 3, 64, 96)
    padding = torch.zeros(3 * clips, 64, 96, dtype=torch.bool)
    padding[:, 50:] = padding[:, :, 70:] = True
    return model, images * ~padding[:, None], padding


@pytest.mark.parametrize("preset", TINY)
def test_a_clip_says_the_same_alone_and_in_a_batch(preset):
    model, images, padding = small(preset, clips=2)
    with torch.inference_mode():
        both = model.layers(model.frames(images, padding, 3), 3).clip(1)
        alone = model(images[3:], padding[3:])
        masks = alone.masks([5, 0, 5])
        torch.testing.assert_close(both.masks([5, 0, 5]), masks, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(both.logits, alone.logits, atol=1e-5, rtol=1e-4)
    assert masks.shape[:2] == (3, 3)
    torch.testing.assert_close(masks[0], masks[2])
    side = (16, 24) if preset == "seqformer_tiny" else (8, 12)
    assert masks.shape[2:] == side
    assert alone.logits.shape == (40, 4 if preset == "seqformer_tiny" else 5)
    assert (alone.boxes is None) == (preset == "ifc_tiny")


@pytest.mark.parametrize("preset", TINY)
def test_frames_that_two_clips_share_are_computed_once(preset):
    model, images, padding = small(preset)
    with torch.inference_mode():
        first, rest = (
            model.frames(images[:2], padding[:2], 2),
            model.frames(images[2:], padding[2:], 1),
        )
        joined = model.layers(first.followed_by(rest)[1:], 2).clip(0)
        straight = model(images[1:], padding[1:])
    torch.testing.assert_close(joined.logits, straight.logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("preset", TINY)
def test_frames_in_another_order_have_their_masks_in_that_order(preset):
    # Neither network knows the position of a frame in time.
    model, images, padding = small(preset)
    with torch.inference_mode():
        one, other = model(images, padding), model(images[[2, 0, 1]], padding)
        rows = torch.arange(40)
        torch.testing.assert_close(
            one.masks(rows)[:, [2, 0, 1]], other.masks(rows), atol=1e-4, rtol=1e-4
        )
    torch.testing.assert_close(one.logits, other.logits, atol=1e-5, rtol=1e-4)


def test_ifc_takes_frames_of_any_size_and_masks_only_what_is_whole_padding():
    model = idol.clips.build("ifc_tiny")
    images = torch.randn(2, 3, 61, 90)
    assert model(images).masks([0]).shape == (1, 2, 8, 12)
    padding = torch.zeros(2, 61, 90, dtype=torch.bool)
    padding[:, 33:] = True  # 33 of 61 rows: 2 of 2 cells of stride 32 have a row of the picture
    assert not model.frames(images, padding, 2).padding.any()
    padding[:, 32:] = True
    assert model.frames(images, padding, 2).padding[:, 1].all()


@pytest.mark.parametrize(
    ("images", "padding", "message"),
    [
        (torch.zeros(3, 64, 64), None, r"images must be \(T, 3, H, W\)"),
        (torch.zeros(2, 3, 64, 64, dtype=torch.uint8), None, "floating-point"),
        (torch.zeros(0, 3, 64, 64), None, "a clip has frames"),
        (torch.zeros(2, 3, 60, 64), None, "multiples of 32, got"),
        (torch.zeros(2, 3, 64, 64), torch.zeros(64, 64, dtype=torch.bool), r"\(T, H, W\) bool"),
        (torch.zeros(2, 3, 64, 64), torch.zeros(2, 64, 64), r"\(T, H, W\) bool"),
        (torch.zeros(1, 3, 64, 64), torch.ones(1, 64, 64, dtype=torch.bool), "leave a picture"),
        (torch.zeros(1, 3, 64, 64), torch.eye(64)[None] > 0, "at the bottom"),
    ],
)
def test_wrong_inputs_are_refused_with_the_rule(images, padding, message):
    with pytest.raises(ValueError, match=message):
        idol.clips.build("seqformer_tiny")(images, padding)


def test_rows_that_are_no_queries_are_refused():
    model, images, padding = small()
    outputs = model(images, padding)
    assert outputs.masks([]).shape == (0, 3, 16, 24)
    assert "frames=3" in repr(outputs)
    with pytest.raises(ValueError, match=r"rows must lie in 0..39, got 3..40"):
        outputs.masks([3, 40])
    with pytest.raises(ValueError, match=r"take \.nonzero"):
        outputs.masks(torch.ones(40, dtype=torch.bool))
    with pytest.raises(ValueError, match="whole numbers"):
        outputs.masks(torch.tensor([0.0]))


@pytest.mark.parametrize(
    ("preset", "count", "trained"),
    # Specification: SeqFormer 48,401,089 with 394,752 that nothing uses; IFC 39,148,009.
    [
        ("seqformer_r50", 48_006_337, 48_178_689 - 394_752),
        ("ifc_r50", 39_148_009, 38_925_609),
        ("ifc_r101", 58_087_913, 57_865_513),
    ],
)
def test_networks_have_the_released_number_of_parameters(preset, count, trained):
    with torch.device("meta"):
        model = weights.make(idol.presets.by_name(preset))
    assert sum(p.numel() for p in model.parameters()) == count
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trained


def test_new_parts_start_as_released():
    model = idol.clips.build("seqformer_tiny")
    layer = model.transformer.decoder[0]
    assert float(layer.time_attention_weights.weight.detach().abs().max()) > 0
    assert float(layer.cross_attn.attention_weights.weight.detach().abs().max()) == 0
    bus = idol.clips.build("ifc_tiny").transformer.memory_bus
    assert float(bus.detach().std()) == pytest.approx(0.5, rel=0.2)  # sqrt(2 / 8)
