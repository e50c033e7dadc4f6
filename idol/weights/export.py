"""A frame's whole path, or its network alone, for programs without torch: ONNX, or a package of
AOTInductor.

Either takes pictures of one size: `WholeFrame` frames as they are, `PerFrame` normalised images.
Tracking is left to the caller (idol.detection.exported reads what `WholeFrame` returns for
idol.tracker).
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import warnings
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idol.config import Config, to_dict
from idol.detection.detector import statistics
from idol.detection.exported import CONFIG, OUTPUTS
from idol.detection.gpu_masks import reads
from idol.files import whole_file
from idol.images.antialias import along, taps
from idol.images.transforms import inference_size
from idol.masks.boxes import box_iou, cxcywh_to_xyxy
from idol.masks.iou import iou_of_shared
from idol.masks.resize import STRIDE, Method
from idol.network.geometry import Geometry
from idol.network.model import IDOL
from idol.structures import Outputs
from ops.backend import VARIABLE

Format = Literal["onnx", "aoti"]
"""onnx: attention as GridSample, for any runtime. aoti: a package of AOTInductor, machine code for
this kind of machine, which calls our operator (so `import ops` where it runs)."""

OPSET = 20
"""Of ONNX: GridSample as torch samples, any rank."""
CANDIDATES = 100
"""Queries, the best ones, among which WholeFrame selects."""


class _OneSize(nn.Module):
    """The network for B images of one size, its geometry among the constants."""

    inputs: ClassVar[str]
    outputs: ClassVar[tuple[str, ...]]
    by_rank: ClassVar[tuple[str, ...]]
    """Outputs whose rows are in the order of `queries`."""

    def __init__(self, model: IDOL, shown: tuple[int, int], batch: int, masks: int) -> None:
        super().__init__()
        self.model = model
        self.batch, self.shown = batch, shown
        self.masks = min(masks, model.config.model.num_queries)
        self.device = next(model.parameters()).device
        divisor = model.config.transforms.size_divisor
        self.padded = (-(-shown[0] // divisor) * divisor, -(-shown[1] // divisor) * divisor)
        geometry = model.geometry(self.padded, [shown] * batch, self.device)
        self.shapes = geometry.shapes
        self._tensors = [f.name for f in dataclasses.fields(geometry) if f.name != "shapes"]
        for name in self._tensors:
            # A buffer belongs to the exported program.
            value = getattr(geometry, name)
            self.register_buffer(f"_{name}", None if value is None else value.clone())

    def network(self, images: Tensor) -> Outputs:
        """images: (B, 3, H, W) normalised."""
        tensors: dict[str, Any] = {n: getattr(self, f"_{n}") for n in self._tensors}
        found: Outputs = self.model(images, geometry=Geometry(shapes=self.shapes, **tensors))
        return found

    def mask_logits(self, outputs: Outputs, queries: Tensor) -> Tensor:
        """queries: (B, N) → (B, N, H/4, W/4), of the last decoder layer."""
        rows = torch.arange(self.batch, device=queries.device)[:, None].expand_as(queries).flatten()
        last = torch.full_like(rows, outputs.logits.shape[0] - 1)
        maps = self.model.mask_logits(outputs, rows, last, queries.flatten())
        return maps.view(*queries.shape, *maps.shape[1:])


class PerFrame(_OneSize):
    """images (B, 3, H, W), normalised float32, zero where padded, to

    logits      (B, Q, K) class logits of the last decoder layer
    boxes       (B, Q, 4) cxcywh in units of the un-padded image
    embeddings  (B, Q, C) contrastive embeddings
    queries     (B, N)    int64, the N queries with the best class score, best first
    mask_logits (B, N, H/4, W/4) their masks over the padded input; positive is inside

    model: in eval mode
    shown: (height, width) of the un-padded part of the input, at the top left; H and W are the
           next multiples of transforms.size_divisor
    batch: B
    masks: N
    """

    inputs = "images"
    outputs = ("logits", "boxes", "embeddings", "queries", "mask_logits")
    by_rank = ("mask_logits",)

    @property
    def example(self) -> Tensor:
        """An input."""
        return torch.zeros(self.batch, 3, *self.padded, device=self.device)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """images: (B, 3, H, W) → as the class says."""
        outputs = self.network(images)
        logits = outputs.logits[-1]
        queries = logits.amax(-1).topk(self.masks, dim=1).indices
        masks = self.mask_logits(outputs, queries)
        return logits, outputs.boxes[-1], outputs.embeddings, queries, masks


class _Axis(nn.Module):
    """What resizing along one axis reads: pixels on the way in, mask logits on the way out.

    length, shown, padded: pixels of the frame, of the network's input, and of it when padded
    """

    taps: Tensor
    weights: Tensor
    low: Tensor
    share: Tensor

    def __init__(self, length: int, shown: int, padded: int, method: Method) -> None:
        super().__init__()
        indices, weights, self.point = taps(length, shown)
        self.resizes = length != shown
        self.register_buffer("taps", torch.from_numpy(indices))
        self.register_buffer("weights", torch.from_numpy(weights).int())
        low, share = reads(padded // STRIDE, shown, length, method)
        self.last = padded // STRIDE - 1
        self.register_buffer("low", low.long())
        self.register_buffer("share", share)

    def shrink(self, pixels: Tensor, axis: int) -> Tensor:
        """(...) int32 pixels of frames to those of the input, along the axis."""
        return along(pixels, axis, self.taps, self.weights, self.point) if self.resizes else pixels

    def grow(self, logits: Tensor) -> Tensor:
        """(..., padded / 4) logits to those of the frame's pixels: (..., length)."""
        low = logits.index_select(-1, self.low)
        high = logits.index_select(-1, (self.low + 1).clamp(max=self.last))
        return low + self.share * (high - low)


