"""Connections of a gateway: bounded in number, and each bounded in the time and bytes that its headers may take.

uvicorn bounds none of these. A thousand connections with half a header would use up the descriptors of the process.
llhttp, a parser in C, reads the requests. A request that a proxy in front may read otherwise is refused.
"""

from __future__ import annotations

import asyncio
import logging
import re
import resource
import socket
from asyncio.trsock import TransportSocket
from collections.abc import Iterable
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from results_store.loops.log_lines import Throttle

log = logging.getLogger(__name__)
log.addFilter(Throttle())

#: Seconds for the headers of a request to arrive.
HEADERS_S = 10.0

#: Seconds after which a connection ends whose peer has taken nothing of an answer, whole or not.
UNREAD_S = 30.0

#: The most bytes that are read at a time. Each connection may hold as many that nothing has asked for yet.
READ_BYTES = 2**16

#: The most bytes of a request in a row that are no body: its headers, the frame of a chunk, its trailers. The bound is
#: checked at each read.
HEADER_BYTES = 2**14

#: The target of a request: a path with its query and without a fragment. A host in it would contradict `Host`.
TARGET = re.compile(rb"/[\x21\x22\x24-\x7e]*")

#: The headers that say where a body ends.
FRAMING = (b"content-length", b"transfer-encoding")

#: The most connections that are accepted in a turn of the event loop. A dropped connection keeps its descriptor for
#: three turns more.
ACCEPTED = 32

#: Descriptors that are left for the store, the broker, files and connections that are being dropped.
OWN_DESCRIPTORS = 128 + 4 * ACCEPTED

#: Connections that wait in the kernel to be accepted.
BACKLOG = 2048


class BoundedConnection(HttpToolsProtocol):
    """A connection whose headers must arrive in time, and whose answers must be taken. At the limit of connections, the
    one that waits longest goes.

    A request that arrives before the answer to the previous one waits. If both arrive in a single packet, the second
    request is not read. The connection then ends after the answer, so that the client sends the request again.
    """

    #: Connections whose next request has not arrived, the longest waiting first.
    waiting: dict[BoundedConnection, asyncio.TimerHandle] = {}  # noqa: RUF012 - of the process, like its descriptors

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.max_size = READ_BYTES  # type: ignore[attr-defined] # asyncio's own is 256 KiB
        self._deaf = False  # nothing more is read
        self._later = b""  # what came behind a whole request
        self._in_headers = False
        self._again = False  # these headers were read before
        self._beside = 0  # bytes since the headers or a part of the body
        self._unread: asyncio.TimerHandle | None = None
        if len(self.connections) > most_connections():
            next(iter(self.waiting), self).drop("there are too many connections")
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._arrived()
        self._stop_looking()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._look_later()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_looking()
        if not self._serving:
            self._look_at_the_rest()

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._deaf:
            return
        if self._serving and not self.cycle.more_body:  # for later; the end of an answer may not be known here yet
            self._later += data
            if len(self._later) > HEADER_BYTES:
                self._refuse("there are requests behind one that is not answered")
            return
        self._beside += len(data)
        try:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                self._read_on(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._refuse(str(error.__context__ or error))
        if self._beside > HEADER_BYTES and not self._deaf:
            self._refuse(f"more than {HEADER_BYTES:,} bytes are no body")
        if self._serving:
            self._arrived()
        elif self not in self.waiting and not self.transport.is_closing():
            self._wait()

    def _read_on(self, rest: bytes) -> None:
        """Read the body behind an offer of another protocol, at which llhttp ends. Java's client makes such offers."""
        self.parser = httptools.HttpRequestParser(self)
        framing = [b"%s: %s\r\n" % header for header in self.headers if header[0] in FRAMING]
        self._again = True
        self.parser.feed_data(b"POST / HTTP/1.1\r\n%s\r\n" % b"".join(framing))
        self._again = False
        self.parser.feed_data(rest)

    def on_message_begin(self) -> None:
        if self._again:
            return
        if self._serving:
            raise ValueError("the request before it is not answered")
        super().on_message_begin()
        self._in_headers = True
        if not self.flow.write_paused:
            self._stop_looking()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_headers:  # trailers are not read
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._again:
            return
        self._in_headers, self._beside = False, 0
        _check_head(self.parser.get_http_version(), self.url, self.headers)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._beside = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._look_at_the_rest()
        later, self._later = self._later, b""
        if later and not self._deaf and not self.transport.is_closing():
            self.data_received(later)

    def drop(self, reason: str) -> None:
        """End the connection without an answer."""
        log.info("%s: cut off: %s", self.client, reason)
        self._arrived()
        self.transport.abort()

    @property
    def _serving(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, reason: str) -> None:
        """Read nothing more. Answer 400, unless an answer to an earlier part of the data has begun or will come."""
        self._deaf = True
        if self._serving and not self.cycle.more_body:
            self.cycle.keep_alive = False
        elif self.cycle is not None and self.cycle.more_body and self.cycle.response_started:
            self.drop(reason)
        else:
            log.info("%s: refused: %s", self.client, reason)
            if self._serving:
                self.cycle.disconnected = True
                self.cycle.message_event.set()
            self.send_400_response("Invalid HTTP request received.")

    def _look_at_the_rest(self) -> None:
        """See that what is left of a whole answer is taken: uvicorn, and asyncio at a close, wait for it for ever."""
        if self.transport.get_write_buffer_size():
            self._look_later()

    def _look_later(self) -> None:
        """Drop the connection if the peer takes nothing of what is left for `UNREAD_S`."""
        self._stop_looking()
        self._unread = self.loop.call_later(UNREAD_S, self._look, self.transport.get_write_buffer_size())

    def _look(self, before: int) -> None:
        left = self.transport.get_write_buffer_size()
        if left >= before:
            self.drop(f"nothing of an answer was taken for {UNREAD_S:g} s")
        elif left:
            self._look_later()

    def _stop_looking(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _wait(self) -> None:
        timer = self.loop.call_later(HEADERS_S, self.drop, f"no whole header arrived within {HEADERS_S:g} s")
        self.waiting[self] = timer

    def _arrived(self) -> None:
        if timer := self.waiting.pop(self, None):
            timer.cancel()


def _check_head(version: str, target: bytes, headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Raise ValueError for headers that a proxy in front may understand otherwise, and that llhttp allows."""
    hosts = [value for name, value in headers if name == b"host"]
    codings = [value.lower() for name, value in headers if name == b"transfer-encoding"]
    if version not in ("1.0", "1.1") or len(hosts) > 1 or (version == "1.1" and not hosts):
        raise ValueError("the version is not served, or there is not one Host")
    if codings and (version == "1.0" or codings != [b"chunked"]):
        raise ValueError("the Transfer-Encoding is not served")
    if TARGET.fullmatch(target) is None:
        raise ValueError("the target is no path")


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
