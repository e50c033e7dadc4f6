"""A WebSocket's conversation without Ray: what it is answered, and how it ends."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from fastapi import WebSocket

from idol import presets
from pipelines.serving import conversation
from pipelines.serving.conversation import converse, told_size
from pipelines.serving.sessions import Found, Limits, Picture, Refused, Sessions
from tests.pipelines.serving.test_sessions import found, run

JUNK = ['{"size":[1e999,5]}', "[" * 100_000, "hello", "null", "[]", '{"size":5}', '{"size":"12"}',
        '{"size":[96.9,128.9]}', '{"size":[-96,-128]}', '{"size":[NaN,5]}']  # fmt: skip


class Client:
    """What a client sends to a stream, and what comes back to it."""

    def __init__(self, *sent: bytes | str | Exception) -> None:
        self.sent: asyncio.Queue[bytes | str | Exception] = asyncio.Queue()
        for one in sent:
            self.sent.put_nowait(one)
        self.answers: list[dict[str, Any]] = []
        self.code = 0

    async def _receive(self) -> dict[str, Any]:
        one = await self.sent.get()
        if isinstance(one, Exception):
            raise one
        return {"type": "websocket.receive", "bytes" if isinstance(one, bytes) else "text": one}

    async def _send(self, message: Any) -> None:
        if message["type"] == "websocket.close":
            self.code = message["code"]
        elif message["type"] == "websocket.send":
            self.answers.append(json.loads(message["text"]))

    async def talk(self, sessions: Sessions, until: int, stopped: asyncio.Event) -> None:
        """Converse until there are so many answers, or the server ends it."""
        scope = {"type": "websocket", "headers": [], "path": "/"}
        received = [{"type": "websocket.connect"}]

        async def receive() -> dict[str, Any]:
            return received.pop() if received else await self._receive()

        socket = WebSocket(scope, receive, self._send)
        await socket.accept()
        talking = asyncio.ensure_future(converse(socket, sessions, sessions.open(), 2, stopped))
        while len(self.answers) < until and not talking.done():
            await asyncio.sleep(0.005)
        stopped.set()
        await talking


def converse_with(client: Client, until: int, sizes: list[Any] | None = None) -> Sessions:
    """The sessions after it; sizes gets that of each frame."""
    config = presets.tiny()

    async def detect(picture: Picture) -> Found:
        await asyncio.sleep(0.02)
        if sizes is not None:
            sizes.append(picture.size)
        return found(config)

    sessions = Sessions(config, Limits(ahead=2), detect)

    async def work() -> None:
        await client.talk(sessions, until, asyncio.Event())

    run(work())
    return sessions


@pytest.mark.parametrize("text", JUNK, ids=lambda text: text[:12])
def test_junk_text_is_answered_by_an_error_in_its_place_and_the_stream_goes_on(text: str) -> None:
    sizes: list[Any] = []
    client = Client(b"1", '{"size":[20,30]}', b"2", b"3", text, b"4", '{"size":null}', b"5")
    sessions = converse_with(client, 6, sizes)
    assert [answer.get("frame") for answer in client.answers] == [0, 1, 2, None, 3, 4]
    refused = client.answers[3]
    assert refused["status"] == 422
    assert 'a text message is {"size": [height, width]}' in refused["error"]
    assert len(refused["error"]) < 300
    assert sizes == [None, (20, 30), (20, 30), (20, 30), None]
    assert client.code == 1001  # the server went away
    assert sessions.listed() == []


def test_a_told_size_is_two_whole_numbers_or_none() -> None:
    assert told_size('{"size": [720, 1280]}') == (720, 1280)
    assert told_size('{"size": null}') is None
    with pytest.raises(Refused, match="got 'x'"):
        told_size("x")


def test_an_unexpected_error_is_logged_and_closes_with_1011_after_the_answers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = Client(b"1", b"2", MemoryError("no room"))
    with caplog.at_level(logging.ERROR, conversation.__name__):
        sessions = converse_with(client, 9)
    assert [answer["frame"] for answer in client.answers] == [0, 1]
    assert client.code == 1011
    (record,) = caplog.records
    assert record.exc_info is not None
    assert "no room" in str(record.exc_info[1])
    assert sessions.listed() == []
