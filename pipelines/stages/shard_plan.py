"""Which frames lie in which shard of the detections: a function of the dataset alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from pipelines.sources.annotations import VideoRecord
from pipelines.storage.stored import StoredVideo


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Consecutive frames of one video, and its truth there.

    size:   (height, width) of every frame
    start:  index of the first frame in the video
    frames: frame references
    truth:  for each of the G true instances, one compressed RLE or None per frame
    """

    video_id: int
    size: tuple[int, int]
    start: int
    frames: tuple[str, ...]
    truth: tuple[tuple[bytes | None, ...], ...]


Shard = Sequence[Piece]


def plan(videos: Iterable[VideoRecord], frames_per_shard: int) -> list[list[Piece]]:
    """Deal videos into shards, in order of size and video_id; a long video is cut into several.

    Videos of one size lie together because only frames of one shape share a batch, and because an
    actor on a GPU keeps the graphs of few shapes. A shard holds 1..frames_per_shard frames.
    """
    shards: list[list[Piece]] = []
    free = 0
    for video in sorted(videos, key=lambda v: (v.size, v.video_id)):
        for start in range(0, len(video.frames), frames_per_shard):
            stop = min(start + frames_per_shard, len(video.frames))
            if stop - start > free:
                shards.append([])
                free = frames_per_shard
            free -= stop - start
            piece = Piece(
                video_id=video.video_id,
                size=video.size,
                start=start,
                frames=tuple(video.frames[start:stop]),
                truth=tuple(tuple(i.segmentations[start:stop]) for i in video.instances),
            )
            shards[-1].append(piece)
    return shards


def stored_videos(shards: Sequence[Shard]) -> dict[int, StoredVideo]:
    """Where the frames of each video are, so that a reader opens only those files; by video_id."""
    parts: dict[int, list[tuple[int, Piece]]] = {}
    for number, pieces in enumerate(shards):
        for piece in pieces:
            parts.setdefault(piece.video_id, []).append((number, piece))
    return {
        video_id: StoredVideo(
            video_id=video_id,
            size=found[0][1].size,
            length=sum(len(piece.frames) for _, piece in found),
            shards=tuple(dict.fromkeys(number for number, _ in found)),
        )
        for video_id, found in sorted(parts.items())
    }


def longest_first(shards: Sequence[Shard], todo: Collection[int]) -> list[int]:
    """The numbers of todo in the order to compute them: shards of long videos first, together.

    A long video that is detected last would keep every machine waiting for its tracking.
    """
    videos = stored_videos(shards)

    def rank(number: int) -> tuple[int, int, int]:
        length, video_id = max((videos[p.video_id].length, -p.video_id) for p in shards[number])
        return -length, -video_id, number

    return sorted(todo, key=rank)
