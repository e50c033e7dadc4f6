"""What a batch's sizes alone decide: padding, positions and reference points of every token."""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from idol.network.position_encoding import sine_encoding

CACHE_BYTES = 256 * 2**20
"""How much of a process's memory remembered geometries may hold; one image of 720p takes 20 MB."""

Shapes = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Geometry:
    """Padding, positions and reference points of the S tokens of a batch of B images.

    The first dimension is 1 instead of B where all images have one size: it broadcasts.

    sizes:        (B, 2)            int64, un-padded (height, width)
    padding:      (B or 1, S)       bool, True where padded; None where no token is known to be
    positions:    (B or 1, S, C)    float32 sine encoding (specification 1.3)
    valid_ratios: (B or 1, L, 2)    float32, un-padded share of each level, (x, y)
    references:   (B or 1, S, L, 2) float32, every token's centre in units of each padded level
    shapes:       ((h, w), ...) of the L levels
    """

    sizes: Tensor
    padding: Tensor | None
    positions: Tensor
    valid_ratios: Tensor
    references: Tensor
    shapes: Shapes


def level_shapes(height: int, width: int) -> Shapes:
    """(h, w) of the levels of an input whose sides are multiples of 32: strides 8, 16, 32, 64."""
    strides = [(height // s, width // s) for s in (8, 16, 32)]
    # The last level is a 3x3 convolution of stride 2 and padding 1, which rounds up.
    return (*strides, ((strides[-1][0] + 1) // 2, (strides[-1][1] + 1) // 2))


def of_padding(padding: Tensor, channels: int, sizes: Tensor | None = None) -> Geometry:
    """Geometry as the released code computes it, from the padding of every pixel.

    padding:  (B, H, W) bool, True where padded; H and W multiples of 32
    channels: C of the position encoding
    sizes:    (B, 2) un-padded (height, width); read off the padding's first column and row if None
    """
    shapes = level_shapes(padding.shape[1], padding.shape[2])
    if sizes is None:
        sizes = torch.stack([(~padding[:, :, 0]).sum(1), (~padding[:, 0, :]).sum(1)], -1)
    full = padding[:, None].float()
    levels = [F.interpolate(full, size=shape)[:, 0] for shape in shapes[:-1]]
    # The released code makes the last level's mask from the stride-8 one, not the image's.
    levels.append(F.interpolate(levels[0][:, None], size=shapes[-1])[:, 0])
    paddings = [level.bool() for level in levels]
    ratios = valid_ratios(paddings)
    encodings = [sine_encoding(p, channels).flatten(2).transpose(1, 2) for p in paddings]
    return Geometry(
        sizes=sizes,
        padding=torch.cat([p.flatten(1) for p in paddings], 1),
        positions=torch.cat(encodings, 1),
        valid_ratios=ratios,
        references=encoder_references(shapes, ratios),
        shapes=shapes,
    )


def of_sizes(
    padded: tuple[int, int],
    sizes: Sequence[tuple[int, int]],
    channels: int,
    device: torch.device | str = "cpu",
) -> Geometry:
    """The same, bit by bit, for images padded at the bottom and right; computed once per size.

    padded:   (H, W) of the batch, multiples of 32
    sizes:    B pairs (height, width) of the un-padded images
    channels: C of the position encoding
    Errors: ValueError for a size outside the padded input.
    """
    plain = [(int(height), int(width)) for height, width in sizes]
    for index, (height, width) in enumerate(plain):
        if not (0 < height <= padded[0] and 0 < width <= padded[1]):
            raise ValueError(
                f"sizes must be (height, width) within the padded input {tuple(padded)}, but image "
                f"{index} of {len(plain)} has {(height, width)}. Are they those of the frames "
                "before resizing?"
            )
    if not plain:
        raise ValueError("sizes must have one (height, width) per image, got none")
    device = torch.device(device)
    if len(set(plain)) == 1:
        one = _of_size(padded, plain[0], channels, device)
        return dataclasses.replace(one, sizes=one.sizes.expand(len(plain), 2))
    each = [_of_size(padded, size, channels, device) for size in plain]
    return Geometry(
        sizes=torch.cat([g.sizes for g in each]),
        padding=_cat_paddings(each),
        positions=torch.cat([g.positions for g in each]),
        valid_ratios=torch.cat([g.valid_ratios for g in each]),
        references=torch.cat([g.references for g in each]),
        shapes=each[0].shapes,
    )


def _cat_paddings(each: Sequence[Geometry]) -> Tensor:
    """(B, S): of images of several sizes, one at least is padded."""
    nowhere = torch.zeros(
        each[0].positions.shape[:2], dtype=torch.bool, device=each[0].sizes.device
    )
    return torch.cat([nowhere if g.padding is None else g.padding for g in each])


def _of_size(
    padded: tuple[int, int], size: tuple[int, int], channels: int, device: torch.device
) -> Geometry:
    """Geometry of one image, remembered. A graph being compiled holds it as part of itself."""
    if torch.compiler.is_compiling():
        return _compute(padded, size, channels, device)
    key = (tuple(padded), size, channels, device.type, device.index)
    found = _recent.get(key)
    if found is None:
        # Usable by training too, whatever mode the first to ask is in.
        with torch.inference_mode(False), torch.no_grad():
            found = _compute(padded, size, channels, device)
        if device.type == "cuda":
            # Another stream may ask next; without this it could read what is not there yet.
            torch.cuda.current_stream(device).synchronize()
        _recent.put(key, found)
    return found


def _compute(
    padded: tuple[int, int], size: tuple[int, int], channels: int, device: torch.device
) -> Geometry:
    padding = torch.ones(1, *padded, dtype=torch.bool, device=device)
    padding[:, : size[0], : size[1]] = False
    geometry = of_padding(padding, channels)
    # Nothing to set to zero in any layer.
    return dataclasses.replace(geometry, padding=None) if tuple(padded) == size else geometry


class _Recent:
    """The geometries asked for last, as many as fit into CACHE_BYTES; safe between threads."""

    def __init__(self) -> None:
        self._entries: OrderedDict[object, tuple[Geometry, int]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: object) -> Geometry | None:
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
            return entry[0]

    def put(self, key: object, geometry: Geometry) -> None:
        tensors = [getattr(geometry, f.name) for f in dataclasses.fields(geometry)]
        size = sum(t.untyped_storage().nbytes() for t in tensors if isinstance(t, Tensor))
        with self._lock:
            if key in self._entries:
                self._bytes -= self._entries.pop(key)[1]
            self._entries[key] = (geometry, size)
            self._bytes += size
            while self._bytes > CACHE_BYTES:
                self._bytes -= self._entries.popitem(last=False)[1][1]

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()
            self._bytes = 0

    def held(self) -> tuple[int, int]:
        """Entries and bytes."""
        with self._lock:
            return len(self._entries), self._bytes


_recent = _Recent()


def forget() -> None:
    """Give up every remembered geometry, for example before its device is reset."""
    _recent.clear()


def remembered() -> tuple[int, int]:
    """How many geometries are remembered, and their bytes."""
    return _recent.held()


def valid_ratios(paddings: Sequence[Tensor]) -> Tensor:
    """Un-padded share of every level, counted on the first column and row.

    paddings: L tensors (B, h, w) bool
    returns:  (B, L, 2) (x, y)
    """
    ratios = []
    for padding in paddings:
        height, width = padding.shape[1:]
        x = (~padding[:, 0, :]).sum(1).float() / width
        y = (~padding[:, :, 0]).sum(1).float() / height
        ratios.append(torch.stack([x, y], -1))
    return torch.stack(ratios, 1)


def encoder_references(shapes: Sequence[tuple[int, int]], ratios: Tensor) -> Tensor:
    """The centre of every token, in units of every level's padded size.

    shapes:  [(h, w), ...]
    ratios:  (B, L, 2) valid ratios
    returns: (B, S, L, 2)
    """
    centres = []
    for level, (height, width) in enumerate(shapes):
        y = torch.arange(height, device=ratios.device) + 0.5
        x = torch.arange(width, device=ratios.device) + 0.5
        own = ratios[:, level, None]  # (B, 1, 2)
        ys = (y[None] / (own[..., 1] * height))[:, :, None].expand(-1, -1, width)
        xs = (x[None] / (own[..., 0] * width))[:, None, :].expand(-1, height, -1)
        centres.append(torch.stack([xs, ys], -1).flatten(1, 2))
    return torch.cat(centres, 1)[:, :, None] * ratios[:, None]
