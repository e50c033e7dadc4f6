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
    Clip,
    Frame,
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
    return Clip(tuple(map(Frame, images, masks)), np.array([3, 1]))


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
    assert example.targets[0].labels.tolist() == example.targets[1].labels.tolist() == [3, 1]
    assert example.targets[0].present.tolist() == [True, True]
    assert example.targets[1].present.tolist() == [True, False]
    assert example.images[0].shape == (3, 60, 80)


def test_flip_mirrors_image_masks_and_boxes_of_both_frames():
    flipping = TransformConfig(train_short_sides=(90,), crop_probability=0.0, flip_probability=1.0)
    staying = TransformConfig(train_short_sides=(90,), crop_probability=0.0, flip_probability=0.0)
    pair = make_pair()
    a = augment(pair, staying, np.random.default_rng(0))
    b = augment(pair, flipping, np.random.default_rng(0))
    torch.testing.assert_close(a.images[0].flip(-1), b.images[0])
    torch.testing.assert_close(a.images[1].flip(-1), b.images[1])
    assert torch.equal(a.targets[0].masks.flip(-1), b.targets[0].masks)
    torch.testing.assert_close(1 - a.targets[0].boxes[:, 0], b.targets[0].boxes[:, 0])


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**16))
def test_augmented_boxes_always_fit_their_masks(seed):
    config = TransformConfig(
        train_short_sides=(48, 64), crop_probability=0.7, crop_range=(40, 80), color_jitter=0.3,
        scale_jitter=0.3,
    )  # fmt: skip
    example = augment(make_pair(seed=seed), config, np.random.default_rng(seed))
    for image, targets in (
        (example.images[0], example.targets[0]),
        (example.images[1], example.targets[1]),
    ):
        assert torch.isfinite(image).all()
        assert image.shape[1:] == targets.masks.shape[1:]
        again = make_targets(targets.masks.numpy(), targets.labels.numpy())
        torch.testing.assert_close(again.boxes, targets.boxes)
        assert torch.equal(targets.masks.flatten(1).any(1), targets.present)


def test_equal_seeds_give_equal_examples():
    config = TransformConfig(train_short_sides=(48, 64, 80), crop_range=(40, 80))
    a, b = (augment(make_pair(), config, np.random.default_rng(5)) for _ in range(2))
    assert torch.equal(a.images[0], b.images[0])
    assert torch.equal(a.images[1], b.images[1])


def test_released_crops_are_independent_and_shared_crops_are_not():
    pair = make_pair()
    same = Clip((pair.frames[0], pair.frames[0]), pair.labels)
    free = TransformConfig(
        train_short_sides=(40,), crop_probability=1.0, crop_range=(30, 60), flip_probability=0.0
    )
    a = augment(same, free, np.random.default_rng(1))
    assert a.images[0].shape != a.images[1].shape or not torch.equal(a.images[0], a.images[1])
    shared = TransformConfig(
        train_short_sides=(40,), crop_probability=1.0, crop_range=(30, 60), shared_crop=True
    )
    b = augment(same, shared, np.random.default_rng(1))
    assert torch.equal(b.images[0], b.images[1])


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
    batch = collate(examples, 32).pairs()
    assert batch.key_images.shape == batch.reference_images.shape == (3, 3, 64, 96)
    assert all(t.masks.shape == (2, 64, 96) for t in batch.key_targets)
    assert batch.key_targets[0].masks.sum() == examples[0].targets[0].masks.sum()


def test_masks_of_another_size_than_the_frame_are_refused():
    pair = make_pair()
    key, reference = pair.frames
    with pytest.raises(ValueError, match=r"masks of frame 1 must be \(2, 90, 120\)"):
        Clip((key, reference._replace(masks=key.masks[:, :50])), pair.labels)
    with pytest.raises(ValueError, match=r"boxes of frame 0 must be \(2, 4\)"):
        Clip((key._replace(boxes=np.zeros((1, 4), np.float32)), reference), pair.labels)
    with pytest.raises(ValueError, match="a clip must have a frame"):
        Clip((), pair.labels)


