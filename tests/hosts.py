"""Machines of a cluster on this one: each has an address, a disk for Ray and a life of its own.

A host is a network namespace behind one bridge, with mounts, processes and a name of its own; this
process stands outside, at the bridge. Needs Linux and its root.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

GCS_PORT, JOBS_PORT, METRICS_PORT = 6379, 8265, 8080
_START_S = 180.0


def missing() -> str | None:
    """Why hosts cannot be made here; None where they can."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "unshare"))):
        return "hosts in network namespaces need root, ip and unshare"
    done = subprocess.run(["unshare", "-n", "-m", "-p", "-f", "true"], capture_output=True)
    return None if done.returncode == 0 else "this kernel makes no namespaces"


class Hosts:
    """A head and any number of other hosts, with a token; `environment` is that of an outsider.

    folder:   where the hosts' own disks and logs are; everything else of this machine's disk is
              shared storage that all of them see
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        number = os.getpid() % 10_000
        self._bridge, self._net = f"ib{number}", f"10.77.{number % 250}"
        self.outside, self.head = f"{self._net}.254", f"{self._net}.1"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._numbers: dict[str, int] = {}
        self.variables: dict[str, dict[str, str]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self.token = folder / "token"
        self.token.write_text("0123456789abcdef" * 4)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        kept["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self._inside = {
            **kept,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",  # 15 is for hosts with nothing else on them
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "OMP_NUM_THREADS": "1",
        }
        self.jobs = f"http://{self.head}:{JOBS_PORT}"
        self.environment = {
            **kept,
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            "RAY_API_SERVER_ADDRESS": self.jobs,
        }
        _ip(f"link add {self._bridge} type bridge")
        _ip(f"addr add {self.outside}/24 dev {self._bridge}")
        _ip(f"link set {self._bridge} up")

    def tell(self, variables: Mapping[str, str]) -> None:
        """Set variables of all hosts that start from now on, and of the outsider."""
        self._inside.update(variables)
        self.environment.update(variables)

    def start(self, name: str, *, hide: Path | None = None, gpus: int = 0, cpus: int = 2) -> None:
        """Switch a host on; the first one started is the head. Returns when Ray has joined.

        hide: a folder that this host has another disk over
        """
        self.begin(name, hide=hide, gpus=gpus, cpus=cpus)
        self.wait(name)

    def begin(self, name: str, *, hide: Path | None = None, gpus: int = 0, cpus: int = 2) -> None:
        """As start, without waiting."""
        if name not in self._numbers:
            self._numbers[name] = len(self._numbers) + 1
            self._connect(name)
        address, own = self.address(name), self.folder / name
        shutil.rmtree(own, ignore_errors=True)
        (own / "ray").mkdir(parents=True)
        (own / "hidden").mkdir()
        # With names for its address, or Ray asks a name server that is not there.
        (own / "etc-hosts").write_text(f"127.0.0.1 localhost\n{address} {name}\n")
        Path("/tmp/ray").mkdir(exist_ok=True)
        lines = [
            f"hostname {name}",
            f"mount --bind {own}/ray /tmp/ray",
            f"mount --bind {own}/etc-hosts /etc/hosts",
        ]
        if hide is not None:
            lines.append(f"mount --bind {own}/hidden {shlex.quote(str(hide))}")
        words = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
        words += [f"--node-ip-address={address}", f"--num-cpus={cpus}", f"--num-gpus={gpus}"]
        words += ["--object-store-memory=100000000", "--disable-usage-stats"]
        words += [f"--metrics-export-port={METRICS_PORT}"]
        if name == next(iter(self._numbers)):
            words += ["--head", f"--port={GCS_PORT}", f"--dashboard-host={address}"]
        else:
            words += [f"--address={self.head}:{GCS_PORT}"]
        lines.append(f"exec {shlex.join(words)}")
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [*("ip", "netns", "exec", self._space(name), "unshare", "-m", "-u", "-p", "-f"),
                 *("--mount-proc", "--kill-child", "sh", "-ec", "\n".join(lines))],
                env={**self._inside, **self.variables.get(name, {})}, stdout=log, stderr=log,
            )  # fmt: skip

    def wait(self, name: str) -> None:
        """Return when a host that was begun has joined."""
        if name == next(iter(self._numbers)):
            self._until(lambda: _open(self.head, JOBS_PORT) and _open(self.head, GCS_PORT), name)
        text, marked = b"Ray runtime started", self.folder / f"{name}.log"
        self._until(lambda: marked.exists() and text in marked.read_bytes(), name)

    def kill(self, name: str) -> None:
        """Cut its power: all of its processes are gone at once."""
        self.processes[name].kill()
        self.processes[name].wait()
        (self.folder / f"{name}.log").write_bytes(b"")

    def leave(self, name: str) -> None:
        """Have its Ray say goodbye to the cluster, then switch it off."""
        below = f"/proc/{self.processes[name].pid}/task/{self.processes[name].pid}/children"
        for child in Path(below).read_text().split():
            os.kill(int(child), signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.processes[name].wait(20)
        self.kill(name)

    def cut(self, name: str, connected: bool = False) -> None:
        """Take its cable out; connected: plug it in again."""
        _ip(f"link set {self._cable(name)} {'up' if connected else 'down'}")

    def address(self, name: str) -> str:
        """Of a host."""
        return f"{self._net}.{self._numbers[name]}"

    def stop(self) -> None:
        """Switch all off, and take the network down."""
        for name, process in self.processes.items():
            process.kill()
            process.wait()
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip(f"netns del {self._space(name)}")
        _ip(f"link del {self._bridge}")

    def _space(self, name: str) -> str:
        return f"{self._bridge}-{name}"

    def _cable(self, name: str) -> str:
        return f"{self._bridge}v{self._numbers[name]}"

    def _connect(self, name: str) -> None:
        space, cable = self._space(name), self._cable(name)
        _ip(f"netns add {space}")
        _ip(f"link add {cable} type veth peer name eth0 netns {space}")
        _ip(f"link set {cable} master {self._bridge} up")
        _ip(f"-n {space} link set lo up")
        _ip(f"-n {space} addr add {self.address(name)}/24 dev eth0")
        _ip(f"-n {space} link set eth0 up")

    def _until(self, condition: Callable[[], bool], name: str) -> None:
        deadline = time.monotonic() + _START_S
        log = self.folder / f"{name}.log"
        while not condition():
            assert self.processes[name].poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.3)


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Hosts]:
    """Hosts that are gone after the block."""
    hosts = Hosts(folder)
    try:
        yield hosts
    finally:
        hosts.stop()


def _ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True, capture_output=True)


def _open(address: str, port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection((address, port), 1).close()
        return True
    return False
