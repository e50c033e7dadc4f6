"""A faster form of the network for inference: 16 bits, folded, compiled, CUDA graphs.

benchmarks/speed.py measures the differences of its outputs; docs/internals/performance.md has the
numbers.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib.util
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from idol.network.geometry import Geometry
from idol.network.model import IDOL
from idol.structures import Outputs

_log = logging.getLogger(__name__)

MOST_SHAPES = 8
"""Padded shapes that are compiled or captured; other shapes run without either."""

_WARM_UP = 3  # passes before a capture, in which algorithms are chosen and kernels compiled
_TENSORS: Final = ("sizes", "padding", "positions", "valid_ratios", "references")

Shape = tuple[int, int, bool]  # height, width, whether no pixel is padding


def best_type(device: torch.device) -> torch.dtype:
    """The type in which a device multiplies fastest."""
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        return torch.bfloat16 if capability >= (8, 0) else torch.float16
    if device.type == "cpu" and torch.cpu._is_amx_tile_supported():
        return torch.bfloat16
    return torch.float32


@functools.cache
def cannot_compile(device: str) -> str | None:
    """Why torch.compile cannot be used here, in one line; None when it can."""
    if not any(map(shutil.which, ("cc", "gcc", "g++"))):
        return "torch.compile needs a C compiler (gcc), and there is none"
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        return "torch.compile needs triton, and it is not installed"
    return None


@dataclass(slots=True)
class _Captured:
    """A CUDA graph of one shape, with the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    images: Tensor
    geometry: Geometry
    source: Tensor  # positions of the geometry copied last, which tell it from others
    outputs: Sequence[Tensor]


@dataclass(frozen=True, slots=True)
class Found:
    """Outputs of the last decoder layer for B images.

    class_scores: (B, Q, K)    float32
    scores:       (B, Q)       float32, the best class score; NaN if logits or a box are not finite
    labels:       (B, Q)       int64, its class
    boxes:        (B, Q, 4)    float32 cxcywh in [0, 1]
    embeddings:   (B, Q, C)    float32
    references (1, B, Q, 2), features (B, 8, H/8, W/8), states (1, B, Q, C), sizes (B, 2): as in
    Outputs
    """

    class_scores: Tensor
    scores: Tensor
    labels: Tensor
    boxes: Tensor
    embeddings: Tensor
    references: Tensor
    features: Tensor
    states: Tensor
    sizes: Tensor

    def outputs(self, model: IDOL) -> Outputs:
        """The Outputs that IDOL.mask_logits needs."""
        return Outputs(
            logits=self.class_scores[None],
            boxes=self.boxes[None],
            references=self.references,
            refined=self.boxes,
            embeddings=self.embeddings,
            mask_features=self.features,
            states=self.states,
            sizes=self.sizes,
            controller=model.controller,
        )