def test_longer_clips_share_flip_and_size_and_are_batched_frame_by_frame():
    base = make_pair()
    five = Clip((*base.frames, *base.frames, base.frames[0]), base.labels)
    config = TransformConfig(train_short_sides=(40, 50), crop_probability=0.0)
    examples = [augment(five, config, np.random.default_rng(seed)) for seed in range(3)]
    for example in examples:
        assert len(example.images) == len(example.targets) == 5
        assert torch.equal(example.images[0], example.images[4])
        assert torch.equal(example.images[1], example.images[3])
    batch = collate(examples, 32)
    assert batch.images.shape == (3, 5, 3, 64, 96)
    assert batch.padding.shape == (3, 5, 64, 96)
    for b, example in enumerate(examples):
        for k, (image, truth) in enumerate(zip(example.images, example.targets, strict=True)):
            _, height, width = image.shape
            assert torch.equal(batch.images[b, k, :, :height, :width], image)
            assert torch.equal(batch.targets[b][k].boxes, truth.boxes)
            assert torch.equal(batch.targets[b][k].masks[:, :height, :width], truth.masks)
    with pytest.raises(ValueError, match="these clips have 5"):
        batch.pairs()


BOXES = np.array([[10, 5, 70, 60], [np.nan] * 4], np.float32)
"""Of make_pair's key: larger than the mask of the first object, none for the second."""


def boxed() -> Clip:
    base = make_pair()
    return Clip((base.frames[0]._replace(boxes=BOXES), base.frames[1]), base.labels)


def test_annotated_boxes_follow_the_frame_and_are_not_tightened():
    for flip in (0.0, 1.0):
        config = TransformConfig(
            train_short_sides=(45,), crop_probability=0.0, flip_probability=flip
        )
        key, reference = augment(boxed(), config, np.random.default_rng(0)).targets
        x = 1 - 40 / 120 if flip else 40 / 120
        torch.testing.assert_close(key.boxes[0], torch.tensor([x, 32.5 / 90, 0.5, 55 / 90]))
        tight = make_targets(key.masks.numpy(), key.labels.numpy())
        torch.testing.assert_close(key.boxes[1], tight.boxes[1])  # NaN: the mask's own
        assert key.present.all()
        again = make_targets(reference.masks.numpy(), reference.labels.numpy())
        torch.testing.assert_close(reference.boxes, again.boxes)


def test_annotated_boxes_are_cut_to_the_crop_and_gone_with_the_last_of_them():
    frame = make_pair().frames[0]
    # A window of 30 x 30 in a frame of 90 x 120, at its own size.
    config = TransformConfig(
        train_short_sides=(30,), crop_probability=1.0, crop_range=(30, 30), flip_probability=0.0
    )
    seen = set()
    for seed in range(60):
        one = Clip((frame._replace(boxes=BOXES),), np.array([3, 1]))
        (truth,) = augment(one, config, np.random.default_rng(seed)).targets
        (plain,) = augment(Clip((frame,), one.labels), config, np.random.default_rng(seed)).targets
        assert torch.equal(truth.masks, plain.masks)
        if truth.present[0]:
            centre, side = truth.boxes[0, :2], truth.boxes[0, 2:]
            low, high = centre - side / 2, centre + side / 2
            assert (low >= -1e-6).all()
            assert (high <= 1 + 1e-6).all()
            inner = plain.boxes[0, 2:]
            assert (side >= inner - 1e-6).all()  # the annotated box holds the mask
            seen.add(bool((side > inner + 1e-6).any()))
        else:
            assert truth.boxes[0].tolist() == [0, 0, 0, 0]
            seen.add("gone")
    assert seen == {True, False, "gone"}


def test_a_mask_whose_annotated_box_is_empty_is_not_present():
    masks = np.zeros((1, 10, 20), np.bool_)
    masks[0, 2:6, 5:15] = True
    for box, present in (([5, 2, 5, 6], False), ([30, 2, 40, 6], False), ([5, 2, 9, 6], True)):
        truth = make_targets(masks, np.array([0]), np.array([box], np.float32))
        assert truth.present.tolist() == [present]
        assert bool(truth.boxes.any()) is present


def test_independent_frames_differ_in_flip_and_size_and_others_do_not():
    pair = make_pair()
    still = Clip((pair.frames[0], pair.frames[0]), pair.labels)
    sides = TransformConfig(train_short_sides=(40, 50, 60), crop_probability=0.0)
    free = TransformConfig(
        train_short_sides=(40, 50, 60),
        crop_range=(30, 60),
        crop_short_sides=(60, 70),
        independent=True,
    )
    together = [augment(still, sides, np.random.default_rng(s)) for s in range(10)]
    assert all(torch.equal(e.images[0], e.images[1]) for e in together)
    apart = [augment(still, free, np.random.default_rng(s)) for s in range(10)]
    assert any(e.images[0].shape != e.images[1].shape for e in apart)
    assert all(min(e.images[0].shape[1:]) in (40, 50, 60) for e in apart)
