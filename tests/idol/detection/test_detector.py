"""Detections of frames: exact as before, fast about the same, in batches and one by one."""

import dataclasses
import time

import numpy as np
import pytest
import torch

import idol
from idol.detection.detector import Detector, on_device
from idol.detection.gpu_masks import from_logits, reads
from idol.detection.postprocess import detections
from idol.images.synthetic import SyntheticConfig, make_video
from idol.images.transforms import collate_images, normalise
from idol.masks import iou, resize, rle
from idol.network import fast as fast_network
from idol.network.fast import FastNetwork
from idol.network.model import IDOL

SIZE = (90, 150)


@pytest.fixture(scope="module")
def model() -> IDOL:
    return idol.load("shipped")


def frames(count, seed=0, size=SIZE):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 6, 10, 3), np.uint8)
    large = coarse.repeat(-(-size[0] // 6), 1).repeat(-(-size[1] // 10), 2)
    return list(large[:, : size[0], : size[1]])


def run(detector, pictures, first=0):
    prepared = [detector.prepare(picture) for picture in pictures]
    return detector.detect(prepared, range(first, first + len(pictures)))


def same(a, b, tolerance=0.0):
    assert a.frame_index == b.frame_index
    for name in ("scores", "class_scores", "embeddings", "overlaps", "boxes"):
        x, y = getattr(a, name), getattr(b, name)
        # Boxes are in pixels; one pixel of a small mask is a hundredth of its overlap.
        scale = {"boxes": 200, "overlaps": 200}.get(name, 1)
        torch.testing.assert_close(x, y, atol=scale * tolerance, rtol=tolerance, msg=name)
    if tolerance == 0:
        assert a.masks == b.masks


def test_exact_detections_are_those_of_the_plain_calls(model):
    pictures = frames(3)
    got = run(Detector(model), pictures, first=5)
    images, padding = collate_images(
        [normalise(p, model.config.transforms) for p in pictures],
        model.config.transforms.size_divisor,
    )
    with torch.inference_mode():
        outputs = model(images, padding)
        for k, found in enumerate(got):
            size = normalise(pictures[k], model.config.transforms).shape[1:]
            right = detections(outputs, model, k, 5 + k, tuple(size), SIZE, model.config.detect)
            same(found, right)


def test_fast_in_single_precision_is_exact_up_to_folding(model, monkeypatch):
    monkeypatch.setattr(fast_network, "best_type", lambda device: torch.float32)
    pictures = frames(3)
    for a, b in zip(
        run(Detector(model, speed="fast"), pictures), run(Detector(model), pictures), strict=True
    ):
        same(a, b, tolerance=1e-4)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_fast_in_sixteen_bits_finds_the_same_objects(model, monkeypatch, kind):
    monkeypatch.setattr(fast_network, "best_type", lambda device: kind)
    pictures = frames(4)
    for a, b in zip(
        run(Detector(model, speed="fast"), pictures), run(Detector(model), pictures), strict=True
    ):
        assert abs(float(a.scores[0] - b.scores[0])) < 0.1
        assert a.scores.dtype == a.embeddings.dtype == torch.float32


def test_the_models_own_weights_stay_as_they_are(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Detector(model, speed="fast")
    assert not model.folded
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_the_speed_is_that_of_the_configuration_unless_given(model):
    fast = dataclasses.replace(model.config.detect, speed="fast")
    config = dataclasses.replace(model.config, detect=fast)
    assert Detector(model, config).speed == "fast"
    assert Detector(model, config, speed="exact").speed == "exact"


def test_frames_of_different_shapes_do_not_share_a_batch(model):
    keeping = dataclasses.replace(model.config.transforms, stretch=None)
    detector = Detector(model, dataclasses.replace(model.config, transforms=keeping))
    mixed = [detector.prepare(p) for p in (*frames(1), *frames(1, size=(60, 150)))]
    with pytest.raises(ValueError, match="must be of one shape"):
        detector.detect(mixed, [0, 1])


def test_a_started_batch_can_wait_for_the_next_one(model):
    detector = Detector(model)
    first, second = frames(2), frames(2, seed=1)
    begun = [
        detector.start([detector.prepare(p) for p in part], [0, 1]) for part in (first, second)
    ]
    for result, part in zip(begun, (first, second), strict=True):
        for a, b in zip(result(), run(detector, part), strict=True):
            same(a, b)


def test_a_small_batch_of_a_compiled_network_is_filled_up(model, monkeypatch):
    asked = []

    def compiled(function, **_):
        def call(images, geometry):
            asked.append(len(images))
            return function(images, geometry)

        return call

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(fast_network, "cannot_compile", lambda device: None)
    monkeypatch.setattr(fast_network, "best_type", lambda device: torch.float32)
    whole = Detector(model, speed="fast", batch=4, compiled=True)
    pictures = frames(4)
    for a, b in zip(run(whole, pictures[:3]), run(whole, pictures)[:3], strict=True):
        same(a, b)
    assert asked == [4, 4]


def test_frames_beyond_the_most_shapes_run_without_a_graph(model, monkeypatch):
    monkeypatch.setattr(fast_network, "MOST_SHAPES", 1)
    network = FastNetwork(model)
    assert network._know((64, 96, True))
    assert not network._know((96, 96, True))
    assert network._know((64, 96, True))


def test_why_a_network_is_not_compiled_is_said(model, monkeypatch, caplog):
    monkeypatch.setattr(fast_network.shutil, "which", lambda name: None)
    fast_network.cannot_compile.cache_clear()
    network = FastNetwork(model, compiled=True)
    fast_network.cannot_compile.cache_clear()
    assert not network.compiled
    assert "needs a C compiler" in caplog.text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(fast_network.cannot_compile("cpu") is not None, reason="needs a C compiler")
def test_a_compiled_network_finds_the_same(model, monkeypatch):
    monkeypatch.setattr(fast_network, "best_type", lambda device: torch.float32)
    pictures = frames(2)
    detector = Detector(model, speed="fast", batch=2, compiled=True)
    for a, b in zip(run(detector, pictures), run(Detector(model), pictures), strict=True):
        same(a, b, tolerance=1e-3)


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_pixels_prepared_on_the_device_are_those_of_the_host(model, order):
    pictures = frames(2, size=(200, 310))
    config = dataclasses.replace(model.config.transforms, pixels=order)
    prepared = Detector(model).prepare(pictures[0])
    stack = torch.from_numpy(np.stack(pictures))
    got = on_device(stack, prepared.input_size, config.size_divisor, order)
    right = collate_images([normalise(p, config) for p in pictures], config.size_divisor)[0]
    assert got.shape == right.shape
    # One step of 255 in units of the standard deviation, which is 1 of BGR.
    assert (got - right).abs().max() <= 1.01 / (57 if order == "rgb" else 1)


def test_overlaps_and_strings_of_several_frames_are_those_of_each():
    torch.manual_seed(0)
    logits = torch.randn(5, 16, 24)
    sizes = [((60, 90), (120, 180)), ((60, 90), (120, 180)), ((64, 96), (33, 47))]
    overlaps, strings = from_logits(logits, [2, 0, 3], sizes, "released")
    assert [len(s) for s in strings] == [2, 0, 3]
    assert torch.equal(overlaps[2], iou.mask_iou(logits[2:] > 0))
    assert strings[0] == resize.resize_and_encode(logits[:2], *sizes[0])
    assert from_logits(logits[:0], [0, 0], sizes[:2], "smooth")[1] == [[], []]


def test_overlaps_from_counted_pixels_are_those_from_masks():
    torch.manual_seed(1)
    chosen = torch.randn(6, 12, 20) > 0.3
    chosen[2] = False
    flat = chosen.flatten(1).long()
    assert torch.equal(iou.iou_of_shared((flat @ flat.T).int()), iou.mask_iou(chosen))


@pytest.mark.parametrize("method", ["released", "smooth"])
@pytest.mark.parametrize(
    ("input_size", "size"), [((60, 90), (121, 185)), ((64, 96), (64, 96)), ((61, 37), (20, 11))]
)
def test_where_a_mask_reads_its_logits_gives_the_same_mask(method, input_size, size):
    torch.manual_seed(2)
    logits = torch.nn.functional.avg_pool2d(torch.randn(3, 18, 26), 3, 1)
    (rows, down), (columns, right) = (
        reads(length, i, o, method)
        for length, i, o in zip(logits.shape[1:], input_size, size, strict=True)
    )
    rows, columns = rows.long(), columns.long()
    below = (rows + 1).clamp(max=logits.shape[1] - 1)
    after = (columns + 1).clamp(max=logits.shape[2] - 1)
    top = logits[:, rows][:, :, columns] * (1 - right) + logits[:, rows][:, :, after] * right
    low = logits[:, below][:, :, columns] * (1 - right) + logits[:, below][:, :, after] * right
    got = top * (1 - down[:, None]) + low * down[:, None]
    wanted = resize.resize(logits, input_size, size, method)
    decided = got.abs() > 1e-5
    assert torch.equal((got > 0)[decided], wanted[decided])


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("batch", "compiled"), [(1, False), (4, False), (4, True)])
def test_fast_on_a_device_finds_what_the_processor_finds(model, batch, compiled):
    if compiled and (reason := fast_network.cannot_compile("cuda")):
        pytest.skip(reason)
    pictures = frames(5)
    detector = Detector(
        idol.load("shipped", device="cuda"), speed="fast", batch=4, compiled=compiled
    )
    right = run(Detector(model), pictures)
    begun = [
        detector.start([detector.prepare(p) for p in pictures[:4]], range(4)),
        detector.start([detector.prepare(p) for p in pictures[4:]], [4]),
    ]
    got = [found for result in begun for found in result()]
    for a, b in zip(got, right, strict=True):
        assert a.frame_index == b.frame_index
        assert abs(float(a.scores[0] - b.scores[0])) < 0.1
        x, y = rle.decode_masks(a.masks[:1], SIZE), rle.decode_masks(b.masks[:1], SIZE)
        assert (x & y).sum() > 0.8 * (x | y).sum()


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["released", "smooth"])
def test_masks_made_on_a_device_are_those_of_the_processor(method):
    torch.manual_seed(3)
    logits = torch.nn.functional.avg_pool2d(torch.randn(6, 26, 34), 3, 1)
    sizes = [((90, 120), (180, 240))] * 2 + [((96, 128), (50, 60))]
    overlaps, strings = from_logits(logits.cuda(), [2, 1, 3], sizes, method)
    right_overlaps, right = from_logits(logits, [2, 1, 3], sizes, method)
    for a, b in zip(overlaps, right_overlaps, strict=True):
        assert torch.equal(a, b)
    for a, b, (_, size) in zip(strings, right, sizes, strict=True):
        differ = rle.decode_masks(a, size) != rle.decode_masks(b, size)
        assert differ.mean() < 1e-4


def test_one_thread_is_asked_for_and_one_computes(model):
    # A product by numpy's BLAS keeps its other threads running for a tenth of a second, on the
    # cores that torch wants. On a busy machine they get less, so that this cannot fail by chance.
    detector = Detector(model)
    pictures = list(make_video(SyntheticConfig(length=(4, 4)), 5).frames)[:1]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run(detector, pictures)
        time.sleep(0.5)  # for what ran before
        own, whole = time.thread_time(), time.process_time()
        for _ in range(10):
            assert run(detector, pictures)[0].masks
        own, whole = time.thread_time() - own, time.process_time() - whole
    finally:
        torch.set_num_threads(before)
    assert whole < 1.5 * own
