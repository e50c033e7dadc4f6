"""Truths of many frames in rows of one length."""

import numpy as np
import torch

from idol.learning.targets import pad, read_flags
from idol.structures import Targets


def targets(count, present, first=0):
    masks = torch.zeros(count, 8, 12, dtype=torch.bool)
    masks[:, 2, 6] = True  # one pixel that the samples at 2, 6, 10 ... of stride 4 see
    return Targets(
        labels=torch.arange(count) + 5,
        boxes=torch.full((count, 4), 0.5),
        masks=masks,
        present=torch.tensor(present, dtype=torch.bool),
        identities=torch.arange(count) + first,
    )


def test_flags_come_back_frame_by_frame():
    flags = read_flags([targets(2, [1, 0]), targets(0, []), targets(1, [1], first=7)])
    assert [p.tolist() for p in flags.present] == [[True, False], [], [True]]
    assert [i.tolist() for i in flags.identities] == [[0, 1], [], [7]]
    assert read_flags([]).present == []


def test_rows_are_padded_and_what_does_not_count_carries_label_zero():
    frames = [targets(2, [1, 0]), targets(0, [])]
    padded = pad(frames, [np.array([True, False]), np.array([], bool)], None)
    assert padded.labels.tolist() == [[5, 0], [0, 0]]
    assert padded.valid.tolist() == [[True, False], [False, False]]
    assert padded.masks.shape == (0, 0, 0)


def test_masks_are_the_pixels_at_two_modulo_four_of_the_padded_size():
    padding = torch.zeros(2, 16, 32, dtype=torch.bool)
    frames = [targets(1, [1]), targets(2, [1, 1])]
    padded = pad(frames, [np.array([True]), np.array([True, True])], padding)
    assert padded.masks.shape == (4, 4, 8)
    seen = np.argwhere(padded.masks.numpy())
    # Rows 0 (image 0), 2 and 3 (image 1); pixel (2, 6) is sample (0, 1).
    assert seen.tolist() == [[0, 0, 1], [2, 0, 1], [3, 0, 1]]


def test_targets_without_identities_have_none_that_is_known():
    plain = targets(2, [1, 1])
    again = Targets(plain.labels, plain.boxes, plain.masks, plain.present)
    assert again.identities.tolist() == [-1, -1]
    assert again.to("cpu").identities.dtype == torch.int64
