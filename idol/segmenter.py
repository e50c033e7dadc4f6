"""Online segmentation: frames in, identities with masks out, frame by frame, without Ray.

segmenter = OnlineSegmenter.load("shipped")
for frame in source:                    # (H, W, 3) uint8 RGB
    instances = segmenter(frame)        # identities, masks, boxes, classes of this frame
entries = segmenter.finish_ytvis()      # the whole video, as a YouTube-VIS results file has it
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from idol.config import Config, Speed, TrackerConfig
from idol.detection.detector import Detector
from idol.images.depth import eight_bits
from idol.masks import rle
from idol.network.model import IDOL
from idol.tracker.online import Tracker
from idol.tracker.tracks import AssembledTrack, TrackAssembler
from idol.weights import checkpoint
from idol.ytvis import results


@dataclass(frozen=True, slots=True)
class Instances:
    """The n instances of one frame that have an identity, in descending score.

    frame_index:  position in the stream, from 0
    size:         (height, width) of the frame
    track_ids:    (n,)   int64, the same number for the same object in every frame
    labels:       (n,)   int64, best class in this frame
    scores:       (n,)   float32, score of that class in this frame
    class_scores: (n, K) float32
    boxes:        (n, 4) xyxy, pixels of the frame
    counts:       n compressed RLE counts; `masks` decodes them
    names:        (n,)   category names, or the label's number where the model has no names
    """

    frame_index: int
    size: tuple[int, int]
    track_ids: Tensor
    labels: Tensor
    scores: Tensor
    class_scores: Tensor
    boxes: Tensor
    counts: tuple[bytes, ...] = field(repr=False)
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.track_ids)

    @property
    def masks(self) -> NDArray[np.bool_]:
        """(n, H, W) bool, at the size of the frame; decoded at every reading."""
        return rle.decode_masks(self.counts, self.size).astype(np.bool_)


class OnlineSegmenter:
    """Detects and tracks the objects of one video or endless stream. One per video.

    model:       in eval mode; frames are processed on its device, one at a time
    tracker:     association; None: config.tracker
    config:      sizes, detection and categories; its section model must be the model's. None:
                 model.config
    keep_tracks: keep tracks and RLE bytes for finish; without it, memory does not grow
    speed:       as of DetectConfig.speed; None: config.detect.speed
    """

    def __init__(
        self,
        model: IDOL,
        tracker: TrackerConfig | None = None,
        *,
        config: Config | None = None,
        keep_tracks: bool = True,
        speed: Speed | None = None,
    ) -> None:
        self.model = model.eval()
        self.settings = model.config if config is None else config
        if self.settings.model != model.config.model:
            raise ValueError(
                "config.model describes another network than model. Change other sections of "
                "model.config, or load the checkpoint that belongs to it."
            )
        self.config = self.settings.tracker if tracker is None else tracker
        floor = self.settings.detect.score_floor
        if self.config.score_threshold < floor:
            raise ValueError(
                f"tracker.score_threshold is {self.config.score_threshold}, but detections end at "
                f"detect.score_floor = {floor}. Lower the floor or raise the threshold."
            )
        self._detector = Detector(self.model, self.settings, speed=speed)
        self._tracker = Tracker(self.config)
        self._assembler = TrackAssembler(self.config, keep_masks=True) if keep_tracks else None
        self._ended: list[AssembledTrack] = []
        self._size: tuple[int, int] | None = None
        self._frames = 0
        self._closed = False

    @classmethod
    def load(
        cls,
        weights: str | os.PathLike[str] = "shipped",
        *,
        preset: str | None = None,
        device: str | torch.device = "cpu",
        tracker: TrackerConfig | None = None,
        keep_tracks: bool = True,
        speed: Speed | None = None,
    ) -> Self:
        """From weights; arguments weights, preset and device, and errors as of idol.load."""
        model = checkpoint.load(weights, preset=preset, device=device)
        return cls(model, tracker, keep_tracks=keep_tracks, speed=speed)

    @property
    def frames(self) -> int:
        """Frames seen so far."""
        return self._frames

    @torch.inference_mode()
    def __call__(self, frame: NDArray[np.uint8] | NDArray[np.uint16]) -> Instances:
        """The instances of the next frame.

        frame: (H, W, 3) RGB, all of one size, uint8, or uint16, which `eight_bits` stretches
        Raises:
            TypeError: another dtype.
            ValueError: another shape, a changed size, outputs that are not finite, after finish.
        After an error the stream can continue with the next frame.
        """
        size = self._check(frame)
        prepared = self._detector.prepare(eight_bits(frame))
        (found,) = self._detector.detect([prepared], [self._frames])
        rows, ids = self._tracker.follow(found)
        if self._assembler is not None:
            self._ended += self._assembler.add(found, rows, ids, self._tracker.alive)
        self._size = size
        self._frames += 1
        track_ids = torch.tensor(ids, dtype=torch.int64)
        named = track_ids >= 0
        chosen = torch.tensor(rows, dtype=torch.int64)[named]
        class_scores = found.class_scores[chosen]
        labels = class_scores.argmax(dim=1)
        names = self.settings.categories
        return Instances(
            frame_index=found.frame_index,
            size=size,
            track_ids=track_ids[named],
            labels=labels,
            scores=found.scores[chosen],
            class_scores=class_scores,
            boxes=found.boxes[chosen],
            counts=tuple(found.masks[row] for row in chosen.tolist()),
            names=tuple(names[i] if names else str(i) for i in labels.tolist()),
        )

    def finish(self) -> list[AssembledTrack]:
        """End the video: its tracks in the order of their creation, equal to track_video's.

        Raises: ValueError: keep_tracks is off.
        """
        if self._assembler is None:
            raise ValueError("tracks were not kept. Use OnlineSegmenter(..., keep_tracks=True).")
        self._closed = True
        self._ended += self._assembler.finish()
        return sorted(self._ended, key=lambda one: one.position)

    def finish_ytvis(self, video_id: int = 1) -> list[results.Entry]:
        """End the video: entries for results.write, as jobs.evaluate makes them of a whole video.

        Categories without a data set's ids count from 1.
        Raises: ValueError: as finish.
        """
        tracks = self.finish()
        ids = self.settings.category_ids or range(1, self.settings.model.num_classes + 1)
        assert self._size is not None or not tracks, "a mask has come from a frame"
        return [
            results.entry(
                video_id,
                ids[chosen.label],
                chosen.score,
                [tracks[chosen.track].masks.get(index) for index in range(self._frames)],
                self._size or (0, 0),
            )
            for chosen in results.class_entries([one.track for one in tracks], self.config)
        ]

    def _check(self, frame: NDArray[np.uint8] | NDArray[np.uint16]) -> tuple[int, int]:
        if self._closed:
            raise ValueError("this video is finished. Use a new OnlineSegmenter for each video.")
        dtype = getattr(frame, "dtype", type(frame).__name__)
        if not isinstance(frame, np.ndarray) or frame.dtype not in (np.uint8, np.uint16):
            raise TypeError(
                f"a frame is a numpy array of uint8, 0 to 255, or of uint16, got {dtype}. "
                "Of floats in [0, 1]: (255 * frame).round().astype(np.uint8)."
            )
        if frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
            raise ValueError(
                f"a frame must have shape (height, width, 3), RGB, got {frame.shape}. OpenCV "
                "reads BGR: cv2.cvtColor(frame, cv2.COLOR_BGR2RGB) turns it round."
            )
        size = (frame.shape[0], frame.shape[1])
        if self._size is not None and size != self._size:
            raise ValueError(
                f"frame {self._frames} is {size} (height, width), those before it {self._size}. "
                "Resize it, or use a new OnlineSegmenter for another video."
            )
        return size
