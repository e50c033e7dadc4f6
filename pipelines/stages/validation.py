"""Scores of a network that is being trained, on labelled videos, with all workers at once.

By the workers themselves, and not as a task of Ray Train beside them: every validation is then at
its step, on the weights of that step, and equal runs end early at the same step. The price is that
training waits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor, distributed

from idol.clips.network import ClipNetwork
from idol.config import Config
from idol.detection.detector import Detector
from idol.evaluation import average_precision, matching, tracking_metrics
from idol.evaluation.matching import VideoMatches
from idol.evaluation.tracking_metrics import VideoTracking
from idol.images import visualize
from idol.masks import rle
from idol.network.model import IDOL
from idol.structures import FrameDetections, Track
from idol.tracker.online import track_video
from idol.ytvis import results
from idol.ytvis.truth import Truth
from pipelines import formats
from pipelines.errors import VideoError
from pipelines.report import strips
from pipelines.sources import frames
from pipelines.sources.annotations import Dataset, VideoRecord
from pipelines.stages import clip_results, detect, evaluate
from pipelines.stages.shard_plan import Piece
from pipelines.training import networks

_WIDTH = 320  # pixels of a picture's frames
_COLUMNS = 3  # frames of a video in a picture


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """What to validate on.

    annotations: labels in any known format
    frames:      as of formats.dataset
    """

    annotations: str
    frames: str | None = None

    def read(self, config: Config) -> tuple[Dataset, Truth]:
        """The videos that the configuration chooses, and their truth.

        Raises:
            ValueError: there is no truth, or it has other categories than the configuration.
            PipelineError: the labels cannot be used.
        """
        dataset = formats.dataset(self.annotations, self.frames)
        truth = dataset.truth()
        if truth is None:
            raise ValueError(f"{self.annotations} holds no truth: there is nothing to validate on")
        evaluate.with_categories(config, dataset)
        if config.validation.videos:
            chosen = strips.evenly(len(dataset.videos), config.validation.videos)
            ids = [dataset.videos[place].video_id for place in chosen]
            dataset = formats.dataset(self.annotations, self.frames, video_ids=ids)
            truth = dataset.truth()
            assert truth is not None, "it was there for all videos"
        return dataset, truth

    def __call__(self, config: Config, device: torch.device, rank: int, world: int) -> OnlineScores:
        """The validator of one worker (pipelines.training.loop.Loop)."""
        return OnlineScores(self, config, device, rank, world)


@dataclass(frozen=True, slots=True)
class _Found:
    """What one video adds."""

    matches: VideoMatches
    tracking: VideoTracking
    picture: bytes | None


class OnlineScores:
    """One worker's part of a validation: every world-th video, and then the sum of all parts."""

    def __init__(
        self, wanted: Validation, config: Config, device: torch.device, rank: int, world: int
    ) -> None:
        self.config, self.rank, self.world = config, rank, world
        self.dataset, self.truth = wanted.read(config)
        # Its own copy: the one that is trained stays in training mode, with its own weights.
        self.model = networks.make(config).to(device).eval()
        self.detector: Detector | None = None
        if isinstance(self.model, IDOL):
            self.detector = Detector(self.model, config, batch=config.detect.batch_frames)

    def __call__(self, weights: Mapping[str, Tensor]) -> tuple[dict[str, float], bytes | None]:
        """AP, AP50 and HOTA (over classes with truth), in 0..1, of these weights; and pictures.

        Raises: VideoError: a frame cannot be read.
        """
        self.model.load_state_dict(dict(weights))
        videos = self.dataset.videos
        # The longest first, so that the parts take about the same time.
        order = sorted(range(len(videos)), key=lambda n: (-len(videos[n]), n))
        mine = {n: self._of(videos[n], n) for n in order[self.rank :: self.world]}
        parts = [mine]
        if self.world > 1:
            parts = [{} for _ in range(self.world)]
            distributed.all_gather_object(parts, mine)
        found = [part for _, part in sorted((n, p) for part in parts for n, p in part.items())]
        metrics = average_precision.summarise([part.matches for part in found]).stats
        tracking = tracking_metrics.summarise_tracking([part.tracking for part in found])
        scores = {name: float(metrics[name]) for name in ("AP", "AP50")}
        scores["HOTA"] = float(tracking.present_averaged.values["HOTA"])
        pictures = [part.picture for part in found if part.picture is not None]
        return scores, _stacked(pictures) if pictures and self.rank == 0 else None

    def _of(self, video: VideoRecord, number: int) -> _Found:
        if isinstance(self.model, ClipNetwork):
            return self._of_clips(self.model, video)
        frames_found = list(self._detections(video))
        tracks = track_video(iter(frames_found), self.config.tracker)
        entries = results.to_ytvis(
            tracks,
            frames_found,
            video_id=video.video_id,
            size=video.size,
            length=len(video),
            category_ids=self.config.category_ids,
            config=self.config.tracker,
        )
        truth = self.truth.videos[video.video_id]
        shown = number < self.config.validation.pictures
        return _Found(
            matching.match_video(entries, truth),
            tracking_metrics.count_video(entries, truth),
            self._picture(video, tracks, frames_found) if shown else None,
        )

    def _of_clips(self, model: ClipNetwork, video: VideoRecord) -> _Found:
        """The same by a network of clips; without a picture."""
        rows = clip_results.results_of_video(
            model, video.video_id, video.size, tuple(video.frames), self.config
        )
        ids = self.config.category_ids
        entries = [
            results.entry(row.video_id, ids[row.label], row.score, row.segmentations, video.size)
            for row in rows
        ]
        truth = self.truth.videos[video.video_id]
        return _Found(
            matching.match_video(entries, truth),
            tracking_metrics.count_video(entries, truth),
            None,
        )

    def _detections(self, video: VideoRecord) -> Iterator[FrameDetections]:
        piece = Piece(
            video_id=video.video_id, size=video.size, start=0, frames=tuple(video.frames), truth=()
        )
        assert self.detector is not None
        faults: dict[int, VideoError] = {}
        yield from sorted(
            (one for _, one in detect.found(self.detector, [piece], self.config, faults)),
            key=lambda one: one.frame_index,
        )
        for fault in faults.values():
            raise fault

    def _picture(
        self, video: VideoRecord, tracks: Sequence[Track], found: Sequence[FrameDetections]
    ) -> bytes:
        """Frames of a video side by side with its tracks drawn, as a JPEG."""
        shown = strips.evenly(len(video), _COLUMNS)
        images = {
            n: frames.read(video.frames[n], video_id=video.video_id, size=video.size) for n in shown
        }
        pictures = []
        for n, image in images.items():
            seen = [(track, track.detections[n]) for track in tracks if n in track.detections]
            masks = rle.decode_masks([found[n].masks[row] for _, row in seen], video.size)
            texts = [
                f"{self.config.categories[int(track.class_scores.argmax())]} {track.track_id}"
                for track, _ in seen
            ]
            ids = [track.track_id for track, _ in seen]
            pictures.append(visualize.overlay(image, masks, ids, texts))
        height = max(1, round(video.size[0] * _WIDTH / video.size[1]))
        row = np.hstack([cv2.resize(p, (_WIDTH, height)) for p in pictures])
        return cv2.imencode(".jpg", row[..., ::-1])[1].tobytes()


def _stacked(pictures: Sequence[bytes]) -> bytes:
    """Pictures one below the other, as a JPEG."""
    rows = [np.asarray(cv2.imdecode(np.frombuffer(p, np.uint8), 1)) for p in pictures]
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 4), (0, width - row.shape[1]), (0, 0))) for row in rows]
    return cv2.imencode(".jpg", np.vstack(padded))[1].tobytes()
