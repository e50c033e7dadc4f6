"""Streams of clients: each in its order, none beyond the limits, no accepted frame lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import numpy as np
import pytest
import torch

from idol import presets
from idol.config import Config
from idol.masks import rle
from idol.structures import FrameDetections
from pipelines.serving.sessions import Found, Limits, Picture, Refused, Sessions

SIZE = (20, 30)


@pytest.fixture
def config() -> Config:
    """Of the tiny network."""
    return presets.tiny()


def found(config: Config, size: tuple[int, int] = SIZE) -> Found:
    """One object, always the same."""
    mask = np.zeros((1, *size), np.bool_)
    mask[0, 2:9, 3:8] = True
    count = config.model.num_classes
    scores = torch.full((1, count), 0.01)
    scores[0, 2] = 0.9
    detections = FrameDetections(
        frame_index=0,
        scores=scores.amax(1),
        class_scores=scores,
        embeddings=torch.ones(1, 8),
        overlaps=torch.ones(1, 1),
        boxes=torch.tensor([[3.0, 2.0, 8.0, 9.0]]),
        masks=tuple(rle.encode_masks(mask)),
    )
    return Found(detections, size)


def made(config: Config, detect: Callable[[Picture], Awaitable[Found]], **limits: Any) -> Sessions:
    return Sessions(config, Limits(**limits), detect)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


def test_answers_come_in_the_order_of_the_frames_however_long_each_takes(config: Config) -> None:
    waits = {b"slow": 0.2, b"fast": 0.0}
    done: list[bytes] = []

    async def detect(picture: Picture) -> Found:
        await asyncio.sleep(waits[picture.data])
        done.append(picture.data)
        return found(config)

    async def work() -> None:
        sessions = made(config, detect)
        session = sessions.open()
        words = [b"slow", b"fast", b"fast"]
        asked = [sessions.frame(session, Picture(word)) for word in words]
        answers = await asyncio.gather(*asked)
        assert done == [b"fast", b"fast", b"slow"]  # detected side by side
        assert [answer["frame"] for answer in answers] == [0, 1, 2]
        assert [answer["began"] for answer in answers] == [True, False, False]
        (one,) = answers[2]["instances"]
        assert one["track_id"] == 0
        assert one["area"] == 35
        assert one["segmentation"]["size"] == list(SIZE)
        assert sessions.close(session)["frames"] == 3

    run(work())


def test_what_cannot_be_read_is_refused_and_the_stream_goes_on(config: Config) -> None:
    async def detect(picture: Picture) -> Found:
        return Found(refused="no image") if picture.data == b"bad" else found(config)

    async def work() -> None:
        sessions = made(config, detect, frame_bytes=10)
        session = sessions.open()
        asked = [sessions.frame(session, Picture(word)) for word in (b"1", b"bad", b"2")]
        first, bad, last = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(bad, Refused)
        assert (bad.status, str(bad)) == (422, "no image")
        assert isinstance(first, dict)
        assert isinstance(last, dict)
        assert (first["frame"], last["frame"]) == (0, 1)
        with pytest.raises(Refused, match="may have 10 bytes, this one has 11") as refused:
            await sessions.frame(session, Picture(b"x" * 11))
        assert refused.value.status == 413
        assert sessions.refused == 2

    run(work())


def test_another_size_begins_another_video_with_new_identities(config: Config) -> None:
    async def detect(picture: Picture) -> Found:
        return found(config, SIZE if picture.data == b"a" else (40, 50))

    async def work() -> None:
        sessions = made(config, detect)
        session = sessions.open()
        answers = [await sessions.frame(session, Picture(word)) for word in (b"a", b"a", b"b")]
        assert [answer["began"] for answer in answers] == [True, False, True]
        assert [answer["instances"][0]["track_id"] for answer in answers] == [0, 0, 1]

    run(work())


def test_one_stream_too_many_and_one_frame_too_many_are_refused(config: Config) -> None:
    go = asyncio.Event()

    async def detect(picture: Picture) -> Found:
        await go.wait()
        return found(config)

    async def work() -> None:
        sessions = made(config, detect, streams=1, ahead=2)
        session = sessions.open()
        with pytest.raises(Refused, match="no more are allowed") as many:
            sessions.open()
        assert many.value.status == 429
        asked = [asyncio.ensure_future(sessions.frame(session, Picture(b""))) for _ in range(3)]
        await asyncio.sleep(0.05)
        go.set()
        *fine, over = await asyncio.gather(*asked, return_exceptions=True)
        assert [answer["frame"] for answer in fine] == [0, 1]  # type: ignore[index]
        assert isinstance(over, Refused)
        assert over.status == 429
        sessions.close(session)
        sessions.open()

    run(work())


def test_an_idle_stream_is_closed(config: Config) -> None:
    async def work() -> None:
        sessions = made(config, lambda picture: asyncio.sleep(0, found(config)), idle_seconds=0.05)
        session = sessions.open()
        await sessions.frame(session, Picture(b""))
        assert sessions.find(session.name) is session
        assert [one["frames"] for one in sessions.listed()] == [1]
        await asyncio.sleep(0.1)
        with pytest.raises(Refused, match=r"closed after 0\.05 s without a frame") as gone:
            sessions.find(session.name)
        assert gone.value.status == 404
        assert sessions.listed() == []

    run(work())


def test_a_stream_of_a_connection_counts_idle_or_not_until_it_is_closed(config: Config) -> None:
    async def work() -> None:
        sessions = made(
            config,
            lambda picture: asyncio.sleep(0, found(config)),
            idle_seconds=0.05,
            streams=1,
        )
        session = sessions.open(lasting=True)
        await asyncio.sleep(0.1)
        with pytest.raises(Refused, match="no more are allowed"):
            sessions.open()
        assert (await sessions.frame(session, Picture(b"")))["frame"] == 0
        assert [one["stream"] for one in sessions.listed()] == [session.name]
        sessions.close(session)
        sessions.open()

    run(work())


def test_a_frame_of_a_stream_closed_while_it_was_read_is_refused(config: Config) -> None:
    async def work() -> None:
        sessions = made(config, lambda picture: asyncio.sleep(0, found(config)), idle_seconds=0.05)
        session = sessions.open()
        await asyncio.sleep(0.1)
        assert sessions.listed() == []
        with pytest.raises(Refused, match="no stream") as gone:
            await sessions.frame(session, Picture(b""))
        assert gone.value.status == 404

    run(work())


def test_stopping_answers_what_was_accepted_and_accepts_nothing_more(config: Config) -> None:
    go = asyncio.Event()

    async def detect(picture: Picture) -> Found:
        await go.wait()
        return found(config)

    async def work() -> None:
        sessions = made(config, detect)
        session = sessions.open()
        impatient = asyncio.ensure_future(sessions.frame(session, Picture(b"")))
        waiting = asyncio.ensure_future(sessions.frame(session, Picture(b"")))
        await asyncio.sleep(0.05)
        impatient.cancel()  # its client has gone; the frame was accepted all the same
        stopped = asyncio.ensure_future(sessions.stop())
        await asyncio.sleep(0.05)
        assert not stopped.done()
        with pytest.raises(Refused, match="the server stops") as refused:
            await sessions.frame(session, Picture(b""))
        assert refused.value.status == 503
        go.set()
        assert (await waiting)["frame"] == 1
        assert await stopped == {"frames": 2, "streams": 1, "refused": 1}

    run(work())


@pytest.mark.parametrize("bad", [{"streams": 0}, {"ahead": 0}, {"idle_seconds": 0.0}])
def test_limits_are_checked(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Limits(**bad)
