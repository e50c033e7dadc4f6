"""Films and maps of a clip, decoded again."""

import io
import zlib

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from idol.masks import rle
from pipelines.report.viewer import clip

SIZE = (64, 96)


def pictures(count: int, size: tuple[int, int] = SIZE, noise: float = 0.0) -> list[clip.Image]:
    """Frames that can be told apart: each of one grey level."""
    rng = np.random.default_rng(0)
    return [
        np.clip(np.full((*size, 3), 20.0 + 12 * n) + noise * rng.normal(size=(*size, 3)), 0, 255)
        .round()
        .astype(np.uint8)
        for n in range(count)
    ]


def decoded(film: bytes) -> list[NDArray[np.uint8]]:
    with av.open(io.BytesIO(film)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def squares(*corners: tuple[int, int]) -> list[bytes]:
    """A 32-pixel square at (top, left), one frame each."""
    masks = np.zeros((len(corners), *SIZE), np.uint8)
    for mask, (top, left) in zip(masks, corners, strict=True):
        mask[top : top + 32, left : left + 32] = 1
    return rle.encode_masks(masks)


def test_a_film_has_every_frame_in_its_place() -> None:
    frames = decoded(clip.film(pictures(12), 40))
    assert [round((frame.mean() - 20) / 12) for frame in frames] == list(range(12))
    assert frames[0].shape == (*SIZE, 3)


def test_equal_films_are_equal_bytes() -> None:
    assert clip.film(pictures(5), 40) == clip.film(pictures(5), 40)


def test_a_map_has_the_best_track_on_top() -> None:
    first, second = squares((0, 0), (32, 0)), squares((0, 16), (0, 16))
    made = clip.make(pictures(2), [0, 1], {"run0": [first, second]}, SIZE, 100_000)
    maps = np.frombuffer(zlib.decompress(made.maps["run0"]), np.uint8).reshape(2, *SIZE)
    assert set(np.unique(maps)) == {0, 1, 2}
    assert (maps[0, :32, :32] == 1).all()  # both cover columns 16 to 31
    assert (maps[0, :32, 32:48] == 2).all()
    assert (maps[1, 32:, :32] == 1).all()
    assert (maps == 1).sum() == 2 * 32 * 32


def test_a_clip_takes_fewer_frames_where_all_would_not_fit() -> None:
    images, masks = pictures(20, noise=40), squares(*[(0, 0)] * 20)
    whole = clip.make(images, range(20), {"truth": [masks]}, SIZE, 10**9)
    half = clip.make(images, range(20), {"truth": [masks]}, SIZE, whole.bytes // 4)
    assert whole.frames == tuple(range(20))
    assert half.bytes <= whole.bytes // 4
    assert 4 <= len(half.frames) < 20
    assert (half.frames[0], half.frames[-1]) == (0, 19)
    assert len(decoded(half.film)) == len(half.frames)
    tiny = clip.make(images, range(20), {"truth": [masks]}, SIZE, 1)
    assert len(tiny.frames) == 4


@pytest.mark.parametrize(
    ("size", "budget", "expected"),
    [
        ((1080, 1920), 300_000, (270, 480)),
        ((1080, 1920), 75_000, (180, 320)),
        ((128, 192), 300_000, (128, 192)),  # never enlarged
        ((99, 101), 300_000, (100, 100)),  # VP9 needs even sides here
        ((1, 1), 300_000, (2, 2)),
    ],
)
def test_a_clip_is_as_large_as_its_share_allows(
    size: tuple[int, int], budget: int, expected: tuple[int, int]
) -> None:
    height, width = clip.clip_size(size, budget)
    assert (height, width) == expected
    picture = clip.shrunk(np.zeros((*size, 3), np.uint8), expected)
    assert picture.shape == (*expected, 3)
    assert len(decoded(clip.film([picture], 40))) == 1


def test_masks_follow_the_size_of_the_clip() -> None:
    masks = squares((0, 0))
    small = [np.zeros((32, 48, 3), np.uint8)]
    made = clip.make(small, [0], {"truth": [masks]}, SIZE, 100_000)
    found = np.frombuffer(zlib.decompress(made.maps["truth"]), np.uint8).reshape(32, 48)
    assert (found[:16, :16] == 1).all()
    assert found.sum() == 16 * 16


def test_long_videos_show_frames_from_the_first_to_the_last() -> None:
    assert clip.shown_frames(5) == [0, 1, 2, 3, 4]
    shown = clip.shown_frames(1000)
    assert (shown[0], shown[-1], len(shown)) == (0, 999, 48)
