"""Stored detections, read back: what tracking, scoring and sweeping start from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from idol.evaluation.overlaps import FrameOverlap
from pipelines.errors import ManifestError
from pipelines.storage import layout, manifest, schemas
from pipelines.storage.manifest import Manifest
from pipelines.storage.schemas import ResultTrack

if TYPE_CHECKING:  # torch takes seconds to import
    from idol.structures import FrameDetections

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

    path: Path
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
        expected = 0
        for row in self._rows(video, _WITHOUT_MASKS):
            if row["frame_index"] != expected:
                raise self._damaged(video, f"frame {row['frame_index']} follows {expected - 1}")
            expected += 1
            yield schemas.detections_from_row(
                row,
                num_classes=int(self.manifest.extra["num_classes"]),
                embedding_size=int(self.manifest.extra["embedding_size"]),
            )
        if expected != video.length:
            raise self._damaged(video, f"{expected} of {video.length} frames are there")

    def masks(self, video: StoredVideo) -> Iterator[tuple[int, list[bytes]]]:
        """(frame_index, N compressed RLEs) of every frame, in order."""
        for row in self._rows(video, ["video_id", "frame_index", "masks"]):
            yield int(row["frame_index"]), list(row["masks"])

    def overlaps(self, video: StoredVideo) -> Iterator[FrameOverlap]:
        """How each frame's detections lie on its truth, in order."""
        for row in self._rows(video, schemas.OVERLAP.names, prefix="overlap"):
            yield schemas.overlap_from_row(row)

    def _rows(
        self, video: StoredVideo, columns: Sequence[str], prefix: str = "shard"
    ) -> Iterator[dict[str, Any]]:
        for number in video.shards:
            path = layout.shard_path(self.path, number, prefix)
            chosen = [("video_id", "=", video.video_id)]
            yield from schemas.rows(pq.read_table(path, columns=list(columns), filters=chosen))

    def _damaged(self, video: StoredVideo, what: str) -> ManifestError:
        reason = f"is damaged: of video {video.video_id}, {what}"
        return ManifestError(str(self.path), reason, "Make it again with --overwrite.")


def read(path: str | Path) -> StoredDetections:
    """Open a finished detect directory.

    Raises: ManifestError: it is none, unfinished, or has lost a file.
    """
    # Absolute, for it is opened in workers too, whose working directory is another.
    path = Path(path).resolve()
    found = manifest.read(path, layout.DETECT)
    manifest.shard_paths(path, layout.DETECT)
    videos = tuple(StoredVideo.from_json(entry) for entry in found.extra["videos"])
    source = StoredDetections(path, found, videos)
    if source.has_truth:
        manifest.shard_paths(path, layout.DETECT, "overlap")
    return source


def read_results(out: Path, position: int) -> list[ResultTrack]:
    """RESULTS of the video at this position of StoredDetections.videos."""
    table = pq.read_table(layout.shard_path(out, position))
    return [schemas.result_from_row(row) for row in schemas.rows(table)]
