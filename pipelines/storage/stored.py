"""Stored detections, read back: what tracking, scoring and sweeping start from."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from idol.evaluation.overlaps import FrameOverlap
from idol.masks import rle
from pipelines.errors import ManifestError, intact
from pipelines.storage import layout, manifest, paths, schemas, tables
from pipelines.storage.manifest import Manifest
from pipelines.storage.paths import AnyPath
from pipelines.storage.schemas import ResultTrack

if TYPE_CHECKING:  # torch takes seconds to import
    from idol.structures import FrameDetections

_MASKS_PER_GROUP = 20_000  # of RESULTS, absent ones included: some megabytes
_WITHOUT_MASKS = [name for name in schemas.DETECTIONS.names if name != "masks"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredVideo:
    """Where the frames of one video are.

    size:   (height, width) of its frames
    length: its frames
    shards: numbers of the shards that hold them, in order
    """

    video_id: int
    size: tuple[int, int]
    length: int
    shards: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """An entry of a detect manifest's extra["videos"]."""
        return {
            "video_id": self.video_id,
            "height": self.size[0],
            "width": self.size[1],
            "length": self.length,
            "shards": list(self.shards),
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> StoredVideo:
        """The inverse of to_json."""
        size, shards = (entry["height"], entry["width"]), tuple(entry["shards"])
        return cls(video_id=entry["video_id"], size=size, length=entry["length"], shards=shards)


@dataclass(frozen=True, slots=True)
class StoredDetections:
    """A finished detect directory: where things are, not the things.

    videos: the readable ones by ascending video_id
    """

    path: AnyPath
    manifest: Manifest
    videos: tuple[StoredVideo, ...]

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The dataset's category_id of each label."""
        return tuple(self.manifest.config["category_ids"])

    @property
    def score_floor(self) -> float:
        """Detections at or below this score were not stored."""
        return float(self.manifest.config["detect"]["score_floor"])

    @property
    def has_truth(self) -> bool:
        """Whether the OVERLAP table was made."""
        return bool(self.manifest.extra["truth"])

    def frames(self, video: StoredVideo) -> Iterator[FrameDetections]:
        """The frames of a video in order, without masks. Holds one shard at a time."""
        sizes = {name: int(self.manifest.extra[name]) for name in ("num_classes", "embedding_size")}
        for path, row in self._rows(video, schemas.DETECTIONS, _WITHOUT_MASKS):
            with intact(path):
                frame = schemas.detections_from_row(row, **sizes)
            yield frame

    def masks(self, video: StoredVideo) -> Iterator[tuple[int, list[bytes]]]:
        """(frame_index, N compressed RLEs) of every frame, in order."""
        for _, row in self._rows(video, schemas.DETECTIONS, ["video_id", "frame_index", "masks"]):
            yield int(row["frame_index"]), list(row["masks"])

    def overlaps(self, video: StoredVideo) -> Iterator[FrameOverlap]:
        """How each frame's detections lie on its truth, in order."""
        for path, row in self._rows(video, schemas.OVERLAP, schemas.OVERLAP.names, "overlap"):
            with intact(path):
                overlap = schemas.overlap_from_row(row)
            yield overlap

    def _rows(
        self, video: StoredVideo, schema: pa.Schema, columns: Sequence[str], prefix: str = "shard"
    ) -> Iterator[tuple[AnyPath, dict[str, Any]]]:
        """Each frame's row and the file that it is in; ManifestError: a frame is not there once."""
        expected = 0
        for number in video.shards:
            path = layout.shard_path(self.path, number, prefix)
            table = tables.read(path, schema, columns)
            for row in schemas.rows(table.filter(pc.equal(table["video_id"], video.video_id))):
                if row["frame_index"] != expected:
                    raise self._damaged(video, f"frame {row['frame_index']} follows {expected - 1}")
                expected += 1
                yield path, row
        if expected != video.length:
            raise self._damaged(video, f"{expected} of {video.length} frames are there")

    def _damaged(self, video: StoredVideo, what: str) -> ManifestError:
        reason = f"is damaged: of video {video.video_id}, {what}"
        return ManifestError(str(self.path), reason, "Make it again with --overwrite.")


def read(path: str | AnyPath) -> StoredDetections:
    """Open a finished detect directory.

    Raises: ManifestError: it is none, unfinished, or has lost a file.
    """
    # Absolute, for it is opened in workers too, whose working directory is another.
    path = paths.at(path)
    found = manifest.read(path, layout.DETECT)
    manifest.shard_paths(path, layout.DETECT)
    with intact(path / manifest.MANIFEST):
        videos = tuple(StoredVideo.from_json(entry) for entry in found.extra["videos"])
        source = StoredDetections(path, found, videos)
        # What the methods read of the manifest: faults are found here, and not by a worker.
        _ = source.category_ids, source.score_floor
        _ = int(found.extra["num_classes"]), int(found.extra["embedding_size"])
        if source.has_truth:
            manifest.shard_paths(path, layout.DETECT, "overlap")
    return source


def write_results(rows: Iterable[ResultTrack], length: int, path: AnyPath) -> None:
    """A video's RESULTS; length: its frames. Few of the masks are in memory at a time."""
    made = map(schemas.result_to_row, rows)
    size = max(1, _MASKS_PER_GROUP // length)
    groups = iter(lambda: list(itertools.islice(made, size)), [])
    written = itertools.chain([next(groups, [])], groups)  # one at least, of a video without rows
    parts = (schemas.table(group, schemas.RESULTS) for group in written)
    tables.commit_groups(parts, schemas.RESULTS, path)


def read_results(out: AnyPath, position: int, source: StoredDetections) -> Iterator[ResultTrack]:
    """RESULTS of the video at this position of source.videos, few of whose masks are in memory.

    Raises: ManifestError: they are damaged.
    """
    path, video = layout.shard_path(out, position), source.videos[position]
    seen: set[tuple[int, int]] = set()
    for table in tables.read_groups(path, schemas.RESULTS):
        with intact(path):
            found = [schemas.result_from_row(row) for row in schemas.rows(table)]
            for row in found:
                if row.video_id != video.video_id or row.label >= len(source.category_ids):
                    raise ValueError(f"video {row.video_id}, label {row.label}: there is none")
                if len(row.segmentations) != video.length:
                    raise ValueError(f"{len(row.segmentations)} masks for {video.length} frames")
                if (row.track_id, row.label) in seen:
                    raise ValueError("a track is there twice")
                seen.add((row.track_id, row.label))
            check_masks((row.segmentations for row in found), video.size)
        yield from found


def check_masks(tracks: Iterable[Iterable[bytes | None]], size: tuple[int, int]) -> None:
    """Raise ValueError where a mask is no compressed RLE of (height, width) = size."""
    different = dict.fromkeys(mask for track in tracks for mask in track if mask is not None)
    pixels = rle.measure(list(different))[0]
    if (pixels != size[0] * size[1]).any():
        raise ValueError(f"a mask is no compressed RLE of {size[0]} x {size[1]} pixels")
