"""Metrics of stored detections: every video by itself, anywhere, and one sum of the matches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from idol.config import TrackerConfig
from idol.evaluation import average_precision, identities, matching
from idol.evaluation.average_precision import Metrics
from idol.evaluation.matching import VideoMatches
from idol.evaluation.stored_overlaps import VideoOverlaps
from idol.structures import FrameDetections
from idol.tracker.online import admitted, track_video
from idol.ytvis.truth import Truth, VideoTruth
from pipelines import cluster
from pipelines.stages import track
from pipelines.storage.reports import VideoMetrics
from pipelines.storage.stored import StoredDetections, StoredVideo


@dataclass(frozen=True, slots=True)
class StoredMetrics:
    """What a tracker makes of stored detections.

    metrics:         of the whole dataset
    per_video:       of each video with true instances, without its name
    true_identities: as metrics, for a tracker that knows every true identity; the difference is
                     what association loses
    """

    metrics: Metrics
    per_video: list[VideoMetrics]
    true_identities: Metrics


@dataclass(frozen=True, slots=True)
class MeasuredVideo:
    """What one video adds to StoredMetrics; row is None where it has no instance."""

    matches: VideoMatches
    true_identities: VideoMatches
    row: VideoMetrics | None


def measure(
    truth: Truth, source: StoredDetections, tracker: TrackerConfig, few_frames: int | None = None
) -> StoredMetrics:
    """Metrics of what the tracker makes of stored detections, and of what true identities would.

    few_frames: up to this many the driver works by itself, without Ray; None: track.FEW_FRAMES
    """
    stored = {video.video_id: video for video in source.videos}
    parts: dict[int, MeasuredVideo] = {}
    work: list[tuple[StoredVideo, VideoTruth]] = []
    for video_id, known in truth.videos.items():
        if video_id in stored:
            work.append((stored[video_id], known.without_masks()))
        else:
            missed = matching.match_video([], known)
            parts[video_id] = MeasuredVideo(missed, missed, None)
    work.sort(key=lambda pair: (-pair[0].length, pair[0].video_id))
    few = track.FEW_FRAMES if few_frames is None else few_frames
    here = sum(video.length for video, _ in work) <= few
    for item, part in cluster.videos(_measure_one, (source, tracker), work, "score", here):
        parts[item[0].video_id] = part
    ordered = [parts[video_id] for video_id in truth.videos]
    return StoredMetrics(
        average_precision.summarise(part.matches for part in ordered),
        [part.row for part in ordered if part.row is not None],
        average_precision.summarise(part.true_identities for part in ordered),
    )


def measure_video(
    source: StoredDetections, video: StoredVideo, truth: VideoTruth, tracker: TrackerConfig
) -> MeasuredVideo:
    """Measure one video; the masks of its truth are not needed."""
    overlaps = list(source.overlaps(video))
    known = VideoOverlaps.read(overlaps, truth)
    frames: list[FrameDetections] = []
    rows: list[list[int]] = []

    def passing() -> Iterator[FrameDetections]:
        """The frames one by one; what stays of a long video is a few numbers of each."""
        for frame in source.frames(video):
            count = len(frame)
            nothing = frame.embeddings.new_zeros(count, 0)
            zeros = frame.overlaps.new_zeros(1).expand(count, count)
            frames.append(replace(frame, embeddings=nothing, overlaps=zeros, masks=()))
            # The tracker that knows every identity gets the detections that the real one gets.
            rows.append(admitted(frame, tracker).tolist())
            yield frame

    tracks = track_video(passing(), tracker)
    matches = known.matches(tracks, source.category_ids, tracker)
    perfect = identities.true_identity_tracks(frames, overlaps, rows=rows)
    row = None
    if matches.num_truth:
        row = VideoMetrics(
            video_id=video.video_id,
            stats=average_precision.summarise([matches]).stats,
            tracks=len(tracks),
            truth=len(truth),
            switches=identities.identity_switches(tracks, overlaps),
        )
    return MeasuredVideo(matches, known.matches(perfect, source.category_ids, tracker), row)


def _measure_one(
    shared: tuple[StoredDetections, TrackerConfig], item: tuple[StoredVideo, VideoTruth]
) -> MeasuredVideo:
    import torch

    torch.set_num_threads(1)
    return measure_video(shared[0], *item, shared[1])
