"""Masks of a batch of frames from their logits, made on the device of the logits."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from idol.masks import iou, resize
from ops import mask_bits

Size = tuple[int, int]


def from_logits(
    logits: Tensor, counts: Sequence[int], sizes: Sequence[tuple[Size, Size]], method: resize.Method
) -> tuple[list[Tensor], list[list[bytes]]]:
    """Mask IoU and run-length masks of every frame.

    A GPU counts, interpolates and thresholds the pixels, and the host receives bits. The mask IoU
    is the same as on a CPU; masks differ only in pixels whose interpolated logit rounds to zero.

    logits:  (n, h/4, w/4) float32 over the padded input, frame after frame
    counts:  number of masks of each frame, n in total
    sizes:   for each frame (height, width) of its input without padding, and of the frame
    method:  see DetectConfig.mask_resize
    returns: for each frame (N, N) float32 mask IoU on the CPU, and N compressed RLE counts
    """
    if not logits.is_cuda or mask_bits.missing(logits.device.index) is not None or not len(logits):
        parts = torch.split(logits, list(counts))
        pairs = zip(parts, sizes, strict=True)
        encoded = [resize.resize_and_encode(part, *size, method) for part, size in pairs]
        return [iou.mask_iou(part > 0).cpu() for part in parts], encoded
    return _by_bits(logits.contiguous(), counts, sizes, method)


def _by_bits(
    logits: Tensor, counts: Sequence[int], sizes: Sequence[tuple[Size, Size]], method: resize.Method
) -> tuple[list[Tensor], list[list[bytes]]]:
    """As from_logits, with the kernels of ops.mask_bits."""
    from idol.masks import bits as bit_rle

    shared = to_host(mask_bits.shared_pixels(logits, counts))
    bits, end = [], 0
    # Neighbouring frames of equal sizes are resized together.
    for (input_size, size), run in itertools.groupby(
        zip(counts, sizes, strict=True), operator.itemgetter(1)
    ):
        rows, columns = (
            reads(length, i, o, method, logits.device)
            for length, i, o in zip(logits.shape[1:], input_size, size, strict=True)
        )
        begin, end = end, end + sum(count for count, _ in run)
        bits.append((to_host(mask_bits.resize(logits[begin:end], rows, columns)), size[0]))
    if logits.is_cuda:
        torch.cuda.current_stream(logits.device).synchronize()
    strings: list[bytes] = []
    for part, height in bits:
        strings += bit_rle.encode(part.numpy().view(np.uint32), height)
    overlaps, encoded, start = [], [], 0
    for count in counts:
        overlaps.append(iou.iou_of_shared(shared[start : start + count, :count]))
        encoded.append(strings[start : start + count])
        start += count
    return overlaps, encoded


def to_host(tensor: Tensor) -> Tensor:
    """A copy of tensor (...) on the host, complete once the current stream has come so far."""
    if not tensor.is_cuda:
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


@functools.lru_cache(maxsize=64)
def reads(
    length: int,
    input_length: int,
    output_length: int,
    method: resize.Method,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Between which two neighbouring logits each pixel of the frame lies, along one axis.

    With method "released" a pixel has the place of the nearest pixel of the input. Lengths are of
    the logits, of the input without padding, and of the frame.
    returns: (output_length,) int32 the lower neighbour, float32 the share of the next one
    """
    if method == "released":
        pixels = resize.nearest(input_length, output_length).astype(np.float32)
    else:
        pixels = (np.arange(output_length) + 0.5) * (input_length / output_length) - 0.5
    places = np.clip((pixels + 0.5) / resize.STRIDE - 0.5, 0, length - 1).astype(np.float32)
    low = places.astype(np.int32)
    share = places - low.astype(np.float32)
    return torch.from_numpy(low).to(device), torch.from_numpy(share).to(device)
