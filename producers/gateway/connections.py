"""Connections of a gateway: bounded in number, and each bounded in the time that its headers may take.

uvicorn bounds neither. A thousand connections with half a header would use up the descriptors of the process.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from asyncio.trsock import TransportSocket
from collections.abc import Iterable
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

log = logging.getLogger(__name__)

#: Seconds for the headers of a request to arrive.
HEADERS_S = 10.0

#: The most bytes that are read at a time. Each connection may hold as many that nothing has asked for yet.
READ_BYTES = 2**16

#: The most connections that are accepted in a turn of the event loop. A dropped connection keeps its descriptor for
#: three turns more.
ACCEPTED = 32

#: Descriptors that are left for the store, the broker, files and connections that are being dropped.
OWN_DESCRIPTORS = 128 + 4 * ACCEPTED

#: Connections that wait in the kernel to be accepted.
BACKLOG = 2048


class BoundedConnection(H11Protocol):
    """A connection whose headers must arrive in time. At the limit of connections, the one that waits longest goes."""

    #: Connections whose next request has not arrived, the longest waiting first.
    waiting: dict[BoundedConnection, asyncio.TimerHandle] = {}  # noqa: RUF012 - of the process, like its descriptors

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.max_size = READ_BYTES  # type: ignore[attr-defined] # asyncio's own is 256 KiB
        if len(self.connections) > most_connections():
            next(iter(self.waiting), self).drop("there are too many connections")
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._arrived()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._arrived()
        elif self not in self.waiting and not self.transport.is_closing():
            self._wait()

    def drop(self, reason: str) -> None:
        """End the connection without an answer."""
        log.info("%s: cut off: %s", self.client, reason)
        self._arrived()
        self.transport.abort()

    def _wait(self) -> None:
        timer = self.loop.call_later(HEADERS_S, self.drop, f"no whole header arrived within {HEADERS_S:g} s")
        self.waiting[self] = timer

    def _arrived(self) -> None:
        if timer := self.waiting.pop(self, None):
            timer.cancel()


def lengthen_backlog(listening: Iterable[socket.socket | TransportSocket]) -> None:
    """Let `BACKLOG` connections wait: asyncio would accept so many at once and run out of descriptors."""
    for one in listening:
        with socket.fromfd(one.fileno(), one.family, one.type) as same:
            same.listen(BACKLOG)


def most_connections() -> int:
    """Return the number of connections that the process's descriptors allow."""
    return max(16, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - OWN_DESCRIPTORS)


def raise_limit() -> None:
    """Raise the limit of descriptors as far as this process may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted: Any = hard if hard != resource.RLIM_INFINITY else 65_536
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, 65_536), hard))
