"""Which frames lie in which shard of the detections: a function of the dataset alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial

from idol.spool import Mapped
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Where a Piece lies: frames start..stop-1 of the video at this position of the data set."""

    position: int
    video_id: int
    size: tuple[int, int]
    start: int
    stop: int


class Shard(Mapped[Cut, Piece]):
    """The pieces of one shard, each made of its video when asked for; cuts: where they lie."""

    __slots__ = ("cuts",)

    def __init__(self, videos: Sequence[VideoRecord], cuts: Sequence[Cut]) -> None:
        super().__init__(partial(_piece, videos), cuts)
        self.cuts = cuts

    @property
    def frames(self) -> int:
        """Number of frames."""
        return sum(cut.stop - cut.start for cut in self.cuts)


def _piece(videos: Sequence[VideoRecord], cut: Cut) -> Piece:
    video, inside = videos[cut.position], slice(cut.start, cut.stop)
    return Piece(
        video_id=video.video_id,
        size=video.size,
        start=cut.start,
        frames=tuple(video.frames[inside]),
        truth=tuple(tuple(i.segmentations[inside]) for i in video.instances),
    )


def plan(videos: Sequence[VideoRecord], frames_per_shard: int) -> list[Shard]:
    """Deal videos into shards, in order of size and video_id; a long video is cut into several.

    Videos of one size lie together because only frames of one shape share a batch, and because an
    actor on a GPU keeps the graphs of few shapes. A shard holds 1..frames_per_shard frames.
    """
    shards: list[list[Cut]] = []
    free = 0
    order = sorted((v.size, v.video_id, place, len(v)) for place, v in enumerate(videos))
    for size, video_id, position, length in order:
        for start in range(0, length, frames_per_shard):
            stop = min(start + frames_per_shard, length)
            if stop - start > free:
                shards.append([])
                free = frames_per_shard
            free -= stop - start
            cut = Cut(position=position, video_id=video_id, size=size, start=start, stop=stop)
            shards[-1].append(cut)
    return [Shard(videos, cuts) for cuts in shards]


def stored_videos(shards: Sequence[Shard]) -> dict[int, StoredVideo]:
    """Where the frames of each video are, so that a reader opens only those files; by video_id."""
    parts: dict[int, list[tuple[int, Cut]]] = {}
    for number, shard in enumerate(shards):
        for cut in shard.cuts:
            parts.setdefault(cut.video_id, []).append((number, cut))
    return {
        video_id: StoredVideo(
            video_id=video_id,
            size=found[0][1].size,
            length=sum(cut.stop - cut.start for _, cut in found),
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
        cuts = shards[number].cuts
        length, video_id = max((videos[cut.video_id].length, -cut.video_id) for cut in cuts)
        return -length, -video_id, number

    return sorted(todo, key=rank)
