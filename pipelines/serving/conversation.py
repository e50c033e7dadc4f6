"""What is said over a WebSocket: frames and their size in, an answer for each in order, the end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from typing import Any

from fastapi import WebSocket, WebSocketDisconnect

from pipelines.serving.sessions import Picture, Refused, Session, Sessions

# Codes of a WebSocket: closed by the client, the server goes away, an error of the server.
_ENDED, _AWAY, _FAILED = 1000, 1001, 1011
_LAST_S = 10.0  # for a client to read its last answers

_log = logging.getLogger(__name__)

Answers = asyncio.Queue[asyncio.Task[dict[str, Any]]]


def told_size(text: str) -> tuple[int, int] | None:
    """(height, width) of {"size": [height, width]}; None of {"size": null}: image files.

    Raises: Refused: it is neither.
    """
    # Brackets within brackets exhaust the parser's stack.
    with contextlib.suppress(ValueError, RecursionError):
        match json.loads(text):
            case {"size": None}:
                return None
            case {"size": [int(height), int(width)]} if min(height, width) > 0:
                return height, width
    raise Refused(
        422,
        'a text message is {"size": [height, width]} in whole pixels, or {"size": null}, got '
        f"{text[:80]!r}",
    )


async def _receive(
    socket: WebSocket,
    sessions: Sessions,
    session: Session,
    answers: Answers,
    room: asyncio.Semaphore,
) -> None:
    size: tuple[int, int] | None = None

    async def refuse(refused: Refused) -> dict[str, Any]:
        raise refused

    while (message := await socket.receive())["type"] != "websocket.disconnect":
        # Where `ahead` are unanswered nothing more is read: the client's sending waits in turn.
        await room.acquire()
        data = message.get("bytes")
        try:
            if data is None:
                size = told_size(message.get("text") or "")
                room.release()
                continue
            work = sessions.frame(session, Picture(data, size))
        except Refused as refused:
            work = refuse(refused)
        answers.put_nowait(asyncio.ensure_future(work))


async def _send(socket: WebSocket, answers: Answers, room: asyncio.Semaphore) -> None:
    while True:
        task = await answers.get()
        try:
            answer: dict[str, Any] = await task
        except Refused as refused:
            answer = {"error": str(refused), "status": refused.status}
        await socket.send_text(json.dumps(answer, separators=(",", ":")))
        room.release()
        answers.task_done()


async def converse(
    socket: WebSocket, sessions: Sessions, session: Session, ahead: int, stopped: asyncio.Event
) -> None:
    """Answer what an accepted WebSocket sends until the client, or the server, ends it; close both.

    An error that is none of the client's is logged and closes it with 1011, after the answers to
    what came before.

    ahead:   messages that wait for their answers at most
    stopped: is set when the server has answered everything, and goes away
    """
    answers: Answers = asyncio.Queue()
    room = asyncio.Semaphore(ahead)
    sending = asyncio.ensure_future(_send(socket, answers, room))
    receiving = asyncio.ensure_future(_receive(socket, sessions, session, answers, room))
    parts: list[asyncio.Future[Any]] = [
        sending, receiving, asyncio.ensure_future(stopped.wait()),
    ]  # fmt: skip
    code = _ENDED
    try:
        done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        errors = [error for part in done if (error := part.exception()) is not None]
        for error in errors:
            # A client may go away while an answer is sent.
            if not isinstance(error, WebSocketDisconnect):
                code = _FAILED
                _log.error("stream %s ends by an error", session.name, exc_info=error)
        if stopped.is_set():
            code = _AWAY
        if code != _ENDED:
            parts.append(asyncio.ensure_future(answers.join()))
            # A client that does not read its answers is not waited for.
            await asyncio.wait(
                [sending, parts[-1]], timeout=_LAST_S, return_when=asyncio.FIRST_COMPLETED
            )
    finally:
        sessions.close(session)
        for part in parts:
            part.cancel()
        await asyncio.gather(*parts, return_exceptions=True)
        with contextlib.suppress(RuntimeError, WebSocketDisconnect):  # the client has closed it
            await socket.close(code)
