"""A real S3 server on loopback, which can be stopped and started again with what it holds."""

import contextlib
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

BUCKET = "videos"


class S3Server:
    """moto in a process of its own, at an address of this machine; `environment` leads to it."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        with socket.socket() as free:
            free.bind((host, 0))
            self.address = f"http://{host}:{free.getsockname()[1]}"
        self.environment = {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.address,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        port = self.address.rpartition(":")[2]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", host, "-p", port],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 120
        while not self._answers():
            assert self.process.poll() is None, "the S3 server ended"
            assert time.monotonic() < deadline, "the S3 server does not answer"
            time.sleep(0.1)
        request = urllib.request.Request(f"{self.address}/{BUCKET}", method="PUT")
        request.add_header(
            "Authorization", "AWS4-HMAC-SHA256 Credential=key/1/us-east-1/s3/aws4_request"
        )
        urllib.request.urlopen(request, timeout=30).close()

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{self.address}/moto-api/", timeout=5).close()
            return True
        return False

    def stop(self) -> None:
        """Answer nothing, as a server that is away; what it holds stays."""
        self.process.send_signal(signal.SIGSTOP)

    def start(self) -> None:
        """Answer again."""
        self.process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def server(host: str = "127.0.0.1") -> Iterator[S3Server]:
    """A server with an empty bucket."""
    running = S3Server(host)
    try:
        yield running
    finally:
        running.start()
        running.process.kill()
        running.process.wait()
