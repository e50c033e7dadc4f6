"""Which frames lie in which shard depends on the dataset alone."""

from hypothesis import given
from hypothesis import strategies as st

from pipelines.sources.annotations import VideoRecord
from pipelines.stages import shard_plan
from pipelines.storage.stored import StoredVideo


def video(video_id: int, length: int, height: int = 8) -> VideoRecord:
    frames = tuple(f"{video_id}/{i}.jpg" for i in range(length))
    return VideoRecord(video_id, (height, 8), frames, ())


@given(
    drawn=st.lists(st.tuples(st.integers(1, 30), st.integers(7, 9)), max_size=12),
    size=st.integers(1, 16),
)
def test_a_plan_deals_out_every_frame_once_and_fills_no_shard_beyond_its_size(
    drawn: list[tuple[int, int]], size: int
) -> None:
    videos = [video(i, length, height) for i, (length, height) in enumerate(drawn)]
    shards = shard_plan.plan(videos[::-1], size)
    frames = [
        (piece.video_id, piece.start + i)
        for shard in shards
        for piece in shard
        for i in range(len(piece.frames))
    ]
    # Of one size together, so that batches are full: only frames of one shape share one.
    by_size = sorted(videos, key=lambda v: v.size[0])
    assert frames == [(v.video_id, i) for v in by_size for i in range(len(v))]
    assert all(0 < sum(len(p.frames) for p in shard) <= size for shard in shards)


def test_stored_videos_say_in_which_shards_their_frames_are() -> None:
    shards = shard_plan.plan([video(1, 3), video(2, 6), video(3, 1)], 4)
    assert [[(p.video_id, len(p.frames)) for p in shard] for shard in shards] == [
        [(1, 3)], [(2, 4)], [(2, 2), (3, 1)]
    ]  # fmt: skip
    found = shard_plan.stored_videos(shards)
    assert found[2] == StoredVideo(video_id=2, size=(8, 8), length=6, shards=(1, 2))
    assert found[3] == StoredVideo(video_id=3, size=(8, 8), length=1, shards=(2,))
    assert all(StoredVideo.from_json(v.to_json()) == v for v in found.values())


def test_shards_of_long_videos_are_computed_first_and_together() -> None:
    shards = shard_plan.plan([video(1, 3), video(2, 6), video(3, 9)], 4)
    order = shard_plan.longest_first(shards, range(len(shards)))
    longest = [max(len_of(p.video_id) for p in shards[number]) for number in order]
    assert longest == sorted(longest, reverse=True)
    assert shard_plan.longest_first(shards, [0]) == [0]


def len_of(video_id: int) -> int:
    return {1: 3, 2: 6, 3: 9}[video_id]
