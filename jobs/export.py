"""Export a frame's path to ONNX or to an AOTInductor package, and check what was written.

python -m jobs.export --weights runs/train/checkpoint.safetensors --out network.onnx --frame a.jpg
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from jobs.options import command, places

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from idol.config import Config
    from idol.network.model import IDOL
    from idol.weights import export

_TOLERANCE = 1e-3  # of each output, relative to its largest value


@dataclass(frozen=True, kw_only=True)
class Export:
    """Export what happens to a frame before association: resize, network, selection, masks.

    Frames in, detections out, for programs without torch (idol.detection.exported reads them, and
    examples/onnx_tracking.py tracks a video with them); with --part network normalised images in,
    class logits, boxes, embeddings and mask logits out (export.PerFrame has the shapes). What was
    written is run on a frame (by onnxruntime, or by torch) and compared with the network before
    this ends. The last line of stdout is one JSON object: the path, the input's size, the
    largest difference of each output, seconds.
    """

    weights: command.Weights
    out: Annotated[Path, places.NETWORK]
    """File to write: .onnx, or .pt2 for an AOTInductor package."""
    part: Literal["frame", "network"] = "frame"
    """frame: all of it. network: without resizing, selection and masks of the frame's size."""
    preset: str | None = None
    """Configuration of a released .pth, which carries none."""
    set: command.Repeated = ()
    """Replace a field of the checkpoint's configuration, SECTION.FIELD=VALUE; for example
    transforms.test_short_side=360."""
    frame: str | None = None
    """An image: its size is that of the frames, and what is exported is checked on it. Default: a
    drawn frame of 360x640."""
    batch: int = 1
    """Images of one pass; an exported network takes exactly as many."""
    masks: int = 20
    """Detections of a frame at most, those with the best scores."""
    fold: bool = True
    """Make frozen norms part of the convolutions: faster, equal up to rounding."""
    overwrite: bool = False
    """Replace OUT where it exists."""


def _export(job: Export) -> dict[str, object]:
    import torch

    from idol.weights import checkpoint, export
    from pipelines import configuration

    started = time.monotonic()
    form = _form(job)
    model = checkpoint.load(job.weights, preset=job.preset)
    config = configuration.changed(model.config, job.set, None)
    frame = _frame(job)
    if job.fold:
        model.fold()
    network, given = _network(model, frame, job, config)
    export.write(network, job.out, form)
    with torch.inference_mode():
        right = list(network(given))
    try:
        found = export.differences(network, export.run(job.out, form, given), right)
    except ImportError as error:
        raise ValueError(
            f"{job.out} was written but not checked: {error}. pip install 'idol-vis[export]'"
        ) from error
    # Queries of equal score may change places; a few are no fault, most of them are.
    worst = max(value for name, value in found.items() if name != "queries")
    line = {
        "out": str(job.out), "format": form, "part": job.part, "input": list(given.shape),
        "shown": list(network.shown), "differences": found, "bytes": job.out.stat().st_size,
        "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip
    if worst > _TOLERANCE or found["queries"] > 0.5:
        raise ValueError(
            f"{job.out} was written, but answers differently: {found} (at most "
            f"{_TOLERANCE} is expected). Do not use it; report the versions of torch and "
            f"{'onnxruntime' if form == 'onnx' else 'the compiler'}."
        )
    return line


def _network(
    model: IDOL, frame: NDArray[np.uint8], job: Export, config: Config
) -> tuple[export.PerFrame | export.WholeFrame, Tensor]:
    """What is exported, and the frame as its input."""
    import torch

    from idol.images.transforms import collate_images, normalise
    from idol.weights import export

    if job.part == "frame":
        size = (frame.shape[0], frame.shape[1])
        whole = export.WholeFrame(model, size, job.batch, job.masks, config).eval()
        return whole, torch.from_numpy(frame).expand(job.batch, *frame.shape).contiguous()
    image = normalise(frame, config.transforms)
    images, _ = collate_images([image] * job.batch, config.transforms.size_divisor)
    shown = (image.shape[1], image.shape[2])
    return export.PerFrame(model, shown, job.batch, job.masks).eval(), images


def _form(job: Export) -> export.Format:
    from idol.weights import export

    forms: dict[str, export.Format] = {".onnx": "onnx", ".pt2": "aoti"}
    if job.out.suffix not in forms:
        raise ValueError(f"--out must end in .onnx or .pt2, got {job.out}")
    if job.out.exists() and not job.overwrite:
        raise ValueError(f"{job.out} exists. Use another --out, or --overwrite to replace it.")
    if job.batch < 1 or job.masks < 1:
        raise ValueError(f"--batch and --masks must be at least 1, got {job.batch} and {job.masks}")
    if reason := export.missing(forms[job.out.suffix]):
        raise ValueError(f"{job.out.suffix} cannot be written: {reason}.")
    return forms[job.out.suffix]


def _frame(job: Export) -> NDArray[np.uint8]:
    from idol.images.synthetic import SyntheticConfig, make_video
    from pipelines.sources import frames

    if job.frame is None:
        drawn: NDArray[np.uint8] = make_video(SyntheticConfig(size=(360, 640)), 0).frames[0]
        return drawn
    if not Path(job.frame).is_file():
        raise FileNotFoundError(f"--frame {job.frame} is not there; name an image file.")
    return frames.read(job.frame, video_id=0)


main = functools.partial(command.run, "export", Export, _export)

if __name__ == "__main__":
    main()
