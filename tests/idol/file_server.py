"""A web server on this machine: a file host, a Hugging Face hub, or a broken one of either."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40


class FileServer:
    """What it serves, what it was asked for, and how it should misbehave.

    files:   path → content
    repository: files of the hub's one repository, "group/models"
    cut:     number of bytes after which the next answers break off, one entry per answer
    """

    def __init__(self):
        self.files = {}
        self.repository = {}
        self.cut = []
        self.status = []
        self.requests = []
        self.redirect = {}
        self.url = ""

    def answer(self, request):
        path = unquote(urlsplit(request.path).path)
        self.requests.append((request.command, path))
        if self.status:
            return request.reply(self.status.pop(0), b"")
        if path in self.redirect:
            return request.reply(302, b"", Location=self.redirect[path])
        if path in self.files:
            return self._file(request, path, self.files[path])
        if path.startswith("/api/models/group/models/tree/"):
            names = sorted(self.repository)
            entries = [{"type": "file", "path": n, "size": 1, "oid": "0" * 40} for n in names]
            body = json.dumps(entries).encode()
            return request.reply(200, body, **{"Content-Type": "application/json"})
        return self._hub(request, path)

    def _hub(self, request, path):
        repository, _, rest = path.removeprefix("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        if repository != "group/models":
            return request.reply(404, b"", **{"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", "v1", COMMIT):
            return request.reply(404, b"", **{"X-Error-Code": "RevisionNotFound"})
        if name not in self.repository:
            return request.reply(404, b"", **{"X-Error-Code": "EntryNotFound"})
        content = self.repository[name]
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        return request.reply(200, content, **{"ETag": etag, "X-Repo-Commit": COMMIT})

    def _file(self, request, path, content):
        etag = f'"{hashlib.sha256(content).hexdigest()[:8]}"'
        kind = "text/html" if path.endswith("page") else "application/octet-stream"
        headers = {"ETag": etag, "Content-Type": kind}
        cut = self.cut.pop(0) if self.cut else None
        return request.reply(200, content, cut=cut, **headers)


@contextmanager
def serving():
    """A FileServer that answers until the block ends."""
    state = FileServer()

    class Handler(BaseHTTPRequestHandler):
        def reply(self, status, body, cut=None, **headers):
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[:cut])

        def do_GET(self):
            state.answer(self)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
