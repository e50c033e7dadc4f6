"""Streams of clients: each followed in the order of its frames, many at once, within limits."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from idol.config import Config
from idol.follower import StreamFollower
from idol.structures import FrameDetections
from pipelines import gauges
from pipelines.stream import rows

STAGE = "serve"


class Picture(NamedTuple):
    """A frame as it was sent.

    data: an encoded image (JPEG, PNG, ...); or, where size is given, its RGB bytes
    size: (height, width) of raw bytes
    """

    data: bytes
    size: tuple[int, int] | None = None


class Found(NamedTuple):
    """What the network found in a frame of (height, width); refused: why it is none, else ""."""

    detections: FrameDetections | None = None
    size: tuple[int, int] = (0, 0)
    refused: str = ""


class Refused(Exception):
    """An answer other than instances: Refused(HTTP status, reason)."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What clients may ask for."""

    streams: int = 64
    """Streams at the same time; one more is refused (429)."""
    ahead: int = 4
    """Frames of a stream under way at the same time; one more is refused (429), or, over a
    WebSocket, not read before there is room."""
    frame_bytes: int = 16_000_000
    """Of a frame as it is sent; a larger one is refused (413)."""
    pixels: int = 4096 * 4096
    """Of a frame; a larger one is refused (422)."""
    idle_seconds: float = 300.0
    """After so long without a frame a stream is closed, unless it is that of a WebSocket."""

    def __post_init__(self) -> None:
        for name in ("streams", "ahead", "frame_bytes", "pixels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if not self.idle_seconds > 0:
            raise ValueError(f"idle_seconds must be > 0, got {self.idle_seconds}")


@dataclass(slots=True, eq=False)
class Session:
    """One client's stream.

    lasting:   idle or not, it is open until it is closed
    under_way: frames accepted, but not answered
    last:      is set when the frame before has been followed
    """

    name: str
    follower: StreamFollower
    lasting: bool = False
    opened: float = field(default_factory=time.monotonic)
    used: float = field(default_factory=time.monotonic)
    frames: int = 0
    under_way: int = 0
    last: asyncio.Event | None = None


class Sessions:
    """All streams of a server, in one event loop.

    config: names of categories, and the tracker
    detect: the network, for a frame
    """

    def __init__(
        self, config: Config, limits: Limits, detect: Callable[[Picture], Awaitable[Found]]
    ) -> None:
        self._config, self._limits, self._detect = config, limits, detect
        self._sessions: dict[str, Session] = {}
        self._tasks: set[asyncio.Task[dict[str, Any]]] = set()
        self.stopping = False
        self.frames = self.refused = self.opened = 0

    def open(self, *, lasting: bool = False) -> Session:
        """Begin a stream. Raises: Refused: there are too many, or the server stops.

        lasting: idle or not, it is open, and counts, until it is closed
        """
        self._check_running()
        self.expire()
        if len(self._sessions) >= self._limits.streams:
            raise self._refusal(
                429, f"{self._limits.streams} streams are open, and no more are allowed"
            )
        session = Session(secrets.token_urlsafe(9), StreamFollower(self._config), lasting)
        self._sessions[session.name] = session
        self.opened += 1
        gauges.tell(STAGE, {"streams": len(self._sessions)})
        return session

    def find(self, name: str) -> Session:
        """A stream by its name. Raises: Refused: it is not open, or was closed for being idle."""
        self.expire()
        found = self._sessions.get(name)
        if found is None:
            raise self._not_open(name)
        return found

    def close(self, session: Session) -> dict[str, Any]:
        """End a stream; what became of it. Frames that are under way are still answered."""
        self._sessions.pop(session.name, None)
        gauges.tell(STAGE, {"streams": len(self._sessions)})
        seconds = round(time.monotonic() - session.opened, 3)
        return {"stream": session.name, "frames": session.frames, "seconds": seconds}

    def expire(self) -> None:
        """Close streams that were idle for too long."""
        oldest = time.monotonic() - self._limits.idle_seconds
        for session in list(self._sessions.values()):
            if not (session.lasting or session.under_way) and session.used < oldest:
                self.close(session)

    def listed(self) -> list[dict[str, Any]]:
        """The open streams."""
        self.expire()
        now = time.monotonic()
        return [
            {"stream": s.name, "frames": s.frames, "under_way": s.under_way,
             "idle_seconds": round(now - s.used, 3)}
            for s in self._sessions.values()
        ]  # fmt: skip

    def check_size(self, size: int) -> None:
        """Raise Refused where a frame of so many bytes is too large."""
        if size > self._limits.frame_bytes:
            raise self._refusal(
                413, f"a frame may have {self._limits.frame_bytes} bytes, this one has {size}"
            )

    async def frame(self, session: Session, picture: Picture) -> dict[str, Any]:
        """The answer to the next frame of a stream. Frames are followed in the order of the calls.

        An accepted frame is followed even if the client does not wait for the answer.
        Raises: Refused: it is too large, is no image, too many are under way, or the stream was
            closed.
        """
        self._check_running()
        if self._sessions.get(session.name) is not session:  # closed while the frame was read
            raise self._not_open(session.name)
        self.check_size(len(picture.data))
        if session.under_way >= self._limits.ahead:
            raise self._refusal(
                429,
                f"{session.under_way} frames of this stream are under way. Wait for an answer "
                "before the next one",
            )
        session.under_way += 1
        before, session.last = session.last, asyncio.Event()
        task = asyncio.ensure_future(self._answer(session, picture, before, session.last))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def _answer(
        self,
        session: Session,
        picture: Picture,
        before: asyncio.Event | None,
        followed: asyncio.Event,
    ) -> dict[str, Any]:
        came = time.monotonic()
        try:
            found = await self._detect(picture)
            if before is not None:
                await before.wait()
            if found.detections is None:
                raise self._refusal(422, found.refused)
            instances, began = session.follower.add(
                found.detections, found.size, number=session.frames, time=came - session.opened
            )
            session.frames += 1
            self.frames += 1
            gauges.count(STAGE, "frames", 1)
            return {
                "stream": session.name,
                "frame": instances.number,
                "size": list(found.size),
                "began": began,
                "seconds": round(time.monotonic() - came, 4),
                "instances": [
                    {k: v for k, v in row.items() if k not in ("video", "frame", "time")}
                    for row in rows.of_frame(session.name, instances)
                ],
            }
        finally:
            session.under_way -= 1
            session.used = time.monotonic()
            followed.set()

    async def stop(self) -> dict[str, Any]:
        """Accept nothing more, wait for the answers to what was accepted, and say what was done."""
        self.stopping = True
        while self._tasks:
            await asyncio.wait(set(self._tasks))
        return {"frames": self.frames, "streams": self.opened, "refused": self.refused}

    def _check_running(self) -> None:
        if self.stopping:
            raise self._refusal(503, "the server stops")

    def _not_open(self, name: str) -> Refused:
        return self._refusal(
            404,
            f"no stream {name!r} is open. It is closed after {self._limits.idle_seconds:g} s "
            "without a frame; open another one",
        )

    def _refusal(self, status: int, reason: str) -> Refused:
        self.refused += 1
        gauges.count(STAGE, "refused", 1)
        return Refused(status, reason)