class WholeFrame(_OneSize):
    """frames (B, H, W, 3) uint8 RGB to what a Detector makes of them: exported.OUTPUTS.

    Selection is the detector's (floor, class-aware NMS, best first) among the CANDIDATES queries
    of the best scores. Pixels are resized as on a CPU, bit for bit.

    model:  in eval mode
    size:   (H, W) of the frames
    batch:  B
    masks:  N
    config: its transforms and detect sections count. None: model.config
    """

    _mean: Tensor
    _std: Tensor
    inputs, outputs = "frames", OUTPUTS
    by_rank = ("class_scores", "boxes", "embeddings", "overlaps", "bits")

    def __init__(
        self,
        model: IDOL,
        size: tuple[int, int],
        batch: int,
        masks: int,
        config: Config | None = None,
    ) -> None:
        config = model.config if config is None else config
        super().__init__(model, inference_size(size, config.transforms), batch, masks)
        self.size, self.config = size, config
        self.detect = config.detect
        self.candidates = min(CANDIDATES, config.model.num_queries)
        self.masks = min(self.masks, self.candidates, self.detect.max_detections)
        mean, std = statistics(self.device, config.transforms.pixels)
        self.register_buffer("_mean", mean)
        self.register_buffer("_std", std)
        method = self.detect.mask_resize
        self.rows, self.columns = (
            _Axis(*lengths, method).to(self.device)
            for lengths in zip(size, self.shown, self.padded, strict=True)
        )

    @property
    def example(self) -> Tensor:
        """An input."""
        return torch.zeros(self.batch, *self.size, 3, dtype=torch.uint8, device=self.device)

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        """frames: (B, H, W, 3) uint8 RGB → as the class says."""
        outputs = self.network(self._images(frames))
        scores, labels = outputs.logits[-1].sigmoid().max(dim=-1)
        scores, order = scores.topk(self.candidates, dim=1)
        corners = cxcywh_to_xyxy(_rows(outputs.boxes[-1], order))
        kept = self._kept(scores, labels.gather(1, order), corners)
        # Kept rows first, each part in descending score.
        rank = torch.arange(self.candidates, device=kept.device).expand_as(order)
        rows = torch.where(kept, rank, rank + self.candidates)
        rows = rows.topk(self.masks, dim=1, largest=False, sorted=True).indices
        queries = order.gather(1, rows)
        maps = self.mask_logits(outputs, queries)
        flat = (maps > 0).float().flatten(2)
        overlaps = torch.stack([iou_of_shared(one @ one.T) for one in flat])
        height, width = self.size
        bounds = torch.tensor([width, height] * 2, dtype=torch.float32, device=corners.device)
        corners = torch.minimum((_rows(corners, rows) * bounds).clamp(min=0), bounds)
        return (
            kept.sum(dim=1).clamp(max=self.masks),
            queries,
            _rows(outputs.logits[-1], queries).sigmoid(),
            corners,
            _rows(outputs.embeddings, queries),
            overlaps,
            self._bits(maps),
        )

    def _images(self, frames: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 → (B, 3, H', W') resized, normalised and padded."""
        images = self.rows.shrink(self.columns.shrink(frames.int(), 2), 1).permute(0, 3, 1, 2)
        if self.config.transforms.pixels == "bgr":
            images = images.flip(1)
        below, right = (p - s for p, s in zip(self.padded, self.shown, strict=True))
        return F.pad((images.float() - self._mean) / self._std, (0, right, 0, below))

    def _kept(self, scores: Tensor, labels: Tensor, boxes: Tensor) -> Tensor:
        """select_queries of (B, P) candidates in descending score: (B, P) bool."""
        passing = scores > self.detect.score_floor
        overlap = torch.stack([box_iou(one, one) for one in boxes])
        conflict = (overlap > self.detect.box_nms) & (labels[:, :, None] == labels[:, None])
        before = torch.ones_like(conflict[0]).tril(-1)  # a row is suppressed by one before it
        conflict = (conflict & before & passing[:, None]).float()
        kept = passing
        # Of a row all that come before it are decided: after as many steps as rows all rows are.
        for _ in range(self.candidates if self.detect.box_nms < 1 else 0):
            kept = passing & ((conflict @ kept.float()[:, :, None])[:, :, 0] == 0)
        first = torch.arange(scores.shape[1], device=scores.device) == 0
        return kept | (first & ~passing.any(dim=1, keepdim=True))

    def _bits(self, maps: Tensor) -> Tensor:
        """(B, N, h, w) logits → (B, N, W, 4 ⌈H / 32⌉) uint8, as `exported.OUTPUTS` says."""
        inside = self.columns.grow(self.rows.grow(maps.transpose(2, 3)).transpose(2, 3)) > 0
        columns = F.pad(inside.transpose(2, 3).int(), (0, -self.size[0] % 32))
        powers = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.int32, device=maps.device)
        octets = columns.view(*columns.shape[:3], -1, 8) * powers
        return octets.sum(dim=-1).to(torch.uint8)


def _rows(values: Tensor, rows: Tensor) -> Tensor:
    """(B, Q, C), (B, N) → (B, N, C)."""
    return values.gather(1, rows[:, :, None].expand(-1, -1, values.shape[2]))


def missing(form: Format) -> str | None:
    """Why a form cannot be written here, in one line; None when it can."""
    if form == "onnx":
        for module in ("onnx", "onnxscript"):
            try:
                __import__(module)
            except ImportError as error:
                return f"{module} cannot be imported ({error}); pip install 'idol-vis[export]'"
        return None
    from idol.network.fast import cannot_compile

    return cannot_compile("cuda" if torch.cuda.is_available() else "cpu")


@torch.no_grad()
def write(network: PerFrame | WholeFrame, path: Path, form: Format) -> None:
    """Export a network to a file that appears whole or not at all, where `missing` is None."""
    with whole_file(path) as temporary, warnings.catch_warnings():
        # torch warns about its own parts, which no user can change.
        warnings.simplefilter("ignore")
        if form == "onnx":
            _write_onnx(network, temporary)
        else:
            from torch._inductor import aoti_compile_and_package

            program = torch.export.export(network, (network.example,), strict=False)
            aoti_compile_and_package(program, package_path=str(temporary))


def _write_onnx(network: PerFrame | WholeFrame, path: Path) -> None:
    # They log operators that are not used, and constants that were not folded.
    for name in ("torch.onnx", "onnxscript"):
        logging.getLogger(name).setLevel(logging.ERROR)
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "torch"  # deformable attention as GridSample
    try:
        program = torch.onnx.export(
            network, (network.example,), dynamo=True, opset_version=OPSET, verbose=False,
            input_names=[network.inputs], output_names=list(network.outputs),
        )  # fmt: skip
    finally:
        del os.environ[VARIABLE]
        if before is not None:
            os.environ[VARIABLE] = before
    assert program is not None
    if isinstance(network, WholeFrame):
        program.model.metadata_props[CONFIG] = json.dumps(to_dict(network.config))
    program.save(str(path), external_data=False)


@torch.no_grad()
def run(path: Path, form: Format, given: Tensor) -> list[Tensor]:
    """What the exported module returns, computed by onnxruntime or by torch.

    given: as its `example`
    """
    if form == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return [torch.from_numpy(a) for a in session.run(None, {name: given.cpu().numpy()})]
    from torch._inductor import aoti_load_package

    return list(aoti_load_package(str(path))(given))


def differences(
    network: PerFrame | WholeFrame, answers: list[Tensor], right: list[Tensor]
) -> dict[str, float]:
    """The largest difference of each output, relative to its largest value where that is above 1.

    Outputs by rank are compared for the objects that both have at the same rank; for `queries` and
    `bits` it is the share that differs (equal scores may change places, and a pixel's interpolated
    logit may round to zero).

    answers, right: as network returns them
    """
    found = dict.fromkeys(network.outputs, 0.0)
    place = network.outputs.index("queries")
    same = answers[place].cpu() == right[place].cpu()
    rows = torch.ones_like(same)
    if "counts" in network.outputs:
        rows = torch.arange(same.shape[1]) < right[network.outputs.index("counts")].cpu()[:, None]
    same &= rows
    for name, a, b in zip(network.outputs, answers, right, strict=True):
        x, y = a.double().cpu(), b.double().cpu()
        if name in network.by_rank:
            x, y = x[same], y[same]
        if name == "overlaps":  # their columns are rows, too
            x, y = (v * same.repeat_interleave(same.sum(1), 0) for v in (x, y))
        if name == "queries":
            found[name] = 1 - float(same[rows].float().mean())
        elif name == "bits":
            found[name] = float((x != y).float().mean()) if y.numel() else 0.0
        elif y.numel():
            found[name] = float((x - y).abs().max()) / max(1.0, float(y.abs().max()))
    return found
