"""A package registry on loopback: a simple index and its files, which can be told to break off in the middle."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Registry(ThreadingHTTPServer):
    """Serves `files` by name, all of them on every package's page; breaks off the next `cuts` downloads half way.

    If `refuses` is a status, every answer is that one.
    """

    daemon_threads = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.cuts = 0
        self.refuses = 0
        self.html = False
        self.ignores_ranges = False
        self.asked: list[tuple[str, str | None]] = []  # (path, its Range)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, name: str, content: bytes) -> str:
        """Offer a file; return its sha256."""
        self.files[name] = content
        return sha256(content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: Registry

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append((self.path, wanted))
        if self.server.refuses:
            self._answer(self.server.refuses, b"", "text/plain")
        elif self.path.startswith("/files/") or "/by-hash/" in self.path:
            self._file(self.server.files[self.path.rpartition("/")[2]], wanted)
        elif self.path.startswith("/simple/absent"):
            self._answer(404, b"", "text/plain")
        elif self.path.startswith("/simple/"):
            self._page()
        else:  # npm asks for /NAME/VERSION
            [name] = self.server.files
            document = {"dist": {"tarball": f"{self.server.url}/files/{name}"}}
            self._answer(200, json.dumps(document).encode(), "application/json")

    def _page(self) -> None:
        if self.server.html:
            links = "".join(f'<a href="../../files/{name}#sha256=x">{name}</a>' for name in self.server.files)
            self._answer(200, links.encode(), "text/html")
            return
        files = [{"filename": name, "url": f"/files/{name}", "hashes": {}} for name in self.server.files]
        self._answer(200, json.dumps({"files": files}).encode(), "application/vnd.pypi.simple.v1+json")

    def _file(self, content: bytes, wanted: str | None) -> None:
        start = 0
        if wanted and not self.server.ignores_ranges:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        if start >= len(content):
            self._answer(416, b"", "text/plain")
        elif self.server.cuts:
            self.server.cuts -= 1
            self._answer(206 if start else 200, content[start:], "application/zip", send=(len(content) - start) // 2)
        else:
            self._answer(206 if start else 200, content[start:], "application/zip")

    def _answer(self, status: int, body: bytes, kind: str, send: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:send])
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
        """Say nothing."""


@contextmanager
def registry() -> Iterator[Registry]:
    """A registry that runs until the end of the block."""
    with Registry() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
