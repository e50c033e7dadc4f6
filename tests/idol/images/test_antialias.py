"""Whole numbers resize as torch's uint8 filter does."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from idol.images.antialias import along, taps


@pytest.mark.parametrize("seed", range(40))
def test_resizing_is_that_of_torch_bit_for_bit(seed):
    rng = np.random.default_rng(seed)
    height, width, new_height, new_width = rng.integers(1, 160, 4).tolist()
    pixels = rng.integers(0, 256, (2, 3, height, width))
    if seed % 2:
        pixels = (pixels > 127) * 255  # overshoots and ties show at black and white
    given = torch.from_numpy(pixels.astype(np.uint8))
    right = F.interpolate(given, (new_height, new_width), mode="bilinear", antialias=True)
    found = given.int()
    for axis, old, new in ((3, width, new_width), (2, height, new_height)):
        indices, weights, point = taps(old, new)
        found = along(found, axis, *(torch.from_numpy(a).int() for a in (indices, weights)), point)
    assert torch.equal(found, right.int())
