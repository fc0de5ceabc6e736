"""``python -m tests.stack.forking_server``: a pre-fork HTTP server, as gunicorn with ``--preload`` is.

The parent makes the client and uses it; then it forks, and each process takes requests from the same socket, one at a
time. A request is a text; the answer is JSON with the model's output and the process that answered. The first line of
the output is the port. SIGTERM ends all processes.
"""

from __future__ import annotations

import json
import os
import signal
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import FrameType

from producers import ArgosyError, Client

CHILDREN = 3

client = Client()


class Server(HTTPServer):
    request_queue_size = 1024


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers["Content-Length"])).decode()
        try:
            output = client.submit("echo", text, priority="interactive").result(timeout_s=60)
        except ArgosyError as error:
            self.send_error(503, f"{type(error).__name__}")
            return
        body = json.dumps({"output": output, "pid": os.getpid()}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def main() -> None:
    client.submit("echo", "a warm-up in the parent").result(timeout_s=60)
    server = Server(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)  # noqa: T201
    children = []
    for _ in range(CHILDREN):
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            server.serve_forever()
        children.append(child)

    def stop(*_: int | FrameType | None) -> None:
        for child in children:
            os.kill(child, signal.SIGTERM)
            os.waitpid(child, 0)
        raise SystemExit

    signal.signal(signal.SIGTERM, stop)
    server.serve_forever()


if __name__ == "__main__":
    main()
