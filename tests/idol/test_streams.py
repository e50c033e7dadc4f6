"""Many streams: the identities of each as if it were alone, whatever becomes of the others."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import idol
from idol.images.live import Image, SourceError
from idol.images.synthetic import SyntheticConfig, make_video
from idol.instances import Instances
from idol.network.model import IDOL
from idol.segmenter import OnlineSegmenter
from idol.streams import StreamResult, Streams
from idol.weights import checkpoint
from tests.idol.images.cameras import Camera

LENGTHS = (6, 3, 5)


@pytest.fixture(scope="module")
def model() -> IDOL:
    return checkpoint.load("shipped")


@pytest.fixture(scope="module")
def videos() -> list[list[Image]]:
    """Three videos of other lengths, the last of another size."""
    drawn = [
        list(make_video(SyntheticConfig(length=(n, n)), (5, i)).frames)
        for i, n in enumerate(LENGTHS)
    ]
    return [*drawn[:2], [np.ascontiguousarray(frame[:, :150]) for frame in drawn[2]]]


@pytest.fixture(scope="module")
def alone(model: IDOL, videos: list[list[Image]]) -> list[list[Instances]]:
    """What a segmenter finds in each video by itself."""
    return [
        [segmenter(frame) for frame in video]
        for video in videos
        for segmenter in [OnlineSegmenter(model, keep_tracks=False)]
    ]


def by_name(results: Iterator[StreamResult]) -> dict[str, list[StreamResult]]:
    found: dict[str, list[StreamResult]] = {}
    for result in results:
        found.setdefault(result.name, []).append(result)
    return found


def same(result: StreamResult, expected: Instances, offset: int = 0) -> None:
    assert result.error is None
    assert result.instances is not None
    assert result.instances.track_ids.tolist() == (expected.track_ids + offset).tolist()
    # Sums of a batch are in another order: a pixel on the edge of a mask may fall otherwise.
    ours, theirs = result.instances.masks, expected.masks
    assert (ours ^ theirs).sum() <= 2 * len(expected)
    assert result.instances.names == expected.names
    np.testing.assert_allclose(result.instances.scores, expected.scores, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_each_stream_is_followed_as_if_it_were_alone(
    model: IDOL, videos: list[list[Image]], alone: list[list[Instances]], batch: int
) -> None:
    with Streams(model, batch=batch) as streams:
        names = [streams.add(video) for video in videos]
        assert names == streams.names == ["stream-0", "stream-1", "stream-2"]
        found = by_name(iter(streams))
    assert streams.names == []
    for name, expected in zip(names, alone, strict=True):
        *results, end = found[name]
        assert (end.ended, end.error, end.instances) == (True, None, None)
        assert [result.number for result in results] == list(range(len(expected)))
        for result, one in zip(results, expected, strict=True):
            same(result, one)
            assert result.delay > 0
            assert result.dropped == 0


def test_streams_are_served_in_turn(model: IDOL, videos: list[list[Image]]) -> None:
    with Streams(model, batch=2, window=5.0, ahead=4) as streams:
        for name in "abc":
            streams.add(videos[0][:4], name=name)
        order = [result.name for result in streams if not result.ended]
    for place in range(3):  # each has one of every three frames
        assert sorted(order[3 * place : 3 * place + 3]) == ["a", "b", "c"]


def test_a_stream_that_fails_takes_no_other_down(
    model: IDOL, videos: list[list[Image]], alone: list[list[Instances]]
) -> None:
    def broken() -> Iterator[Image]:
        yield videos[0][0]
        raise SourceError("the line is cut")

    malformed = [videos[0][0], object(), "missing.jpg", videos[0][1]]
    with Streams(model) as streams:
        streams.add(broken(), name="broken")
        streams.add(malformed, name="malformed")
        streams.add(videos[1], name="whole")
        found = by_name(iter(streams))
    first, end = found["broken"]
    same(first, alone[0][0])
    assert str(end.error) == "the line is cut"
    assert end.ended
    good, no_image, no_file, after, end = found["malformed"]
    same(good, alone[0][0])
    same(after, alone[0][1])  # as a segmenter goes on after a frame that it refused
    assert isinstance(no_image.error, TypeError)
    assert "missing.jpg" in str(no_file.error)
    assert not no_image.ended
    assert end.error is None
    for result, expected in zip(found["whole"], alone[1], strict=False):
        same(result, expected)


def test_a_frame_the_network_fails_on_fails_alone(
    model: IDOL,
    videos: list[list[Image]],
    alone: list[list[Instances]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    poison = np.full_like(videos[0][0], 255)
    with Streams(model, window=5.0) as streams:
        whole = streams._detector.start

        bad = streams._detector.prepare(poison).pixels

        def refuse(frames: list, indices: list[int]) -> object:
            if any(bool((frame.pixels == bad).all()) for frame in frames):
                raise ValueError("outputs are not finite")
            return whole(frames, indices)

        monkeypatch.setattr(streams._detector, "start", refuse)
        streams.add([poison, videos[0][0]], name="poison")
        streams.add(videos[1], name="whole")
        found = by_name(iter(streams))
    assert "not finite" in str(found["poison"][0].error)
    same(found["poison"][1], alone[0][0])
    for result, expected in zip(found["whole"], alone[1], strict=False):
        same(result, expected)


def test_another_size_begins_another_video_with_new_identities(
    model: IDOL, videos: list[list[Image]], alone: list[list[Instances]]
) -> None:
    with Streams(model) as streams:
        streams.add([*videos[0], *videos[2]])
        results = [result for result in streams if not result.ended]
    assert [n for n, result in enumerate(results) if result.began] == [0, LENGTHS[0]]
    highest = max(i for one in alone[0] for i in one.track_ids.tolist())
    for result, expected in zip(results[: LENGTHS[0]], alone[0], strict=True):
        same(result, expected)
    for result, expected in zip(results[LENGTHS[0] :], alone[2], strict=True):
        same(result, expected, offset=highest + 1)


def test_streams_come_and_go_while_others_run(
    model: IDOL, videos: list[list[Image]], alone: list[list[Instances]]
) -> None:
    pace = threading.Semaphore(2)
    with Streams(model, window=0.0) as streams:
        streams.add(Camera(parts=[videos[0] * 50], pace=pace), name="endless")
        results = streams.results(wait=True)
        assert next(results).name == "endless"
        streams.add(videos[1], name="late")
        seen = []
        for result in results:
            pace.release()
            if result.name == "late":
                seen.append(result)
                if result.ended:
                    break
        for one, expected in zip(seen, alone[1], strict=False):
            same(one, expected)
        streams.remove("endless")
        assert streams.names == []
        threading.Timer(0.1, streams.close).start()
        assert list(results) == []  # nor those on their way
    pace.release(1000)
    with pytest.raises(RuntimeError, match="closed"):
        streams.add(videos[0])


def test_an_automatic_name_is_none_that_is_taken(model: IDOL, videos: list[list[Image]]) -> None:
    with Streams(model) as streams:
        streams.add(videos[1], name="stream-1")
        assert [streams.add(videos[1]) for _ in range(3)] == ["stream-0", "stream-2", "stream-3"]


def test_nothing_of_a_removed_stream_comes_and_its_name_is_anothers(
    model: IDOL, videos: list[list[Image]], alone: list[list[Instances]]
) -> None:
    with Streams(model, batch=4, ahead=4) as streams:
        streams.add(videos[0], name="a")
        results = iter(streams)
        assert next(results).number == 0  # frames 1 to 3 were in the same batch
        streams.remove("a")
        streams.add(videos[1], name="a")
        *found, end = results
    assert end.ended
    assert [result.number for result in found] == list(range(LENGTHS[1]))
    for result, expected in zip(found, alone[1], strict=True):
        same(result, expected)


def test_a_stream_removed_at_the_end_of_another_has_no_end(
    model: IDOL, videos: list[list[Image]]
) -> None:
    with Streams(model, batch=2, window=5.0) as streams:
        streams.add(videos[0][:1], name="a")
        streams.add(videos[0][:1], name="b")
        ended = []
        for result in streams:
            if result.ended:
                ended.append(result.name)
                if len(ended) == 1:
                    streams.remove("b" if result.name == "a" else "a")
    assert len(ended) == 1


def test_a_stalled_camera_holds_nothing_up(
    model: IDOL, videos: list[list[Image]], alone: list[list[Instances]]
) -> None:
    pace = threading.Semaphore(0)
    with Streams(model, window=0.01) as streams:
        streams.add(Camera(parts=[videos[0]], pace=pace), name="stalled")
        streams.add(videos[1], name="whole")
        seen = []
        for result in streams:
            seen.append(result)
            if result.ended:
                break
        assert {result.name for result in seen} == {"whole"}
        assert len(seen) == LENGTHS[1] + 1
        pace.release(1000)


def test_files_and_folders(model: IDOL, videos: list[list[Image]], tmp_path: Path) -> None:
    for n, frame in enumerate(videos[0]):
        PIL.Image.fromarray(frame).save(tmp_path / f"{n}.png")
    with Streams(model, images=True) as streams:
        streams.add(tmp_path, every=2)
        results = [result for result in streams if not result.ended]
    assert [result.number for result in results] == [0, 2, 4]
    for result in results:
        assert result.instances is not None
        assert result.instances.image is not None
        assert (result.instances.image == videos[0][result.number]).all()
        assert result.instances.time == pytest.approx(result.number / 10)


def test_what_cannot_be_added(model: IDOL, videos: list[list[Image]]) -> None:
    with Streams(model, limit=2) as streams:
        streams.add(videos[0], name="a")
        with pytest.raises(ValueError, match="a stream named 'a' is running"):
            streams.add(videos[0], name="a")
        with pytest.raises(SourceError, match="does not exist"):
            streams.add("nothing.mp4")
        with pytest.raises(ValueError, match=r"every is for files.* leave frames out"):
            streams.add(videos[0], every=2)
        with pytest.raises(ValueError, match=r"every is for files.* open_source\('camera:0', 2\)"):
            streams.add(Camera(parts=[videos[0]]), every=2)
        streams.add(videos[0])
        with pytest.raises(ValueError, match="limit allows no more"):
            streams.add(videos[0])
    with pytest.raises(ValueError, match="batch and limit must be >= 1"):
        Streams(model, batch=0)


def test_they_are_a_public_name() -> None:
    assert idol.Streams is Streams
