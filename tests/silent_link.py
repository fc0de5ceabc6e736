"""A link that goes silent without a word: a TCP proxy that stops forwarding, and never closes."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

Connect = Callable[[], socket.socket]


def to_port(port: int) -> Connect:
    return lambda: socket.create_connection(("127.0.0.1", port))


def to_path(path: str) -> Connect:
    def connect() -> socket.socket:
        upstream = socket.socket(socket.AF_UNIX)
        upstream.connect(path)
        return upstream

    return connect


class SilentLink:
    """Forwards connections to a server. `hush` silences those that are there, for good, and new ones until `speak`."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self._silent: set[socket.socket] = set()
        self._mute = False
        self._closing = threading.Event()
        self._threads = [threading.Thread(target=self._accept, name="silent link")]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes its thread
        self._listener.close()
        for end in self._sockets:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join()
        for end in self._sockets:
            end.close()

    @property
    def connections(self) -> int:
        """How many were made so far."""
        return len(self._sockets) // 2

    def hush(self, *, new: bool = False) -> int:
        """Forward nothing any more on the connections that are there; return how many. `new`: nor on new ones."""
        self._mute = new
        hushed = set(self._sockets) - self._silent
        self._silent |= hushed
        return len(hushed) // 2

    def speak(self) -> None:
        """Forward new connections again."""
        self._mute = False

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = self._connect()
            self._sockets += [client, server]
            if self._mute:
                self._silent |= {client, server}
            for pair in ((client, server), (server, client)):
                thread = threading.Thread(target=self._pump, args=pair, name="silent link")
                self._threads.append(thread)
                thread.start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if source not in self._silent:
                    sink.sendall(data)
        if source not in self._silent:
            with suppress(OSError):
                sink.shutdown(socket.SHUT_RDWR)
