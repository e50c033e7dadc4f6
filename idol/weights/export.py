"""The network of one frame for programs without this package: ONNX, or one file of torch.export.

Either takes normalised images of one size and returns what `PerFrame` returns. Tracking is left to
the caller (or to idol.tracker).
"""

from __future__ import annotations

import dataclasses
import logging
import os
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from idol.files import whole_file
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
        self.example = torch.zeros(batch, 3, *size, device=next(model.parameters()).device)
        geometry = model.geometry(size, [shown] * batch, self.example.device)
        self.shapes = geometry.shapes
        self._tensors = [f.name for f in dataclasses.fields(geometry) if f.name != "shapes"]
        for name in self._tensors:
            # A buffer belongs to the exported program.
            value = getattr(geometry, name)
            self.register_buffer(f"_{name}", None if value is None else value.clone())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """images: (B, 3, H, W) → as the class says."""
        tensors: dict[str, Any] = {n: getattr(self, f"_{n}") for n in self._tensors}
        outputs = self.model(images, geometry=Geometry(shapes=self.shapes, **tensors))
        logits = outputs.logits[-1]
        queries = logits.amax(-1).topk(self.masks, dim=1).indices
        batch = images.shape[0]
        rows = torch.arange(batch, device=images.device)[:, None].expand(-1, self.masks).flatten()
        last = torch.full_like(rows, outputs.logits.shape[0] - 1)
        maps = self.model.mask_logits(outputs, rows, last, queries.flatten())
        masks = maps.view(batch, self.masks, *maps.shape[1:])
        return logits, outputs.boxes[-1], outputs.embeddings, queries, masks


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


def _write_onnx(network: PerFrame, path: Path) -> None:
    # They log operators that are not used, and constants that were not folded.
    for name in ("torch.onnx", "onnxscript"):
        logging.getLogger(name).setLevel(logging.ERROR)
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "torch"  # deformable attention as GridSample
    try:
        program = torch.onnx.export(
            network, (network.example,), dynamo=True, opset_version=OPSET, input_names=["images"],
            output_names=list(OUTPUTS), verbose=False,
        )  # fmt: skip
    finally:
        del os.environ[VARIABLE]
        if before is not None:
            os.environ[VARIABLE] = before
    assert program is not None
    program.save(str(path), external_data=False)


@torch.no_grad()
def run(path: Path, form: Format, images: Tensor) -> list[Tensor]:
    """What `PerFrame` returns, computed by onnxruntime or by torch from an exported network.

    images: (B, 3, H, W) of the size that it was exported for
    """
    if form == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return [torch.from_numpy(a) for a in session.run(None, {"images": images.cpu().numpy()})]
    from torch._inductor import aoti_load_package

    return list(aoti_load_package(str(path))(images))


def differences(answers: list[Tensor], right: list[Tensor]) -> dict[str, float]:
    """The largest difference of each output, relative to its largest value where that is above 1.

    Masks are compared for the queries that both have at the same rank; for queries it is the share
    that differs (equal scores may change places).

    answers, right: as PerFrame returns them
    """
    found = dict.fromkeys(OUTPUTS, 0.0)
    same = answers[3].cpu() == right[3].cpu()
    for name, a, b in zip(OUTPUTS, answers, right, strict=True):
        x, y = a.double().cpu(), b.double().cpu()
        if name == "mask_logits":
            x, y = x[same], y[same]
        if name == "queries":
            found[name] = 1 - float(same.float().mean())
        elif y.numel():
            found[name] = float((x - y).abs().max()) / max(1.0, float(y.abs().max()))
    return found
