"""A cluster on this machine that starts without a CPU and brings nodes when they are asked for."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from pipelines import cluster
from tests.ports import free_ports

_NODES = {
    "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
    "cpu": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    "gpu": {"resources": {"CPU": 2, "GPU": 1}, "node_config": {}, "max_workers": 1},
}
_COMMANDS = (
    *("initialization", "setup", "head_setup", "worker_setup"),
    *("head_start_ray", "worker_start_ray"),
)


@contextlib.contextmanager
def growing(folder: Path) -> Iterator[dict[str, str]]:
    """Start it; the environment that a job needs to join it.

    Ray's own fake node provider starts the nodes as processes here, so that the real autoscaler
    decides. Its GPU exists for scheduling alone.
    """
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    config = {
        "cluster_name": "growing",
        "max_workers": 3,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": address,
            "disable_node_updaters": True,  # nothing is logged into
            "worker_liveness_check": False,
        },
        "available_node_types": _NODES,
        "head_node_type": "ray.head.default",
        "upscaling_speed": 20.0,
        "idle_timeout_minutes": 5,
        # What Ray fills in for `ray up`, and asks for here.
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        **{f"{name}_commands": [] for name in _COMMANDS},
        **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
        "file_mounts_sync_continuously": False,
    }
    path = folder / "growing.json"
    path.write_text(json.dumps(config))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
        "PYTHONPATH": str(cluster.ROOT),
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(
            [
                *(str(Path(sys.executable).parent / "ray"), "start", "--head", "--block"),
                *("--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=0"),
                *("--include-dashboard=false", f"--autoscaling-config={path}"),
            ],
            env=environment | {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_for(head, port)
        yield environment | {"RAY_ADDRESS": address}
    finally:
        # The nodes are children of the monitor, in the group of the head.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)
        head.wait()


def _wait_for(head: subprocess.Popen[bytes], port: int) -> None:
    """Return when the head takes connections: a job says at once that none answers."""
    deadline = time.monotonic() + 180
    while True:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 5).close()
            return
        assert head.poll() is None, "the head ended"
        assert time.monotonic() < deadline, "the head takes no connections"
        time.sleep(0.2)
