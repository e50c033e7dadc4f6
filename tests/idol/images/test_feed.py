"""Nothing of a file is left out, of a camera the oldest frame; what is lost comes again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from idol.images import feed as module
from idol.images.feed import Feed
from idol.images.live import Image, SourceError
from tests.idol.images.cameras import Camera, pictures


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost source is tried again at once."""
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(module, "_LONGEST_PAUSE_S", 0.02)


def until(true: Callable[[], bool]) -> None:
    for _ in range(3000):
        if true():
            return
        time.sleep(0.01)
    pytest.fail("it did not come to that")


def test_pictures_wait_until_they_are_taken() -> None:
    given: list[int] = []

    def slow() -> Iterator[Image]:
        for number, image in enumerate(pictures(6)):
            given.append(number)
            yield image

    with Feed(slow(), ahead=2) as feed:
        until(lambda: len(given) == 3)
        assert feed.waiting == 2
        found = list(feed)
    assert [frame.number for frame in found] == list(range(6))
    assert [int(frame.image[0, 0, 0]) for frame in found] == list(range(6))
    assert feed.dropped == 0
    assert feed.ended


def test_of_a_camera_the_newest_frames_wait() -> None:
    with Feed(Camera(parts=[pictures(9)]), ahead=2) as feed:
        until(lambda: feed.dropped == 7)
        found = list(feed)
    assert [frame.number for frame in found] == [7, 8]
    assert [frame.time for frame in found] == pytest.approx([0.7, 0.8])
    assert [int(frame.image[0, 0, 0]) for frame in found] == [7, 8]


def test_a_lost_camera_is_opened_again_and_its_frames_count_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    camera = Camera(parts=[pictures(3), pictures(2, 10)], fails=2)
    with Feed(camera, ahead=9) as feed:
        found = list(feed)
    assert [frame.number for frame in found] == [0, 1, 2, 3, 4]
    assert [int(frame.image[0, 0, 0]) for frame in found] == [0, 1, 2, 10, 11]
    times = [frame.time for frame in found]
    assert times[3] > 0  # of this clock: the camera itself counts from 0 again
    assert np.diff(times[3:]) == pytest.approx([0.1])
    assert feed.reopened == 1
    assert len(camera.opened) == 4
    assert "It is tried again" in caplog.text


@pytest.mark.parametrize("patience", [0.0, 0.05])
def test_patience_ends(patience: float) -> None:
    camera = Camera(parts=[pictures(3), pictures(1)], fails=10_000)
    feed = Feed(camera, ahead=9, patience=patience)
    assert [feed.take(20) is not None for _ in range(3)] == [True] * 3
    with pytest.raises(SourceError, match="cannot be opened" if patience else "is lost"):
        feed.take(20)
    assert feed.ended


def test_a_camera_that_was_never_there_is_not_waited_for() -> None:
    class Missing(Camera):
        def __iter__(self) -> Iterator[module.Any]:
            raise SourceError("there is none")

    with pytest.raises(SourceError, match="there is none"):
        Feed(Missing(parts=[[]])).take(20)


def test_what_a_sequence_raises_comes_after_the_frames_before_it() -> None:
    def broken() -> Iterator[Image]:
        yield from pictures(2)
        raise OSError("the disk is gone")

    with Feed(broken()) as feed:
        assert feed.take(20) is not None
        assert feed.take(20) is not None
        with pytest.raises(OSError, match="the disk is gone"):
            feed.take(20)


def test_a_closed_feed_ends_and_lets_its_reader_go() -> None:
    pace = threading.Semaphore(1)
    feed = Feed(Camera(parts=[pictures(5)], pace=pace))
    assert feed.take(20) is not None
    assert feed.take(0.01) is None  # none has come
    feed.close()
    assert feed.take(20) is None
    pace.release(5)
    feed._thread.join(20)
    assert not feed._thread.is_alive()


@pytest.mark.parametrize("bad", [{"ahead": 0}, {"patience": -1.0}])
def test_numbers_are_checked(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="ahead must be >= 1 and patience >= 0"):
        Feed([], **bad)  # type: ignore[arg-type]
