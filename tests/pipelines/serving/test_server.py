"""The whole server: clients over HTTP and WebSocket, wrong ones too, a killed replica, the end."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest
import requests

from idol.images.live import Image
from idol.images.synthetic import SyntheticConfig, make_video
from idol.segmenter import OnlineSegmenter
from pipelines.cluster import ROOT
from pipelines.errors import PipelineError
from pipelines.serving import server
from pipelines.stream.many import Following

TOKEN = "a-token"
LENGTH = 6


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def frames() -> list[Image]:
    """A synthetic video."""
    return list(make_video(SyntheticConfig(length=(LENGTH, LENGTH)), (5, 0)).frames)


@pytest.fixture(scope="module")
def expected(frames: list[Image]) -> list[list[int]]:
    """Identities that a segmenter finds in it."""
    segmenter = OnlineSegmenter.load("shipped")
    return [segmenter(frame).track_ids.tolist() for frame in frames]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, subprocess.Popen]]:
    """The address of a server, and its process."""
    errors = tmp_path_factory.mktemp("serve") / "stderr"
    port = free_port()
    words = ["--weights", "shipped", "--port", str(port), "--max-streams", "12", "--batch", "4"]
    with errors.open("w") as told:
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs.serve", *words, "--max-megabytes", "1"],
            cwd=ROOT,
            env={**os.environ, "IDOL_SERVE_TOKEN": TOKEN},
            stdout=subprocess.PIPE,
            stderr=told,
            text=True,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        while f"{address}/#{TOKEN}" not in errors.read_text():
            assert process.poll() is None, errors.read_text()
        yield address, process
    finally:
        process.kill()
        process.wait()


def png(frame: Image) -> bytes:
    return cv2.imencode(".png", frame[..., ::-1])[1].tobytes()


def ids(answer: dict[str, Any]) -> list[int]:
    return [one["track_id"] for one in answer["instances"]]


async def follow(address: str, frames: list[bytes], token: str = TOKEN) -> list[dict[str, Any]]:
    import websockets

    place = address.replace("http", "ws") + "/v1/stream"
    protocols: Any = ["idol.v1", f"bearer.{token}"]
    async with websockets.connect(place, subprotocols=protocols) as connection:

        async def send() -> None:
            for frame in frames:
                await connection.send(frame)

        sending = asyncio.ensure_future(send())
        answers = [json.loads(await connection.recv()) for _ in frames]
        await sending
        return answers


@pytest.mark.slow
@pytest.mark.ray
def test_a_server(
    running: tuple[str, subprocess.Popen], frames: list[Image], expected: list[list[int]]
) -> None:
    address, process = running
    show = {"Authorization": f"Bearer {TOKEN}"}
    assert requests.get(f"{address}/health", timeout=60).json() == {"ready": True}
    assert "<canvas" in requests.get(address, timeout=60).text

    # HTTP: image files and raw bytes.
    name = requests.post(f"{address}/v1/streams", headers=show, timeout=60).json()["stream"]
    place = f"{address}/v1/streams/{name}/frames"
    elsewhere = f"{address}/v1/streams/x/frames"
    for number, frame in enumerate(frames):
        raw = {"X-Frame-Size": "x".join(map(str, frame.shape[:2]))} if number % 2 else {}
        data = frame.tobytes() if raw else png(frame)
        answer = requests.post(place, data, headers=show | raw, timeout=60).json()
        assert (answer["frame"], ids(answer)) == (number, expected[number])

    # What is wrong is said, and costs nothing.
    wrong = [
        (requests.post(f"{address}/v1/streams", timeout=60), 401, "show the server's token"),
        (requests.post(place, b"junk", headers=show, timeout=60), 422, "not an image"),
        (requests.post(place, bytes(2 << 20), headers=show, timeout=60), 413, "may have 1000000"),
        (requests.post(elsewhere, b"", headers=show, timeout=60), 404, "'x'"),
        (requests.post(place, b"123", headers=show | {"X-Frame-Size": "1x2"}, timeout=60), 422,
         "has 6 bytes of RGB"),
    ]  # fmt: skip
    for answer, status, words in wrong:
        assert answer.status_code == status
        assert words in answer.json()["error"]
    ended = requests.delete(f"{address}/v1/streams/{name}", headers=show, timeout=60).json()
    assert ended["frames"] == LENGTH

    # Ten at once: identities of each as if it were alone, and frames refused in their place.
    pictures = [png(frame) for frame in frames]
    damaged = [*pictures[:3], b"junk", *pictures[3:]]

    async def many() -> list[list[dict[str, Any]]]:
        streams = [follow(address, pictures) for _ in range(9)]
        return await asyncio.gather(*streams, follow(address, damaged))

    *whole, broken = asyncio.run(asyncio.wait_for(many(), 300))
    for answers in whole:
        assert [ids(answer) for answer in answers] == expected
    assert "not an image" in broken.pop(3)["error"]
    assert [ids(answer) for answer in broken] == expected
    with pytest.raises(Exception, match="HTTP 403"):
        asyncio.run(follow(address, pictures, token="another"))
    assert requests.get(f"{address}/v1/streams", headers=show, timeout=60).json() == []

    # The end: frames that were accepted are answered.
    process.send_signal(signal.SIGTERM)
    told = process.communicate(timeout=180)[0]
    summary = json.loads(told.splitlines()[-1])
    assert process.returncode == 0
    assert summary["frames"] == 11 * LENGTH
    assert summary["streams"] == 11


def test_without_a_token_only_this_machine_is_served() -> None:
    with pytest.raises(ValueError, match=re.escape("0.0.0.0 could use the server")):
        server.ServeConfig(how=Following(weights="shipped"), host="0.0.0.0")


def test_a_taken_port_is_told_before_anything_starts() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        wanted = server.ServeConfig(how=Following(weights="shipped"), port=port)
        with pytest.raises(PipelineError, match="cannot be listened at"):
            server.run(wanted, lambda address: None)


def test_missing_weights_are_told_before_anything_starts(tmp_path: Path) -> None:
    how = Following(weights=str(tmp_path / "none.safetensors"))
    with pytest.raises((ValueError, FileNotFoundError), match="none"):
        server.run(server.ServeConfig(how=how, port=free_port()), lambda address: None)
