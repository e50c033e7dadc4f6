"""A frame with only some of its detections."""

import torch

from idol.structures import FrameDetections


def subset(frame: FrameDetections, rows: torch.Tensor) -> FrameDetections:
    """The frame with these rows (n,) only, in this order."""
    return FrameDetections(
        frame_index=frame.frame_index,
        scores=frame.scores[rows],
        class_scores=frame.class_scores[rows],
        embeddings=frame.embeddings[rows],
        overlaps=frame.overlaps[rows][:, rows],
        boxes=frame.boxes[rows],
        masks=tuple(frame.masks[i] for i in rows.tolist()) if frame.masks else (),
    )
