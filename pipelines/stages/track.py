"""Stored detections to results: one video is one task, for association is sequential in time."""

from __future__ import annotations

from collections.abc import Iterator

from idol.config import TrackerConfig, to_dict
from idol.spool import Spool
from idol.tracker.online import track_video
from idol.ytvis import results, submission
from pipelines import cluster
from pipelines.errors import PipelineError, intact
from pipelines.storage import claims, layout, paths, stored, tables
from pipelines.storage.layout import RESULTS, SUBMISSION, TRACK
from pipelines.storage.manifest import Manifest
from pipelines.storage.paths import AnyPath
from pipelines.storage.schemas import ResultTrack
from pipelines.storage.stored import StoredDetections, StoredVideo

FEW_FRAMES = 5000
"""Up to here the driver tracks by itself: a frame takes about a millisecond, and fresh workers take
seconds, on cores that detection wants, before they begin (2 cores)."""

_CHECKED_AT_ONCE = 1000  # masks


def results_of_video(
    detections: StoredDetections, video: StoredVideo, config: TrackerConfig
) -> list[ResultTrack]:
    """Track one video: its rows of RESULTS, in the order of results.class_entries."""
    # Reads twice, arrays first: memory holds what is in one shard, and the masks of tracks nowhere.
    tracks = track_video(detections.frames(video), config)
    store = Spool[bytes]()
    masks = results.masks_of_tracks(
        tracks, detections.masks(video), video_id=video.video_id, length=video.length, store=store
    )
    with intact(detections.path):
        for first in range(0, len(store), _CHECKED_AT_ONCE):
            stored.check_masks([store[first : first + _CHECKED_AT_ONCE]], video.size)
    return [
        ResultTrack(
            video_id=video.video_id,
            track_id=tracks[chosen.track].track_id,
            label=chosen.label,
            score=chosen.score,
            segmentations=masks[chosen.track],
        )
        for chosen in results.class_entries(tracks, config)
    ]


def run(
    detections: AnyPath,
    out: AnyPath,
    config: TrackerConfig,
    *,
    overwrite: bool = False,
    few_frames: int | None = None,
    ahead: AnyPath | None = None,
) -> Manifest:
    """Track every stored video; write RESULTS, results.json and the servers' results.zip to out.

    Equal runs give equal bytes; an interrupted run is continued.

    detections: a finished detect directory
    few_frames: up to this many the driver tracks by itself, without Ray; None: FEW_FRAMES
    ahead:      a folder of what TrackAhead has tracked already with the same configuration on the
                same detections; it is moved from there
    Raises:
        ManifestError: the detections are unfinished, or out holds another output.
        PipelineError: the score_threshold is below what was stored.
    """
    source = stored.read(detections)
    check_floor(source, config)
    output = claims.prepare_output(
        out, TRACK, to_dict(config), source.manifest.hash, overwrite=overwrite
    )
    if output.finished is not None:
        return output.finished
    if ahead is not None:
        for position in output.missing(len(source.videos)):
            path = ahead_path(ahead, source.videos[position].video_id)
            if path.exists():
                paths.move(path, output.shard(position))
        paths.remove_tree(ahead)
    missing = output.missing(len(source.videos))
    # A long one at the end would run alone.
    longest_first = sorted(missing, key=lambda i: (-source.videos[i].length, i))
    few = FEW_FRAMES if few_frames is None else few_frames
    here = sum(source.videos[i].length for i in missing) <= few
    shared = (source, config, str(paths.at(out)))
    for _ in cluster.videos(_track_one, shared, longest_first, "track", here):
        pass
    with paths.whole_file(out / RESULTS) as written:
        results.write(written, _entries(source, output))
    with paths.local_file(out / RESULTS) as written, paths.whole_file(out / SUBMISSION) as archive:
        submission.zip_results(written, archive)
    return output.finish(
        total_shards=len(source.videos),
        rejects=tables.read_rejects(source.path),
        extra={"detections": str(source.path.resolve())},
    )


def _entries(source: StoredDetections, output: claims.Output) -> Iterator[results.Entry]:
    """Those of every video, few of whose masks are in memory; output is told the shards' rows."""
    for position, video in enumerate(source.videos):
        count = 0
        for row in stored.read_results(output.path, position, source):
            count += 1
            category = source.category_ids[row.label]
            yield results.entry(row.video_id, category, row.score, row.segmentations, video.size)
        output.note(position, count)


def check_floor(source: StoredDetections, config: TrackerConfig) -> None:
    """Raise PipelineError where the score threshold is below that of the stored detections."""
    if config.score_threshold < source.score_floor:
        raise PipelineError(
            f"tracker.score_threshold is {config.score_threshold:g}, but {source.path} holds only "
            f"detections above {source.score_floor:g}. Ask for at least that, or detect again with "
            f"--set detect.score_floor={config.score_threshold:g}."
        )


def ahead_path(folder: AnyPath, video_id: int) -> AnyPath:
    """Where the results of a video lie that was tracked ahead."""
    return folder / f"video-{video_id}.parquet"


def _track_one(shared: tuple[StoredDetections, TrackerConfig, str], position: int) -> None:
    """The task: a video's results become a finished file, or nothing."""
    source, config, out = shared
    write_video(source, source.videos[position], config, layout.shard_path(paths.at(out), position))


def write_video(
    source: StoredDetections, video: StoredVideo, config: TrackerConfig, path: AnyPath
) -> None:
    """Track one video into a file of its own."""
    import torch

    torch.set_num_threads(1)
    stored.write_results(results_of_video(source, video, config), video.length, path)
