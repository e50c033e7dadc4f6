"""Starts the server on Ray Serve, waits until it is to stop, and stops it after its last answer."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pipelines import cluster, configuration, resources
from pipelines.errors import PipelineError
from pipelines.serving.sessions import Limits
from pipelines.stream import many
from pipelines.stream.many import Following

if TYPE_CHECKING:
    from idol.config import Config

_NAME = "idol"
_NEEDS = ("fastapi", "uvicorn", "websockets", "grpc_reflection", "mmh3")
"""Of what ray[serve] brings, what is imported by name."""
_STOP_S = 60.0  # for the answers to what was accepted
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeConfig:
    """What is served, and to whom."""

    how: Following
    """Weights, device, configuration and tracker."""
    host: str = "127.0.0.1"
    """Address that is listened at."""
    port: int = 8000
    token: str = ""
    """That clients show; "": none is asked for, on loopback alone."""
    replicas: int = 1
    """Copies of the network."""
    gpus: float = 0.0
    """GPUs of each copy."""
    batch: int = 8
    """Frames in a batch at most."""
    window: float = 0.01
    """Seconds that a frame waits at most for others to share its batch."""
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.replicas < 1 or self.batch < 1 or not 0 <= self.window <= 10:
            raise ValueError(
                "replicas and batch must be 1 or more, window within 0 and 10 seconds, got "
                f"{self.replicas}, {self.batch} and {self.window}"
            )
        if not 0 < self.port < 1 << 16:
            raise ValueError(f"a port lies within 1 and 65535, got {self.port}")
        if not self.token and self.host not in LOOPBACK:
            raise ValueError(
                f"whoever reaches {self.host} could use the server: it needs a token there"
            )


def run(settings: ServeConfig, wait: Callable[[str], None]) -> dict[str, Any]:
    """Serve until `wait` returns, which is called with the server's address once it answers.

    returns: frames answered, streams opened, requests refused
    Raises:
        PipelineError: Ray Serve is not installed, the port is taken, there are too few CPUs or
            GPUs, or a replica does not start.
        ValueError, FileNotFoundError: of the weights or the device.
    """
    _check_installed()
    _check_free(settings.host, settings.port)
    config = _config(settings.how)
    with cluster.session():
        from ray import serve

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        resources.require(settings.replicas, 1.0, settings.gpus, instead="fewer --replicas")
        front = _application(settings, config)
        options = {"host": settings.host, "port": settings.port, "location": "HeadOnly"}
        try:
            serve.start(http_options=options)
            handle = serve.run(front, name=_NAME, route_prefix="/")
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:500]
            raise PipelineError(f"the server does not start: {reason}") from error
        try:
            wait(f"http://{settings.host}:{settings.port}/")
        finally:
            done: dict[str, Any] = handle.stop.remote().result(timeout_s=_STOP_S)
            serve.shutdown()
        return done


def _check_installed() -> None:
    """Raise PipelineError where Ray Serve is not whole; without importing Ray, see cluster."""
    missing = [name for name in _NEEDS if find_spec(name) is None]
    if missing:
        raise PipelineError(
            f"Ray Serve is not complete here ({missing[0]} is missing). Install it: "
            "pip install 'ray[serve]', or this package with its extra serve."
        )


def _check_free(host: str, port: int) -> None:
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PipelineError(
                f"{host}:{port} cannot be listened at ({error.strerror}). Use another --port."
            ) from error


def _config(how: Following) -> Config:
    """The configuration that every replica will have, looked at before one is started."""
    model = many.load(how)
    assert model is not None, "a server has weights"
    return configuration.changed(model.config, how.overrides, how.tracker)


def _application(settings: ServeConfig, config: Config) -> Any:
    from pipelines.serving.front import Front
    from pipelines.serving.network import Network

    limits = settings.limits
    network = Network.options(  # type: ignore[attr-defined]
        num_replicas=settings.replicas,
        max_ongoing_requests=4 * settings.batch,
        ray_actor_options={"num_cpus": 1.0, "num_gpus": settings.gpus},
    ).bind(settings.how, settings.batch, settings.window, limits.pixels)
    return Front.options(  # type: ignore[attr-defined]
        ray_actor_options={"num_cpus": 0.1}, graceful_shutdown_timeout_s=_STOP_S
    ).bind(network, config, limits, settings.token)
