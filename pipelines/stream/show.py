"""A page on this machine that shows the pictures while they are made: the headless OpenCV has no
window."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

import cv2

from idol.images.visualize import Image

_BOUNDARY = "frame"
_PAGE = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>idol track</title>'
    "<style>body{margin:0;background:#181818}img{display:block;margin:auto;max-width:100vw;"
    'max-height:100vh}</style><img src="/stream" alt="the annotated video, live"></html>'
)
_QUALITY = 80
_WAIT_S = 1.0


class Show:
    """An HTTP server on loopback; `address` opens in a browser of this machine alone.

    port: 0: any that is free
    Raises: OSError: the port is taken.
    """

    def __init__(self, port: int = 0) -> None:
        self._changed = threading.Condition()
        self._picture, self._count, self._watched = b"", 0, 0
        self._closed = False
        show = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                show._answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Stop serving."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()

    def put(self, picture: Image) -> None:
        """Show the next picture, (H, W, 3) uint8 RGB; costs nothing while nobody looks."""
        with self._changed:
            if self._watched == 0 and self._picture:
                return
            options = [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
            _, encoded = cv2.imencode(".jpg", picture[..., ::-1], options)
            self._picture, self._count = encoded.tobytes(), self._count + 1
            self._changed.notify_all()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        # Under another name a page from elsewhere could ask for the pictures (DNS rebinding).
        host = (request.headers.get("Host") or "").rpartition(":")[0]
        if host not in ("127.0.0.1", "localhost"):
            request.send_error(403)
        elif request.path == "/":
            page = _PAGE.encode()
            request.send_response(200)
            request.send_header("Content-Type", "text/html; charset=utf-8")
            request.send_header("Content-Length", str(len(page)))
            request.end_headers()
            request.wfile.write(page)
        elif request.path == "/stream":
            self._send_pictures(request)
        else:
            request.send_error(404)

    def _send_pictures(self, request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        kind = f"multipart/x-mixed-replace; boundary={_BOUNDARY}"
        request.send_header("Content-Type", kind)
        request.send_header("Cache-Control", "no-store")
        request.end_headers()
        sent = 0
        with self._changed:
            self._watched += 1
        try:
            while True:
                with self._changed:
                    if self._count == sent and not self._closed:
                        self._changed.wait(_WAIT_S)
                    if self._closed:
                        return
                    picture, fresh, sent = self._picture, self._count != sent, self._count
                if fresh:
                    head = f"--{_BOUNDARY}\r\nContent-Type: image/jpeg\r\n"
                    head += f"Content-Length: {len(picture)}\r\n\r\n"
                    request.wfile.write(head.encode() + picture + b"\r\n")
        except OSError:  # the browser has left
            pass
        finally:
            with self._changed:
                self._watched -= 1
