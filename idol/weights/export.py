"""The network of one frame for programs without this package: ONNX, or one file of torch.export.

Either takes normalised images of one size and returns what `PerFrame` says. Tracking, which is
arithmetic on what comes out, stays with the caller (or with idol.tracker).
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from idol.network.geometry import Geometry
from idol.network.model import IDOL
from ops.backend import VARIABLE

Format = Literal["onnx", "aoti"]
"""onnx: attention as GridSample, for any runtime. aoti: a package of AOTInductor, machine code for
this kind of machine, which calls our operator (so `import ops` where it runs)."""

OUTPUTS = ("logits", "boxes", "embeddings", "queries", "mask_logits")
OPSET = 20
"""Of ONNX: GridSample as torch samples, any rank."""


class PerFrame(nn.Module):
    """images (B, 3, H, W), normalised float32, zero where padded, to

    logits      (B, Q, K) class logits of the last decoder layer
    boxes       (B, Q, 4) cxcywh in units of the un-padded image
    embeddings  (B, Q, C) contrastive embeddings
    queries     (B, N)    int64, the N queries with the best class score, best first
    mask_logits (B, N, H/4, W/4) their masks over the padded input; positive is inside

    model: in eval mode
    size:  (H, W) of the input, multiples of 32
    shown: (height, width) of the un-padded part of it, at the top left
    batch: B
    masks: N
    """

    def __init__(
        self, model: IDOL, size: tuple[int, int], shown: tuple[int, int], batch: int, masks: int
    ) -> None:
        super().__init__()
        self.model = model
        self.masks = min(masks, model.config.model.num_queries)
        geometry = model.geometry(size, [shown] * batch, next(model.parameters()).device)
        # As buffers, which an exported program owns.
        for field in dataclasses.fields(geometry):
            value = getattr(geometry, field.name)
            if isinstance(value, Tensor):
                self.register_buffer(f"_{field.name}", value.clone())
        self._padded = geometry.padding is not None
        self._shapes = geometry.shapes

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """images: (B, 3, H, W) → as the class says."""
        geometry = Geometry(
            sizes=self.get_buffer("_sizes"),
            padding=self.get_buffer("_padding") if self._padded else None,
            positions=self.get_buffer("_positions"),
            valid_ratios=self.get_buffer("_valid_ratios"),
            references=self.get_buffer("_references"),
            shapes=self._shapes,
        )
        outputs = self.model(images, geometry=geometry)
        logits = outputs.logits[-1]
        queries = logits.amax(-1).topk(self.masks, dim=1).indices
        batch = images.shape[0]
        rows = torch.arange(batch, device=images.device)[:, None].expand(-1, self.masks).flatten()
        last = torch.full_like(rows, outputs.logits.shape[0] - 1)
        maps = self.model.mask_logits(outputs, rows, last, queries.flatten())
        return (
            logits,
            outputs.boxes[-1],
            outputs.embeddings,
            queries,
            maps.view(batch, self.masks, *maps.shape[1:]),
        )


@contextlib.contextmanager
def _backend(name: str | None) -> Iterator[None]:
    """Deformable attention by that backend."""
    before = os.environ.get(VARIABLE)
    if name is not None:
        os.environ[VARIABLE] = name
    try:
        yield
    finally:
        if before is not None:
            os.environ[VARIABLE] = before
        elif name is not None:
            del os.environ[VARIABLE]


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
def write(network: PerFrame, path: Path, form: Format) -> None:
    """Export a network.

    path:   to write; by a temporary name first, so it is whole or not there
    Errors: ValueError where the form cannot be written here
    """
    if reason := missing(form):
        raise ValueError(f"{form} cannot be written: {reason}.")
    batch, height, width = len(network.get_buffer("_sizes")), *_size(network)
    example = torch.zeros(batch, 3, height, width, device=network.get_buffer("_positions").device)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        with warnings.catch_warnings():
            # What torch says of its own parts is nothing that a user could act on.
            warnings.simplefilter("ignore")
            if form == "onnx":
                _write_onnx(network, example, temporary)
            else:
                _write_package(network, example, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _size(network: PerFrame) -> tuple[int, int]:
    height, width = network._shapes[0]  # of stride 8
    return height * 8, width * 8


def _write_onnx(network: PerFrame, example: Tensor, path: Path) -> None:
    # They tell of operators that are not used, and of foldings that were not done.
    for name in ("torch.onnx", "onnxscript"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with _backend("torch"):
        program = torch.onnx.export(
            network, (example,), dynamo=True, opset_version=OPSET, input_names=["images"],
            output_names=list(OUTPUTS), verbose=False,
        )  # fmt: skip
    assert program is not None
    program.save(str(path), external_data=False)


def _write_package(network: PerFrame, example: Tensor, path: Path) -> None:
    from torch._inductor import aoti_compile_and_package

    program = torch.export.export(network, (example,), strict=False)
    aoti_compile_and_package(program, package_path=str(path))


@torch.no_grad()
def run(path: Path, form: Format, images: Tensor) -> list[Tensor]:
    """What an exported network answers, by onnxruntime or by torch.

    images:  (B, 3, H, W) of the size that it was exported for
    returns: as PerFrame
    """
    if form == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return [torch.from_numpy(a) for a in session.run(None, {"images": images.cpu().numpy()})]
    from torch._inductor import aoti_load_package

    return list(aoti_load_package(str(path))(images))


def differences(answers: list[Tensor], right: list[Tensor]) -> dict[str, float]:
    """The largest difference of each output, relative to its largest value where that is above 1.

    answers: as PerFrame returns them
    right:   likewise
    returns: by name; of masks those of the queries that both chose at the same rank, and of queries
             the share on which they differ (equal scores may change places)
    """
    found: dict[str, float] = {}
    same = answers[3].cpu() == right[3].cpu()
    for name, a, b in zip(OUTPUTS, answers, right, strict=True):
        if name == "queries":
            found[name] = 1 - float(same.float().mean())
            continue
        x, y = a.double().cpu(), b.double().cpu()
        if name == "mask_logits":
            x, y = x[same], y[same]
        size = max(1.0, float(y.abs().max())) if y.numel() else 1.0
        found[name] = float((x - y).abs().max()) / size if y.numel() else 0.0
    return found
