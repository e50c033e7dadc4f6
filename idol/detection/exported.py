"""Detections by a network that jobs.export wrote as ONNX: onnxruntime and numpy, without torch.

frames = ExportedFrames("network.onnx")
tracker = Tracker(frames.config.tracker)
for index, frame in enumerate(video):  # (H, W, 3) uint8 RGB
    detections = frames.detect(frame, index)
    rows, track_ids = tracker.follow(detections)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from idol.config import Config, from_dict
from idol.structures import FrameDetections

CONFIG = "idol"
"""Key of the file's metadata that holds the configuration as JSON."""
_ERRORS = "onnxruntime.capi.onnxruntime_pybind11_state"
OUTPUTS = ("counts", "queries", "class_scores", "boxes", "embeddings", "overlaps", "bits")
"""What export.WholeFrame returns: B frames, N rows in descending score.

counts       (B,)      int64, the rows that are detections; what follows them has no meaning
queries      (B, N)    int64, the object query of each
class_scores (B, N, K) sigmoid scores of every class
boxes        (B, N, 4) xyxy, pixels of the frame
embeddings   (B, N, C) contrastive embeddings
overlaps     (B, N, N) mask IoU at the resolution of mask logits
bits         (B, N, W, 4 ⌈H / 32⌉) uint8 masks: bit i of byte j of column x is pixel (8 j + i, x)
"""


class ExportedFrames:
    """An exported network for single frames, of one or of many videos; it keeps no state.

    path:      an .onnx file of jobs.export
    providers: of onnxruntime, the first that is there computes
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no ONNX that onnxruntime loads, or takes no frames (it holds the
            network alone).
        ImportError: onnxruntime is not there.
    """

    def __init__(
        self, path: str | Path, providers: tuple[str, ...] = ("CPUExecutionProvider",)
    ) -> None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path} is not there. python -m jobs.export writes one.")
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(f"{error}. pip install 'idol-vis[export]'") from error
        try:
            self._session = onnxruntime.InferenceSession(str(path), providers=list(providers))
        except Exception as error:
            # They have no base of their own: InvalidProtobuf, NoModel, Fail, ...
            if type(error).__module__ != _ERRORS:
                raise
            raise ValueError(
                f"{path} cannot be loaded by onnxruntime: {str(error).rstrip('.')}. "
                "python -m jobs.export writes one that can."
            ) from error
        self._name = self._session.get_inputs()[0].name
        outputs = tuple(output.name for output in self._session.get_outputs())
        known = self._session.get_modelmeta().custom_metadata_map
        if outputs != OUTPUTS or CONFIG not in known:
            raise ValueError(
                f"{path} must return {', '.join(OUTPUTS)} and hold our configuration, got "
                f"{', '.join(outputs)}{'' if CONFIG in known else ', and none'}. Export it with "
                "--part frame."
            )
        self.shape: tuple[int, ...] = tuple(self._session.get_inputs()[0].shape)
        """(B, H, W, 3) of the frames that it takes."""
        self.config: Config = from_dict(Config, json.loads(known[CONFIG]))
        """That of the checkpoint, with what was changed at the export."""

    def detect(self, frame: NDArray[np.uint8], index: int) -> FrameDetections:
        """The detections of a frame (H, W, 3) uint8 RGB, the index-th of its video, as arrays.

        Raises: ValueError: the frame has another size, or the file takes several.
        """
        return self.detect_batch(frame[None], [index])[0]

    def detect_batch(self, frames: NDArray[np.uint8], indices: list[int]) -> list[FrameDetections]:
        """The detections of B frames (B, H, W, 3) uint8 RGB, as `detect`."""
        if frames.shape != self.shape or frames.dtype != np.uint8 or len(indices) != len(frames):
            raise ValueError(
                f"frames must be uint8 of shape {self.shape} and have an index each, got "
                f"{frames.dtype} of {frames.shape} and {len(indices)} indices. Export with --frame "
                "of the same size and --batch of the same number."
            )
        found = dict(zip(OUTPUTS, self._session.run(None, {self._name: frames}), strict=True))
        return [self._detections(found, place, index) for place, index in enumerate(indices)]

    def _detections(self, found: dict[str, Any], place: int, index: int) -> FrameDetections:
        from idol.masks import bits

        count = int(found["counts"][place])
        rows = {name: values[place][:count] for name, values in found.items() if name != "counts"}
        scores = rows["class_scores"].max(axis=1)
        if not np.isfinite(scores).all() or not np.isfinite(rows["embeddings"]).all():
            raise ValueError(
                f"scores and embeddings of frame {index} must be finite, but are not. Check the "
                "weights that were exported."
            )
        return FrameDetections(
            index,
            scores=scores,
            class_scores=rows["class_scores"],
            embeddings=rows["embeddings"],
            overlaps=np.ascontiguousarray(rows["overlaps"][:, :count]),  # type: ignore[arg-type]
            boxes=rows["boxes"],
            masks=tuple(bits.encode(rows["bits"].view(np.uint32), self.shape[1])),
        )