class FastNetwork:
    """A copy of a network with a faster forward pass, for one thread.

    On a GPU it computes in 16 bits, with one CUDA graph for each shape. On a CPU it is folded, and
    computes in bfloat16 where the CPU has AMX. The outputs differ a little
    (docs/internals/performance.md).

    batch:    images of a pass; smaller batches are filled up
    compiled: also fuse operations by torch.compile: takes half a minute for each shape, or seconds
              where torch's cache on disk has it (TORCHINDUCTOR_CACHE_DIR), then runs 1.5 times as
              fast. Where it cannot be used, the reason is logged
    """

    def __init__(self, model: IDOL, *, batch: int = 1, compiled: bool = False) -> None:
        self.device = next(model.parameters()).device
        self.batch = batch if compiled or self.device.type == "cuda" else 1
        self.dtype = best_type(self.device)
        self.model = copy.deepcopy(model).eval()
        if not self.model.folded:
            self.model.fold()
        self.model.to(self.dtype)
        self._forward: Any = self._pass
        reason = cannot_compile(self.device.type) if compiled else None
        if reason is not None:
            _log.warning("the network is not compiled: %s", reason)
        self.compiled = compiled and reason is None
        if self.compiled:
            self._forward = torch.compile(self._pass, dynamic=False)
        self._graphs: dict[tuple[int, int, int, bool], _Captured] = {}
        self._shapes: set[Shape] = set()
        self._pool: Any = None

    @torch.inference_mode()
    def __call__(self, images: Tensor, size: tuple[int, int]) -> Found:
        """One pass over images of one size; no later pass overwrites what it returns.

        images: (B, 3, H, W) normalised, zero where padded, of any precision
        size:   (height, width) of the un-padded images
        """
        images = images.to(self.dtype, memory_format=torch.channels_last)
        count, _, height, width = images.shape
        padded = (height, width)
        known = self._know((height, width, size == padded))
        if known and count < self.batch:
            # A smaller batch would be another shape, to be compiled and captured on its own.
            images = torch.cat([images, images[-1:].expand(self.batch - count, -1, -1, -1)])
        geometry = self.model.geometry(padded, [size] * len(images), self.device)
        forward: Any = self._forward if known else self._pass
        if self.device.type == "cuda" and known:
            forward = self._replay
        tensors = forward(images, geometry)
        # The images after the first `count` only fill the batch.
        *of_images, references, features, states = tensors
        scores, best, labels, boxes, embeddings = (tensor[:count] for tensor in of_images)
        return Found(
            class_scores=scores,
            scores=best,
            labels=labels,
            boxes=boxes,
            embeddings=embeddings,
            references=references[:, :count],
            features=features[:count],
            states=states[:, :count],
            sizes=geometry.sizes[:count],
        )

    def _know(self, shape: Shape) -> bool:
        """Whether that padded shape is one of the first MOST_SHAPES."""
        if len(self._shapes) < MOST_SHAPES:
            self._shapes.add(shape)
        return shape in self._shapes

    def _replay(self, images: Tensor, geometry: Geometry) -> list[Tensor]:
        height, width = images.shape[2:]
        key = (len(images), height, width, geometry.padding is None)
        if key not in self._graphs:
            self._graphs[key] = self._capture(images, geometry)
        one = self._graphs[key]
        one.images.copy_(images)
        if one.source is not geometry.positions:
            # Frames of another size, padded to the same.
            for name in _TENSORS:
                if (still := getattr(one.geometry, name)) is not None:
                    still.copy_(getattr(geometry, name))
            one.source = geometry.positions
        one.graph.replay()
        # The next replay overwrites these.
        return [tensor.clone() for tensor in one.outputs]

    def _capture(self, images: Tensor, geometry: Geometry) -> _Captured:
        """The pass over images of this shape as a graph."""
        images = images.clone(memory_format=torch.channels_last)
        given = {name: getattr(geometry, name) for name in _TENSORS}
        own: dict[str, Any] = {k: t.clone() for k, t in given.items() if t is not None}
        still = dataclasses.replace(geometry, **own)
        # The graph holds addresses only: what it reads and writes is kept alive beside it.
        side = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                self._forward(images, still)
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=side):
            outputs = self._forward(images, still)
        self._pool = graph.pool()  # shared, because one graph runs at a time
        return _Captured(graph, images, still, geometry.positions, outputs)

    def _pass(self, images: Tensor, geometry: Geometry) -> tuple[Tensor, ...]:
        """Tensors in the order of Found's fields, without sizes."""
        outputs = self.model(images, geometry=geometry)
        logits, boxes = outputs.logits[-1].float(), outputs.boxes[-1].float()
        class_scores = logits.sigmoid()
        scores, labels = class_scores.max(-1)
        whole = logits.isfinite().all(-1) & boxes.isfinite().all(-1)
        return (
            class_scores,
            torch.where(whole, scores, torch.nan),
            labels,
            boxes,
            outputs.embeddings.float(),
            outputs.references[-1:],
            outputs.mask_features,
            outputs.states[-1:],
        )

    @torch.inference_mode()
    def mask_logits(self, found: Found, images: Tensor, queries: Tensor) -> Tensor:
        """Mask logits (n, H/4, W/4), float32, over the padded input; images, queries: (n,)."""
        layers = torch.zeros_like(queries)
        return self.model.mask_logits(found.outputs(self.model), images, layers, queries).float()
