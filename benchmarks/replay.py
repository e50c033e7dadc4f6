"""Association replayed on detections at hand: one clip's arrays in, every tracker's scores out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats

from idol.config import TrackerConfig
from idol.detection.postprocess import detections
from idol.evaluation.average_precision import summarise
from idol.evaluation.identities import shown_instances
from idol.evaluation.overlaps import FrameOverlap, TrackOverlaps, frame_overlap, truth_of_frame
from idol.evaluation.stored_overlaps import match_video_from_overlaps
from idol.evaluation.tracking_metrics import count_overlaps, summarise_tracking
from idol.images.synthetic import SyntheticVideo
from idol.images.transforms import collate_images, normalise
from idol.masks import rle
from idol.network.model import IDOL
from idol.structures import FrameDetections, Track
from idol.tracker.online import admitted, track_video
from idol.ytvis import truth
from idol.ytvis.truth import VideoTruth

METRICS = ("AP", "AP50", "IDF1", "AssA", "IDSW")
"""AP as in every table; identity metrics over all classes together."""
COUNTED_SCORE = 0.2
"""Tracks with a lower mean score are left out of IDF1, AssA and IDSW, which know no ranking."""
TRUE_IDENTITIES = "true identities"


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """One video, detected.

    frames:   T, without masks
    overlaps: T, of frames with truth
    truth:    without masks
    """

    frames: tuple[FrameDetections, ...]
    overlaps: tuple[FrameOverlap, ...]
    truth: VideoTruth


def video_truth(
    video_id: int, bits: np.ndarray, labels: Sequence[int], num_classes: int
) -> VideoTruth:
    """Truth from masks (T, G, H, W) bool and labels (G,); category_id is label + 1."""
    length, count, height, width = bits.shape
    coded = [rle.encode_masks(bits[:, g]) for g in range(count)]
    return truth.from_masks(
        video_id, (height, width), length, range(1, num_classes + 1),
        instance_ids=range(1, count + 1),
        category_ids=[label + 1 for label in labels],
        crowd=[False] * count,
        segmentations=[
            [c if seen else None for c, seen in zip(row, bits[:, g].any((1, 2)), strict=True)]
            for g, row in enumerate(coded)
        ],
    )  # fmt: skip


def detect(model: IDOL, video: SyntheticVideo, video_id: int, every: int = 1) -> Clip:
    """The network's own detections of every n-th frame of a synthetic video."""
    bits = video.masks[::every]
    seen = bits.any(axis=(0, 2, 3))
    labels = video.labels[seen].tolist()
    known = video_truth(video_id, bits[:, seen], labels, model.config.model.num_classes)
    return detect_frames(model, video.frames[::every], known)


@torch.inference_mode()
def detect_frames(model: IDOL, shown: Iterable[np.ndarray], known: VideoTruth) -> Clip:
    """The network's own detections of these frames, (H, W, 3) uint8 RGB, of known truth."""
    settings = model.config
    frames, overlaps = [], []
    for t, frame in enumerate(shown):
        image = normalise(frame, settings.transforms)
        images, padding = collate_images([image], settings.transforms.size_divisor)
        size = (image.shape[1], image.shape[2])
        found = detections(model(images, padding), model, 0, t, size, known.size, settings.detect)
        frames.append(found)
        overlaps.append(frame_overlap(found.masks, truth_of_frame(known, t), known.size, t))
    return Clip(tuple(frames), tuple(overlaps), known.without_masks())


