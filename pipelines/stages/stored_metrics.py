"""Metrics of stored detections: every video by itself, anywhere, and one sum of the matches."""

from __future__ import annotations

from dataclasses import dataclass

from idol.analysis import oracles
from idol.analysis.oracles import OracleExperiments, VideoOracles
from idol.config import AnalysisConfig, TrackerConfig
from idol.evaluation import average_precision, identities, matching
from idol.evaluation.stored_overlaps import VideoOverlaps
from idol.spool import Mapped
from idol.tracker.online import track_video
from idol.ytvis.truth import Truth, VideoTruth
from pipelines import cluster
from pipelines.stages import track
from pipelines.storage.reports import VideoMetrics
from pipelines.storage.stored import StoredDetections, StoredVideo


@dataclass(frozen=True, slots=True)
class StoredMetrics:
    """What a tracker makes of stored detections.

    oracles:   metrics of the whole dataset: predicted, frame oracle and upper bound
    per_video: of each video with true instances, without its name
    """

    oracles: OracleExperiments
    per_video: list[VideoMetrics]


@dataclass(frozen=True, slots=True)
class MeasuredVideo:
    """What one video adds to StoredMetrics; row is None where it has no instance."""

    oracles: VideoOracles
    row: VideoMetrics | None


def measure(
    truth: Truth, source: StoredDetections, tracker: TrackerConfig, few_frames: int | None = None
) -> StoredMetrics:
    """Metrics of what the tracker makes of stored detections, and of what it could make at best.

    few_frames: up to this many the driver works by itself, without Ray; None: track.FEW_FRAMES
    """
    stored = {video.video_id: video for video in source.videos}
    parts: dict[int, MeasuredVideo] = {}
    for video_id in truth.videos.keys() - stored.keys():
        missed = matching.match_video([], truth.videos[video_id])
        parts[video_id] = MeasuredVideo(VideoOracles(missed, missed, {}, missed), None)
    videos = [stored[video_id] for video_id in truth.videos if video_id in stored]
    videos.sort(key=lambda video: (-video.length, video.video_id))
    work = Mapped(lambda video: (video, truth.videos[video.video_id].without_masks()), videos)
    few = track.FEW_FRAMES if few_frames is None else few_frames
    here = sum(video.length for video in videos) <= few
    for item, part in cluster.videos(_measure_one, (source, tracker), work, "score", here):
        parts[item[0].video_id] = part
    ordered = [parts[video_id] for video_id in truth.videos]
    return StoredMetrics(
        oracles.summarise([part.oracles for part in ordered]),
        [part.row for part in ordered if part.row is not None],
    )


def measure_video(
    source: StoredDetections, video: StoredVideo, truth: VideoTruth, tracker: TrackerConfig
) -> MeasuredVideo:
    """Measure one video; the masks of its truth are not needed."""
    overlaps = list(source.overlaps(video))
    known = VideoOverlaps.read(overlaps, truth)
    tracks = track_video(source.frames(video), tracker)
    predicted = oracles.stored_prediction(known, tracks, source.category_ids, tracker)
    found = oracles.match_oracles(predicted, truth, (), AnalysisConfig())
    row = None
    if found.predicted.num_truth:
        row = VideoMetrics(
            video_id=video.video_id,
            stats=average_precision.summarise([found.predicted]).stats,
            tracks=len(tracks),
            truth=len(truth),
            switches=identities.identity_switches(tracks, overlaps),
        )
    return MeasuredVideo(found, row)


def _measure_one(
    shared: tuple[StoredDetections, TrackerConfig], item: tuple[StoredVideo, VideoTruth]
) -> MeasuredVideo:
    import torch

    torch.set_num_threads(1)
    return measure_video(shared[0], *item, shared[1])
