"""What clients talk to: HTTP and WebSocket in, the streams of all clients, the network behind.

There is one replica, so that a stream is always where its identities are. It does what is little
work: association, 0.3 to 1 ms a frame. Frames are decoded and detected by the replicas of Network.
"""

# Serve sends the class by value, as its module is when it is decorated: functions stand above it,
# and there is no `from __future__ import annotations`, for FastAPI reads what annotations name.
import asyncio
import hmac
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fastapi
import ray
from fastapi import Request, Response, WebSocket
from fastapi.responses import HTMLResponse, JSONResponse
from ray import serve
from ray.serve.handle import DeploymentHandle

from idol.config import Config
from pipelines.serving.conversation import converse
from pipelines.serving.sessions import Found, Limits, Picture, Refused, Sessions

PROTOCOL = "idol.v1"
"""The WebSocket's; a browser sends the token beside it, as bearer.TOKEN."""
_TRIES, _PAUSE_S = 5, 0.5  # of a frame whose replica has died: the network keeps nothing
_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")
_RETRY_S = "1"

app = fastapi.FastAPI(title="idol", docs_url=None, redoc_url=None)


@app.exception_handler(Refused)
async def _refused(request: Request, refused: Refused) -> Response:
    headers = {"Retry-After": _RETRY_S} if refused.status in (429, 503) else {}
    return JSONResponse({"error": str(refused)}, refused.status, headers=headers)


def _protocols(headers: Mapping[str, str]) -> list[str]:
    return [part.strip() for part in headers.get("sec-websocket-protocol", "").split(",")]


def frame_size(text: str | None) -> tuple[int, int] | None:
    """(height, width) of "HEIGHTxWIDTH"; None: an image file. Raises: Refused: it is neither."""
    if text is None:
        return None
    found = _SIZE.fullmatch(text)
    if found is None:
        raise Refused(422, f"X-Frame-Size is HEIGHTxWIDTH, such as 720x1280, got {text!r}")
    return int(found[1]), int(found[2])


@serve.deployment(max_ongoing_requests=10_000)
@serve.ingress(app)
class Front:
    """The only replica of what clients talk to.

    config: names of categories, and the tracker
    token:  that clients show; "": none is asked for
    """

    def __init__(
        self, network: DeploymentHandle[Any], config: Config, limits: Limits, token: str
    ) -> None:
        self._network, self._token = network, token
        self._sessions = Sessions(config, limits, self._detect)
        self._ahead = limits.ahead
        self._stopped = asyncio.Event()
        self._page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")

    async def _detect(self, picture: Picture) -> Found:
        for tried in range(_TRIES):
            try:
                found: Found = await self._network.detect.remote(picture)
                return found
            except (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError):
                if tried + 1 == _TRIES:
                    raise
                await asyncio.sleep(_PAUSE_S)
        raise AssertionError("the last try returns or raises")

    async def stop(self) -> dict[str, Any]:
        """Answer what was accepted, and end all connections; what was done."""
        done = await self._sessions.stop()
        self._stopped.set()
        return done

    @app.get("/", response_class=HTMLResponse)
    async def page(self) -> str:
        """A page that tracks a webcam or a file in the browser."""
        return self._page

    @app.get("/health")
    async def health(self) -> Response:
        """200 while frames are accepted, 503 once the server stops."""
        stopping = self._sessions.stopping
        return JSONResponse({"ready": not stopping}, 503 if stopping else 200)

    @app.get("/v1/streams")
    async def listed(self, request: Request) -> list[dict[str, Any]]:
        """The open streams."""
        self._allow(request.headers)
        return self._sessions.listed()

    @app.post("/v1/streams", status_code=201)
    async def begin(self, request: Request) -> dict[str, Any]:
        """Begin a stream."""
        self._allow(request.headers)
        return {"stream": self._sessions.open().name}

    @app.delete("/v1/streams/{name}")
    async def end(self, name: str, request: Request) -> dict[str, Any]:
        """End a stream."""
        self._allow(request.headers)
        return self._sessions.close(self._sessions.find(name))

    @app.post("/v1/streams/{name}/frames")
    async def frame(self, name: str, request: Request) -> dict[str, Any]:
        """The instances of the next frame: an image file, or RGB bytes with X-Frame-Size: HxW."""
        self._allow(request.headers)
        session = self._sessions.find(name)
        self._sessions.check_size(int(request.headers.get("content-length", 0)))
        data = bytearray()
        async for part in request.stream():
            data += part
            self._sessions.check_size(len(data))
        size = request.headers.get("x-frame-size")
        return await self._sessions.frame(session, Picture(bytes(data), frame_size(size)))

    @app.websocket("/v1/stream")
    async def stream(self, socket: WebSocket) -> None:
        """A stream for as long as the connection lasts: frames in, an answer for each, in order.

        A binary message is a frame, a text message {"size": [height, width]} says that those after
        it are RGB bytes of that size, and {"size": null} that they are image files; another one is
        answered by an error, in its place.
        """
        try:
            self._allow(socket.headers)
            session = self._sessions.open(lasting=True)
        except Refused as refused:
            await socket.close(1008, str(refused)[:120])
            return
        await socket.accept(PROTOCOL if PROTOCOL in _protocols(socket.headers) else None)
        await converse(socket, self._sessions, session, self._ahead, self._stopped)

    def _allow(self, headers: Mapping[str, str]) -> None:
        """Raise Refused where the token is not shown."""
        shown = headers.get("authorization", "").removeprefix("Bearer ")
        shown = shown or next((p[7:] for p in _protocols(headers) if p.startswith("bearer.")), "")
        if self._token and not hmac.compare_digest(shown.encode(), self._token.encode()):
            raise Refused(401, "show the server's token: Authorization: Bearer TOKEN")
