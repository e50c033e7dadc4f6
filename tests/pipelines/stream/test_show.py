"""The live page: pictures as they come, on this machine alone."""

from __future__ import annotations

import http.client
import threading
import time
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest

from pipelines.stream.show import Show

PICTURE = np.full((20, 30, 3), (200, 50, 10), np.uint8)


def test_a_browser_gets_a_page_and_the_pictures_as_they_come() -> None:
    with Show() as show:
        with urllib.request.urlopen(show.address) as page:
            assert 'src="/stream"' in page.read().decode()
        stop = threading.Event()

        def feed() -> None:
            while not stop.is_set():
                show.put(PICTURE)
                time.sleep(0.01)

        feeding = threading.Thread(target=feed)
        feeding.start()
        try:
            with urllib.request.urlopen(show.address + "stream", timeout=30) as stream:
                assert "multipart/x-mixed-replace" in stream.headers["Content-Type"]
                for _ in range(3):
                    assert stream.readline() == b"--frame\r\n"
                    assert stream.readline() == b"Content-Type: image/jpeg\r\n"
                    length = int(stream.readline().split()[1])
                    assert stream.readline() == b"\r\n"
                    image = cv2.imdecode(np.frombuffer(stream.read(length), np.uint8), 1)
                    assert np.abs(image[..., ::-1].astype(int) - PICTURE).max() < 12
                    assert stream.readline() == b"\r\n"
        finally:
            stop.set()
            feeding.join()


@pytest.mark.parametrize(("path", "host", "status"), [("/x", None, 404), ("/", "evil.org:80", 403)])
def test_nothing_else_is_served_and_to_no_other_name(
    path: str, host: str | None, status: int
) -> None:
    with Show() as show:
        place = urlsplit(show.address)
        assert place.hostname == "127.0.0.1"
        connection = http.client.HTTPConnection("127.0.0.1", place.port)
        connection.request("GET", path, headers={"Host": host or f"localhost:{place.port}"})
        assert connection.getresponse().status == status
        connection.close()


def test_the_page_ends_with_the_run() -> None:
    with Show() as show:
        address = show.address
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(address, timeout=5)
