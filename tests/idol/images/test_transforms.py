"""Augmentation, resizing and batching of key/reference pairs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from idol.config import TransformConfig
from idol.images.transforms import (
    MEAN,
    STD,
    Pair,
    augment,
    collate,
    collate_images,
    inference_size,
    make_targets,
    normalise,
)

PLAIN = TransformConfig(train_short_sides=(60,), crop_probability=0.0, flip_probability=0.0)


def make_pair(height=90, width=120, seed=0):
    rng = np.random.default_rng(seed)
    masks = np.zeros((2, 2, height, width), np.bool_)
    masks[:, 0, 10:40, 20:60] = True
    masks[0, 1, 50:80, 70:110] = True  # not visible in the reference
    images = rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    return Pair(images[0], images[1], np.array([3, 1]), masks[0], masks[1])


@pytest.mark.parametrize(
    ("size", "expected"),
    [((360, 640), (480, 853)), ((720, 1280), (480, 853)), ((100, 1000), (133, 1333))],
)
def test_inference_size_is_480_short_and_at_most_1333_long(size, expected):
    assert inference_size(size, TransformConfig()) == expected


def test_normalised_pixels_have_the_released_mean_and_deviation():
    image = np.full((32, 32, 3), 200, np.uint8)
    out = normalise(image, TransformConfig(stretch=(32, 32)))
    torch.testing.assert_close(out[:, 0, 0], torch.from_numpy((200 - MEAN) / STD))


def test_boxes_are_tight_with_exclusive_right_and_bottom():
    masks = np.zeros((2, 10, 20), np.bool_)
    masks[0, 2:6, 5:15] = True  # rows 2..5, columns 5..14
    targets = make_targets(masks, np.array([0, 1]))
    torch.testing.assert_close(targets.boxes[0], torch.tensor([10 / 20, 4 / 10, 10 / 20, 4 / 10]))
    assert targets.present.tolist() == [True, False]
    assert targets.boxes[1].tolist() == [0, 0, 0, 0]


def test_rows_of_key_and_reference_are_the_same_instances():
    example = augment(make_pair(), PLAIN, np.random.default_rng(0))
    assert (
        example.key_targets.labels.tolist() == example.reference_targets.labels.tolist() == [3, 1]
    )
    assert example.key_targets.present.tolist() == [True, True]
    assert example.reference_targets.present.tolist() == [True, False]
    assert example.key.shape == (3, 60, 80)


def test_flip_mirrors_image_masks_and_boxes_of_both_frames():
    flipping = TransformConfig(train_short_sides=(90,), crop_probability=0.0, flip_probability=1.0)
    staying = TransformConfig(train_short_sides=(90,), crop_probability=0.0, flip_probability=0.0)
    pair = make_pair()
    a = augment(pair, staying, np.random.default_rng(0))
    b = augment(pair, flipping, np.random.default_rng(0))
    torch.testing.assert_close(a.key.flip(-1), b.key)
    torch.testing.assert_close(a.reference.flip(-1), b.reference)
    assert torch.equal(a.key_targets.masks.flip(-1), b.key_targets.masks)
    torch.testing.assert_close(1 - a.key_targets.boxes[:, 0], b.key_targets.boxes[:, 0])


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**16))
def test_augmented_boxes_always_fit_their_masks(seed):
    config = TransformConfig(
        train_short_sides=(48, 64), crop_probability=0.7, crop_range=(40, 80), color_jitter=0.3,
        scale_jitter=0.3,
    )  # fmt: skip
    example = augment(make_pair(seed=seed), config, np.random.default_rng(seed))
    for image, targets in (
        (example.key, example.key_targets),
        (example.reference, example.reference_targets),
    ):
        assert torch.isfinite(image).all()
        assert image.shape[1:] == targets.masks.shape[1:]
        again = make_targets(targets.masks.numpy(), targets.labels.numpy())
        torch.testing.assert_close(again.boxes, targets.boxes)
        assert torch.equal(targets.masks.flatten(1).any(1), targets.present)


def test_equal_seeds_give_equal_examples():
    config = TransformConfig(train_short_sides=(48, 64, 80), crop_range=(40, 80))
    a, b = (augment(make_pair(), config, np.random.default_rng(5)) for _ in range(2))
    assert torch.equal(a.key, b.key)
    assert torch.equal(a.reference, b.reference)


def test_released_crops_are_independent_and_shared_crops_are_not():
    pair = make_pair()
    same = Pair(pair.key_image, pair.key_image, pair.labels, pair.key_masks, pair.key_masks)
    free = TransformConfig(
        train_short_sides=(40,), crop_probability=1.0, crop_range=(30, 60), flip_probability=0.0
    )
    a = augment(same, free, np.random.default_rng(1))
    assert a.key.shape != a.reference.shape or not torch.equal(a.key, a.reference)
    shared = TransformConfig(
        train_short_sides=(40,), crop_probability=1.0, crop_range=(30, 60), shared_crop=True
    )
    b = augment(same, shared, np.random.default_rng(1))
    assert torch.equal(b.key, b.reference)


def test_padding_marks_exactly_what_no_image_covers():
    images = [torch.ones(3, 40, 50), torch.ones(3, 33, 70)]
    batch, padding = collate_images(images, 32)
    assert batch.shape == (2, 3, 64, 96)
    for i, image in enumerate(images):
        assert (~padding[i]).sum() == image.shape[1] * image.shape[2]
        assert not padding[i, : image.shape[1], : image.shape[2]].any()
        assert batch[i][:, padding[i]].abs().sum() == 0


def test_a_batch_pads_masks_to_the_images():
    examples = [augment(make_pair(seed=s), PLAIN, np.random.default_rng(s)) for s in range(3)]
    batch = collate(examples, 32)
    assert batch.key_images.shape == batch.reference_images.shape == (3, 3, 64, 96)
    assert all(t.masks.shape == (2, 64, 96) for t in batch.key_targets)
    assert batch.key_targets[0].masks.sum() == examples[0].key_targets.masks.sum()


def test_masks_of_another_size_than_the_frame_are_refused():
    pair = make_pair()
    with pytest.raises(ValueError, match=r"key_masks must be \(2, 90, 120\)"):
        Pair(pair.key_image, pair.reference_image, pair.labels, pair.key_masks[:, :50],
             pair.reference_masks)  # fmt: skip


def test_independent_frames_differ_in_flip_and_size_and_others_do_not():
    pair = make_pair()
    still = Pair(pair.key_image, pair.key_image, pair.labels, pair.key_masks, pair.key_masks)
    sides = TransformConfig(train_short_sides=(40, 50, 60), crop_probability=0.0)
    free = TransformConfig(
        train_short_sides=(40, 50, 60),
        crop_range=(30, 60),
        crop_short_sides=(60, 70),
        independent=True,
    )
    together = [augment(still, sides, np.random.default_rng(s)) for s in range(10)]
    assert all(torch.equal(e.key, e.reference) for e in together)
    apart = [augment(still, free, np.random.default_rng(s)) for s in range(10)]
    assert any(e.key.shape != e.reference.shape for e in apart)
    assert all(min(e.key.shape[1:]) in (40, 50, 60) for e in apart)