def score(
    clips: Sequence[Clip],
    config: TrackerConfig,
    *,
    cheat: bool = False,
    tracks: Callable[[Clip], list[Track]] | None = None,
) -> dict[str, float]:
    """METRICS of a tracker on these clips, in percent; IDSW is a count.

    clips:  of one data set, each its own video_id
    config: the tracker, and how its tracks are submitted
    cheat:  take the true identities instead of the tracker's
    tracks: what makes the tracks of a clip, instead of the tracker
    """
    make = tracks or (lambda clip: track_video(clip.frames, config))
    matches, counts = [], []
    for clip in clips:
        if cheat:
            rows = [admitted(frame, config).tolist() for frame in clip.frames]
            made = true_identity_tracks(clip, rows)
        else:
            made = make(clip)
        ids = clip.truth.categories
        matches.append(
            match_video_from_overlaps(
                made, clip.overlaps, clip.truth, category_ids=ids, config=config
            )
        )
        best = np.array([int(track.class_scores.argmax()) for track in made], np.int64)
        counts.append(
            count_overlaps(
                clip.truth.video_id, ids, _overlaps(made, clip),
                truth_categories=clip.truth.category_ids,
                track_categories=np.array(ids)[best] if len(best) else best,
                kept=np.array([float(t.class_scores.max()) >= COUNTED_SCORE for t in made], bool),
            )
        )  # fmt: skip
    precision = summarise(matches).stats
    tracking = summarise_tracking(counts).detection_averaged.values
    return {
        name: 100 * precision[name]
        if name in precision
        else tracking[name] * (1 if name == "IDSW" else 100)
        for name in METRICS
    }


def true_identity_tracks(clip: Clip, rows: Sequence[Sequence[int]]) -> list[Track]:
    """Tracks of a tracker that knows every true identity and drops what shows no instance.

    rows: per frame the detections to use. Unlike the frame oracle of `idol.analysis.oracles`, which
          takes a method's tracks, this takes what the method's tracker is given
    """
    detections: dict[int, dict[int, int]] = {}
    for frame, overlap, used in zip(clip.frames, clip.overlaps, rows, strict=True):
        for n, g in shown_instances(overlap, np.array(used, np.int64)):
            detections.setdefault(g, {})[frame.frame_index] = int(used[n])
    of_frame = {frame.frame_index: frame for frame in clip.frames}
    return [
        Track(
            g, found, torch.stack([of_frame[t].class_scores[r] for t, r in found.items()]).mean(0)
        )
        for g, found in sorted(detections.items())
    ]


def _overlaps(tracks: Sequence[Track], clip: Clip) -> TrackOverlaps:
    length, count = len(clip.frames), len(clip.truth)
    shared = np.zeros((length, len(tracks), count))
    area = np.zeros((len(tracks), length), np.int64)
    present = np.zeros((len(tracks), length), bool)
    for n, track in enumerate(tracks):
        for t, row in track.detections.items():
            shared[t, n] = clip.overlaps[t].intersection[row]
            area[n, t] = clip.overlaps[t].area[row]
            present[n, t] = True
    return TrackOverlaps(shared, area, clip.truth.areas, present, clip.truth.areas > 0)


Runs = Mapping[str, Sequence[Mapping[str, float]]]
"""Tracker → one row of METRICS for every seed."""


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % confidence interval (Student's t over seeds)."""
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return mean, math.nan
    spread = float(np.std(values, ddof=1)) / math.sqrt(count)
    return mean, float(stats.t.ppf(0.975, count - 1)) * spread


def table(name: str, runs: Runs, base: str) -> str:
    """Means over seeds, and paired differences to base with confidence intervals, as Markdown."""
    lines = []
    for tracker, rows in runs.items():
        cells = [f"{interval([row[m] for row in rows])[0]:.1f}" for m in METRICS]
        for metric in ("AP", "IDF1"):
            if tracker == base:
                cells.append("–")
                continue
            pairs = zip(rows, runs[base], strict=True)
            mean, half = interval([row[metric] - other[metric] for row, other in pairs])
            cells.append(f"{mean:+.1f} ± {half:.1f}")
        lines.append(f"| {name} | {tracker} | {' | '.join(cells)} |")
    return "\n".join(lines)


def heading(base: str) -> str:
    """The two first lines of such tables."""
    columns = ["videos", "tracker", *METRICS, f"AP − {base}", f"IDF1 − {base}"]
    return f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|"
