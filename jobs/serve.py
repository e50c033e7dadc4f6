"""Serve the network to many clients: frames in over HTTP or WebSocket, objects with masks out.

python -m jobs.serve --weights ytvis19-r50
"""

from __future__ import annotations

import functools
import os
import secrets
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idol.config import Speed
from jobs.options import command

_TOKEN = "IDOL_SERVE_TOKEN"


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Answer clients on Ray Serve until Ctrl-C: a stream each, batches shared by all.

    The address with its token is printed on stderr; in a browser it is a page that tracks a webcam
    or a file. Clients show the token that the variable IDOL_SERVE_TOKEN or --token-file holds, or
    one that is made up. What is sent how is in docs/serving.md. Stopped by Ctrl-C or SIGTERM, the
    server first answers what it has accepted.

    The last line of stdout is one JSON object: frames, streams, refused.
    """

    weights: command.Weights
    preset: str | None = None
    """Configuration of a released .pth, which carries none."""
    set: command.Repeated = ()
    """Replace a field of the checkpoint's configuration, SECTION.FIELD=VALUE; repeat for more."""
    tracker: command.Tracker = None
    host: str = "127.0.0.1"
    """Address to listen at. Where others can reach it, put TLS in front."""
    port: int = 8000
    token_file: Path | None = None
    """File that holds the token. Without it and the variable IDOL_SERVE_TOKEN one is made up."""
    replicas: int = 1
    """Copies of the network, on one GPU each with --device gpu, else on one CPU."""
    device: command.Device = "cpu"
    """Where each copy runs: cpu, or gpu."""
    speed: Speed | None = None
    """exact, or fast. Short for --set detect.speed=..."""
    batch: int = 8
    """Frames in a batch at most."""
    window: float = 0.01
    """Seconds that a frame waits at most for others to share its batch."""
    max_streams: int = 64
    """Streams at the same time; one more is refused."""
    ahead: int = 4
    """Frames of a stream under way at the same time."""
    max_megabytes: float = 16.0
    """Of a frame as it is sent."""
    idle_seconds: float = 300.0
    """After so long without a frame a stream is closed; that of a WebSocket lasts as long as its
    connection."""


def _serve(job: Serve) -> dict[str, Any]:
    from pipelines.serving import server
    from pipelines.serving.sessions import Limits
    from pipelines.stream.many import Following

    gpu, number = command.device(job.device)
    if number is not None:
        raise ValueError("Ray chooses the GPU of each copy: --device is cpu or gpu")
    token = _token(job)
    speed = [] if job.speed is None else [f"detect.speed={job.speed}"]
    weights = job.weights
    if Path(weights).is_file():  # replicas have another working directory
        weights = str(Path(weights).resolve())
    settings = server.ServeConfig(
        how=Following(
            weights=weights,
            preset=job.preset,
            device="cuda" if gpu else "cpu",
            overrides=(*job.set, *speed),
            tracker=job.tracker,
        ),
        host=job.host,
        port=job.port,
        token=token,
        replicas=job.replicas,
        gpus=1.0 if gpu else 0.0,
        batch=job.batch,
        window=job.window,
        limits=Limits(
            streams=job.max_streams,
            ahead=job.ahead,
            frame_bytes=int(job.max_megabytes * 1e6),
            idle_seconds=job.idle_seconds,
        ),
    )
    return server.run(settings, functools.partial(_wait, token))


def _token(job: Serve) -> str:
    """The token: of the file, the variable, or made up."""
    token = os.environ.get(_TOKEN, "")
    if job.token_file is not None:
        token = job.token_file.read_text(encoding="utf-8").strip()
        if not token:
            raise ValueError(f"{job.token_file} holds no token")
    if any(not (c.isascii() and (c.isalnum() or c in "-._~")) for c in token):
        raise ValueError("a token has letters, digits and -._~ alone, so that browsers can send it")
    return token or secrets.token_urlsafe(24)


def _wait(token: str, address: str) -> None:
    """Say where the server is, and wait for Ctrl-C or SIGTERM."""
    stop = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *unused: stop.set())
    # Behind #, so that it is not sent to a server, and is in no server's log.
    print(f"Serving at {address}#{token} . Ctrl-C stops it.", file=sys.stderr, flush=True)
    while not stop.wait(1.0):
        pass
    print("Stopping after the last answer.", file=sys.stderr, flush=True)


main = functools.partial(command.run, "serve", Serve, _serve)

if __name__ == "__main__":
    main()
