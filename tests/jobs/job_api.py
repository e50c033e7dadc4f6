"""A stand-in for a cluster's job server: the part of Ray's REST API that jobs.submit uses."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from aiohttp import web

TOKEN = "0123456789abcdef" * 4
TAIL_S = 3.0
"""How long the stream of lines goes on after a job's end; Ray's does for seconds."""


@dataclass
class JobApi:
    """What was sent, and the jobs. A job prints `log` and ends `seconds` after its submission."""

    log: str = 'working\n{"AP": 0.5}\n'
    seconds: float = 0.3
    exit_code: int = 0
    token: str | None = None
    packages: dict[str, bytes] = field(default_factory=dict)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    address: str = ""
    streams: int = 0  # that were read to their end

    def state(self, name: str) -> dict[str, Any]:
        job = self.jobs.get(name)
        if job is None:
            raise web.HTTPNotFound(text=f"Job {name} does not exist")
        running = time.time() < job["ends"]
        ended = "SUCCEEDED" if self.exit_code == 0 else "FAILED"
        return {
            "type": "SUBMISSION",
            "submission_id": name,
            "entrypoint": job["entrypoint"],
            "status": job.get("stopped") or ("RUNNING" if running else ended),
            "message": "as it ended",
            "start_time": int(job["began"] * 1000),
            "end_time": None if running else int(job["ends"] * 1000),
            "driver_exit_code": None if running else self.exit_code,
        }

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            given = "Authorization" in request.headers
            return web.Response(status=403 if given else 401, text="Unauthorized")
        parts = request.path.strip("/").split("/")[1:]
        match request.method, parts:
            case "GET", ["version"]:
                version = {"version": "4", "ray_version": ray.__version__, "ray_commit": ""}
                return web.json_response({**version, "session_name": ""})
            case "GET", ["packages", _, name]:
                return web.Response(status=200 if name in self.packages else 404)
            case "PUT", ["packages", _, name]:
                self.packages[name] = await request.read()
                return web.Response()
            case "POST", ["jobs"]:
                job = await request.json()
                now = time.time()
                self.jobs[job["submission_id"]] = {**job, "began": now, "ends": now + self.seconds}
                return web.json_response({"job_id": "1", "submission_id": job["submission_id"]})
            case "GET", ["jobs"]:
                return web.json_response([self.state(name) for name in self.jobs])
            case "GET", ["jobs", name]:
                return web.json_response(self.state(name))
            case "POST", ["jobs", name, "stop"]:
                self.state(name)
                self.jobs[name] |= {"stopped": "STOPPED", "ends": time.time()}
                return web.json_response({"stopped": True})
            case "GET", ["jobs", name, "logs"]:
                self.state(name)
                return web.json_response({"logs": self.log})
            case "GET", ["jobs", name, "logs", "tail"]:
                socket = web.WebSocketResponse()
                await socket.prepare(request)
                await socket.send_str(self.log[:5])
                await asyncio.sleep(max(0.0, self.jobs[name]["ends"] - time.time()) + TAIL_S)
                self.streams += 1
                return socket
        return web.Response(status=404)


@contextlib.contextmanager
def serving(api: JobApi) -> Iterator[JobApi]:
    """Let it answer at api.address inside the block."""
    loop = asyncio.new_event_loop()

    async def start() -> web.AppRunner:
        app = web.Application(client_max_size=2**30)
        app.router.add_route("*", "/{any:.*}", api.handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        api.address = f"http://{host}:{port}"
        return runner

    runner = loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield api
    finally:
        asyncio.run_coroutine_threadsafe(_end(runner), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _end(runner: web.AppRunner) -> None:
    """Stop answering, also the streams that nobody reads to their end."""
    await runner.cleanup()
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
