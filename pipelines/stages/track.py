"""Stored detections to results: one video is one task, for association is sequential in time."""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from idol.config import TrackerConfig, to_dict
from idol.files import write_whole
from idol.tracker.online import track_video
from idol.ytvis import results
from pipelines import cluster
from pipelines.errors import PipelineError
from pipelines.storage import claims, layout, schemas, stored, tables
from pipelines.storage.layout import RESULTS, SUBMISSION
from pipelines.storage.layout import TRACK as STAGE
from pipelines.storage.manifest import Manifest
from pipelines.storage.schemas import ResultTrack
from pipelines.storage.stored import StoredDetections, StoredVideo

FEW_FRAMES = 5000
"""Up to here the driver tracks by itself: a frame takes about a millisecond, and fresh workers
import torch for ten seconds and more before they begin (2 cores)."""


def results_of_video(
    detections: StoredDetections, video: StoredVideo, config: TrackerConfig
) -> list[ResultTrack]:
    """Track one video: its rows of RESULTS, in the order of results.submissions.

    Reads twice, arrays first and masks afterwards, so that memory holds the masks of tracks and
    one shard, not those of all detections.
    """
    tracks = track_video(detections.frames(video), config)
    users: dict[int, list[tuple[int, int]]] = {}  # frame_index -> (track position, row)
    for position, track in enumerate(tracks):
        for frame_index, row in track.detections.items():
            users.setdefault(frame_index, []).append((position, row))
    segmentations: list[list[bytes | None]] = [[None] * video.length for _ in tracks]
    for frame_index, masks in detections.masks(video):
        for position, row in users.get(frame_index, ()):
            segmentations[position][frame_index] = masks[row]
    return [
        ResultTrack(
            video_id=video.video_id,
            track_id=tracks[chosen.track].track_id,
            label=chosen.label,
            score=chosen.score,
            segmentations=tuple(segmentations[chosen.track]),
        )
        for chosen in results.submissions(tracks, config)
    ]


def to_entry(
    result: ResultTrack, size: tuple[int, int], category_ids: tuple[int, ...]
) -> dict[str, Any]:
    """A row of RESULTS as an entry of a YouTube-VIS results file."""
    return {
        "video_id": result.video_id,
        "category_id": category_ids[result.label],
        "score": result.score,
        "segmentations": [
            None if counts is None else {"size": list(size), "counts": counts.decode("ascii")}
            for counts in result.segmentations
        ],
    }


def run(
    detections: Path,
    out: Path,
    config: TrackerConfig,
    *,
    overwrite: bool = False,
    few_frames: int | None = None,
    ahead: Path | None = None,
) -> Manifest:
    """Track every stored video; write RESULTS, results.json and the servers' results.zip to out.

    detections: a finished detect directory
    few_frames: up to this many the driver tracks by itself, without Ray; default: FEW_FRAMES
    ahead:      a folder of videos that TrackAhead has tracked already, with the same configuration
                on the same detections; they are moved from there
    returns:    the manifest. Equal runs give equal bytes; an interrupted run is continued
    Raises:
        ManifestError: the detections are unfinished, or out holds another output.
        PipelineError: the score_threshold is below what was stored.
    """
    source = stored.read(detections)
    check_floor(source, config)
    output = claims.prepare_output(
        out, STAGE, to_dict(config), source.manifest.hash, overwrite=overwrite
    )
    if output.finished is not None:
        return output.finished
    if ahead is not None:
        _take(ahead, source, output)
    _track(source, output, config, FEW_FRAMES if few_frames is None else few_frames)
    entries = list(read_entries(out, source))
    results.write(out / RESULTS, entries)
    write_whole(out / SUBMISSION, _zipped((out / RESULTS).read_bytes()))
    return output.finish(
        total_shards=len(source.videos),
        rejects=tables.read_rejects(source.path),
        extra={"detections": str(source.path.resolve())},
    )


def read_entries(out: Path, source: StoredDetections) -> Iterator[dict[str, Any]]:
    """All results as entries of a YouTube-VIS results file, in the order of the videos."""
    for position, video in enumerate(source.videos):
        for result in stored.read_results(out, position):
            yield to_entry(result, video.size, source.category_ids)


def check_floor(source: StoredDetections, config: TrackerConfig) -> None:
    """Refuse a score threshold below that of the stored detections.

    Raises: PipelineError: it does.
    """
    if config.score_threshold < source.score_floor:
        raise PipelineError(
            f"tracker.score_threshold is {config.score_threshold:g}, but {source.path} holds only "
            f"detections above {source.score_floor:g}. Ask for at least that, or detect again with "
            f"--set detect.score_floor={config.score_threshold:g}."
        )


def _track(
    source: StoredDetections, output: claims.Output, config: TrackerConfig, few_frames: int
) -> None:
    """One Ray task per missing video, the longest first: a long one at the end would run alone."""
    missing = output.missing(len(source.videos))
    shared = (source, config, str(output.path.resolve()))
    longest_first = sorted(missing, key=lambda i: (-source.videos[i].length, i))
    here = sum(source.videos[i].length for i in missing) <= few_frames
    for _ in cluster.videos(_track_one, shared, longest_first, "track", here):
        pass


def _take(ahead: Path, source: StoredDetections, output: claims.Output) -> None:
    """Move what was tracked ahead to its place among the shards."""
    for position in output.missing(len(source.videos)):
        path = ahead_path(ahead, source.videos[position].video_id)
        if path.exists():
            path.replace(output.shard(position))
    shutil.rmtree(ahead, ignore_errors=True)


def ahead_path(folder: Path, video_id: int) -> Path:
    """Where the results of a video lie that was tracked ahead."""
    return folder / f"video-{video_id}.parquet"


def _track_one(shared: tuple[StoredDetections, TrackerConfig, str], position: int) -> None:
    """The task: a video's results become a finished file, or nothing."""
    source, config, out = shared
    write_video(source, source.videos[position], config, layout.shard_path(Path(out), position))


def write_video(
    source: StoredDetections, video: StoredVideo, config: TrackerConfig, path: Path
) -> None:
    """Track one video into a file of its own."""
    import torch

    torch.set_num_threads(1)
    rows = [schemas.result_to_row(result) for result in results_of_video(source, video, config)]
    tables.commit(schemas.table(rows, schemas.RESULTS), path)


def _zipped(data: bytes) -> bytes:
    """results.json in the archive that the evaluation servers take; equal data, equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        # The time of day would make equal runs differ.
        archive.writestr(
            zipfile.ZipInfo(RESULTS, (1980, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED
        )
    return buffer.getvalue()
