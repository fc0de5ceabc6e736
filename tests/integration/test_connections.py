"""Raw bytes at a gateway's connections: what a proxy in front may read otherwise is refused, and all of it is bounded."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from urllib.parse import unquote

import pytest
from starlette.types import Message, Receive, Scope, Send

from producers.gateway.connections import HEADER_BYTES, READ_BYTES
from tests.end_to_end.gateway_server import served
from tests.end_to_end.processes import until


class Echo:
    """An application that answers with what it has read. `/held` waits until `release`, or until the caller leaves."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.release = threading.Event()
        self.left = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        self.seen.append(scope["path"])
        if scope["path"] == "/unread":
            await answer(send, 413, b"")
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if scope["path"] == "/late":
            length = (b"content-length", b"4")
            await send({"type": "http.response.start", "status": 200, "headers": [length]})
            await send({"type": "http.response.body", "body": b"late", "more_body": True})
            await asyncio.to_thread(self.release.wait, 30)
            await send({"type": "http.response.body"})
            return
        if scope["path"] == "/held":
            message = await self._held(receive)
        if message["type"] == "http.disconnect":
            self.left.set()
            return
        names = [name.decode() for name, _ in scope["headers"]]
        told = {"method": scope["method"], "path": scope["path"], "body": body.decode(), "names": names}
        await answer(send, 200, json.dumps(told).encode())

    async def _held(self, receive: Receive) -> Message:
        released = asyncio.ensure_future(asyncio.to_thread(self.release.wait, 30))
        leaving = asyncio.ensure_future(receive())
        await asyncio.wait([leaving, released], return_when=asyncio.FIRST_COMPLETED)
        self.release.set()
        await released
        leaving.cancel()
        return {"type": "http.request"} if leaving.cancelled() or not leaving.done() else leaving.result()


async def answer(send: Send, status: int, body: bytes) -> None:
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [length]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Echo, tuple[str, int]]]:
    echo = Echo()
    with served(echo) as url:  # type: ignore[arg-type] # any ASGI application
        host, _, port = url.removeprefix("http://").partition(":")
        yield echo, (host, int(port))
        echo.release.set()


@pytest.fixture
def echo(server: tuple[Echo, tuple[str, int]]) -> Iterator[Echo]:
    found, _ = server
    found.seen.clear()
    found.release.clear()
    found.left.clear()
    yield found
    found.release.set()


@pytest.fixture
def address(server: tuple[Echo, tuple[str, int]]) -> tuple[str, int]:
    return server[1]


def answers(address: tuple[str, int], *sent: bytes) -> bytes:
    """All that comes back until the connection ends, or until the client has nothing more to say."""
    with socket.create_connection(address, timeout=30) as connection, contextlib.suppress(ConnectionError):
        got = b""
        for part in sent:
            connection.sendall(part)
        connection.shutdown(socket.SHUT_WR)
        while part := connection.recv(2**16):
            got += part
        return got
    return got


def one_answer(connection: socket.socket) -> bytes:
    """The next answer, to the end of its body."""
    with connection.makefile("rb") as file:
        head = b"".join(iter(file.readline, b"\r\n")) + b"\r\n"
        return head + file.read(int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]))


def told(got: bytes) -> list[dict[str, object]]:
    """The echoes in some answers."""
    return [json.loads(part.partition(b"\r\n\r\n")[2]) for part in got.split(b"HTTP/1.1 200 OK\r\n")[1:]]


HEAD = b"POST / HTTP/1.1\r\nHost: gateway\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
INSIDE = b"GET /smuggled HTTP/1.1\r\nHost: gateway\r\n\r\n"

REFUSED = {
    "two lengths": HEAD + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\n" + INSIDE,
    "one length twice": HEAD + b"Content-Length: 4\r\nContent-Length: 4\r\n\r\n" + INSIDE,
    "a list of lengths": HEAD + b"Content-Length: 4, 4\r\n\r\n" + INSIDE,
    "a length and chunks": HEAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + INSIDE,
    "chunks and a length": HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" + INSIDE,
    "a signed length": HEAD + b"Content-Length: +4\r\n\r\n" + INSIDE,
    "a negative length": HEAD + b"Content-Length: -4\r\n\r\n" + INSIDE,
    "a hexadecimal length": HEAD + b"Content-Length: 0x4\r\n\r\n" + INSIDE,
    "an empty length": HEAD + b"Content-Length:\r\n\r\n" + INSIDE,
    "a length beyond all": HEAD + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n" + INSIDE,
    "another coding": HEAD + b"Transfer-Encoding: gzip\r\n\r\n" + INSIDE,
    "two codings": HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n" + INSIDE,
    "chunked twice": HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + INSIDE,
    "chunked and identity": HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + INSIDE,
    "a coding with a quirk": HEAD + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n" + INSIDE,
    "an empty coding": HEAD + b"Transfer-Encoding:\r\n\r\n" + INSIDE,
    "chunks of HTTP/1.0": b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + INSIDE,
    "a space before the colon": HEAD + b"Content-Length : 4\r\n\r\n" + INSIDE,
    "a space before the first name": b"POST / HTTP/1.1\r\n Host: gateway\r\n\r\n" + INSIDE,
    "a folded header": HEAD + b"X-Folded: a\r\n b\r\n\r\n" + INSIDE,
    "a folded length": HEAD + b"Content-Length:\r\n 4\r\n\r\n" + INSIDE,
    "a bare CR": HEAD + b"X-Odd: a\rTransfer-Encoding: chunked\r\n\r\n" + INSIDE,
    "a bare CR at an end": HEAD + b"X-Odd: a\r\r\n\r\n" + INSIDE,
    "bare LFs": b"POST / HTTP/1.1\nHost: gateway\n\n" + INSIDE,
    "a NUL": HEAD + b"X-Odd: a\0b\r\n\r\n" + INSIDE,
    "a control character": HEAD + b"X-Odd: a\x01b\r\n\r\n" + INSIDE,
    "a name that is no token": HEAD + b"X Odd: a\r\n\r\n" + INSIDE,
    "no name": HEAD + b": a\r\n\r\n" + INSIDE,
    "no colon": HEAD + b"X-Odd\r\n\r\n" + INSIDE,
    "no host": b"GET / HTTP/1.1\r\n\r\n" + INSIDE,
    "two hosts": b"GET / HTTP/1.1\r\nHost: gateway\r\nHost: elsewhere\r\n\r\n" + INSIDE,
    "a host in the target": b"GET http://elsewhere/ HTTP/1.1\r\nHost: gateway\r\n\r\n" + INSIDE,
    "a fragment in the target": b"GET /#there HTTP/1.1\r\nHost: gateway\r\n\r\n" + INSIDE,
    "another protocol with two lengths": (
        HEAD + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\n" + INSIDE
    ),
    "a tunnel": b"CONNECT elsewhere:443 HTTP/1.1\r\nHost: gateway\r\n\r\n" + INSIDE,
    "no path": b"OPTIONS * HTTP/1.1\r\nHost: gateway\r\n\r\n" + INSIDE,
    "a space in the target": b"GET /a b HTTP/1.1\r\nHost: gateway\r\n\r\n" + INSIDE,
    "a byte over 127 in the target": b"GET /\xff HTTP/1.1\r\nHost: gateway\r\n\r\n" + INSIDE,
    "a byte over 127 in the query": b"GET /?\xff HTTP/1.1\r\nHost: gateway\r\n\r\n" + INSIDE,
    "a tab in the target": b"GET /\t HTTP/1.1\r\nHost: gateway\r\n\r\n" + INSIDE,
    "HTTP/0.9": b"GET /\r\nHost: gateway\r\n\r\n" + INSIDE,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/2 in name": b"GET / HTTP/2.0\r\nHost: gateway\r\n\r\n" + INSIDE,
    "HTTP/1.2": b"GET / HTTP/1.2\r\nHost: gateway\r\n\r\n" + INSIDE,
    "a method that is none": b"get / HTTP/1.1\r\nHost: gateway\r\n\r\n" + INSIDE,
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
    "nothing of HTTP": bytes(range(256)),
    "a chunk without a length": CHUNKED + b"\r\n\r\n" + INSIDE,
    "a chunk of a signed length": CHUNKED + b"+1\r\na\r\n0\r\n\r\n" + INSIDE,
    "a chunk of 0x1": CHUNKED + b"0x1\r\na\r\n0\r\n\r\n" + INSIDE,
    "a chunk of a length beyond all": CHUNKED + b"f" * 17 + b"\r\na\r\n0\r\n\r\n" + INSIDE,
    "a chunk longer than it says": CHUNKED + b"1\r\nab\r\n0\r\n\r\n" + INSIDE,
    "a chunk of a bare LF": CHUNKED + b"1\na\n0\n\n" + INSIDE,
    "a chunk with a space behind": CHUNKED + b"1 \r\na\r\n0\r\n\r\n" + INSIDE,
    "a bare LF in an extension": CHUNKED + b"1;a\nb\r\na\r\n0\r\n\r\n" + INSIDE,
}  # fmt: skip


@pytest.mark.parametrize("sent", REFUSED.values(), ids=REFUSED)
def test_a_request_that_may_be_read_otherwise_is_refused(echo: Echo, address: tuple[str, int], sent: bytes) -> None:
    """With one answer, and nothing behind it is taken for another request."""
    got = answers(address, sent)
    assert got.startswith(b"HTTP/1.1 400 ")
    assert got.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in got.lower()
    assert "/smuggled" not in echo.seen


SERVED = {
    "a body by its length": (HEAD + b"Content-Length: 4\r\n\r\nbody", "body"),
    "a body in chunks": (CHUNKED + b"2;name=value\r\nbo\r\n2\r\ndy\r\n0\r\nTrailer: x\r\n\r\n", "body"),
    "chunked in capitals": (HEAD + b"Transfer-Encoding: CHUNKED\r\n\r\n4\r\nbody\r\n0\r\n\r\n", "body"),
    "no body": (HEAD + b"Content-Length: 0\r\n\r\n", ""),
    "HTTP/1.0 without a host": (b"POST / HTTP/1.0\r\nContent-Length: 4\r\n\r\nbody", "body"),
    "Java asks for HTTP/2": (
        HEAD + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nContent-Length: 4\r\n\r\nbody",
        "body",
    ),
    "HTTP/2 with chunks": (
        HEAD + b"Connection: Upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
        "body",
    ),
    "a websocket": (HEAD + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n", ""),
    "an empty line before": (b"\r\n" + HEAD + b"\r\n", ""),
    "an empty header": (HEAD + b"X-Empty:\r\n\r\n", ""),
    "leading zeros": (HEAD + b"Content-Length: 0004\r\n\r\nbody", "body"),
}


@pytest.mark.parametrize(("sent", "body"), SERVED.values(), ids=SERVED)
@pytest.mark.parametrize("byte_by_byte", [False, True])
def test_a_right_request_is_served(address: tuple[str, int], sent: bytes, body: str, byte_by_byte: bool) -> None:
    """However it is cut into packets; trailers are not headers."""
    parts = [sent[at : at + 1] for at in range(len(sent))] if byte_by_byte else [sent]
    (found,) = told(answers(address, *parts))
    assert (found["method"], found["path"], found["body"]) == ("POST", "/", body)
    assert "trailer" not in found["names"]  # type: ignore[operator]


@pytest.mark.parametrize("path", ["/", "//elsewhere/x", "/a/../b", "/:80/", "/a:b@c", "/%2e%2F", "/a;b", "/*"])
def test_a_path_is_taken_as_it_is(echo: Echo, address: tuple[str, int], path: str) -> None:
    answers(address, f"GET {path}?a=b?c&d=//e HTTP/1.1\r\nHost: gateway\r\n\r\n".encode())
    assert echo.seen == [unquote(path)]


def test_requests_follow_each_other(address: tuple[str, int]) -> None:
    """On one connection, each after the answer to the one before, also behind an offer of another protocol."""
    with socket.create_connection(address, timeout=30) as connection:
        for sent in (*[case for case, _ in SERVED.values() if b"/1.0" not in case], CHUNKED + b"0\r\n\r\n"):
            connection.sendall(sent)
            assert told(one_answer(connection))


def test_a_request_behind_another_is_not_read(echo: Echo, address: tuple[str, int]) -> None:
    """The first is answered, and the connection ends: a client that sends ahead sends the rest again. Whoever leaves
    meanwhile is noticed, or each request that waits for ever would keep its slot.
    """
    first = b"GET /held HTTP/1.1\r\nHost: gateway\r\n\r\n"
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(first + INSIDE * 1000)
        connection.sendall(INSIDE * 1000)
        until(lambda: echo.seen == ["/held"])
        echo.release.set()
        got = b""
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(2**16):
                got += part
    assert (got.count(b"HTTP/1.1 200"), got.count(b"HTTP/1.1 ")) == (1, 1)
    echo.release.clear()
    echo.left.clear()
    with socket.create_connection(address) as connection:
        connection.sendall(first + INSIDE * 1000)
        until(lambda: echo.seen == ["/held"] * 2)
    assert echo.left.wait(30)
    assert "/smuggled" not in echo.seen


def test_an_answer_ends_for_the_client_first(echo: Echo, address: tuple[str, int]) -> None:
    """A client that has all bytes of an answer sends its next request, though the application has not ended the answer."""
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(b"GET /late HTTP/1.1\r\nHost: gateway\r\n\r\n")
        assert one_answer(connection).endswith(b"late")
        connection.sendall(HEAD)
        connection.sendall(b"Content-Length: 4\r\n\r\nbo")
        assert told(answers(address, HEAD + b"\r\n"))  # by now the server has read all of this
        echo.release.set()
        connection.sendall(b"dy")
        (found,) = told(one_answer(connection))
    assert found["body"] == "body"


def test_a_body_that_breaks_ends_its_request(echo: Echo, address: tuple[str, int]) -> None:
    """The application hears that the caller has gone, and writes nothing behind the refusal."""
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(CHUNKED + b"1\r\na\r\n")
        until(lambda: echo.seen == ["/"])
        connection.sendall(b"no chunk\r\n")
        got = b""
        while part := connection.recv(2**16):
            got += part
    assert got.count(b"HTTP/1.1 ") == 1
    assert got.startswith(b"HTTP/1.1 400 ")
    assert echo.left.wait(30)


def test_the_rest_of_a_refused_body_is_no_request(echo: Echo, address: tuple[str, int]) -> None:
    """Answered before its body came: the body is let pass, and the next request is read behind it."""
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(b"POST /unread HTTP/1.1\r\nHost: gateway\r\nContent-Length: %d\r\n\r\n" % len(INSIDE))
        assert one_answer(connection).startswith(b"HTTP/1.1 413 ")
        connection.sendall(INSIDE + HEAD + b"\r\n")
        (found,) = told(one_answer(connection))
    assert found["path"] == "/"
    assert "/smuggled" not in echo.seen


def test_nothing_is_written_behind_an_answer(address: tuple[str, int]) -> None:
    """A client may take it for the answer to its next request."""
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(b"POST /unread HTTP/1.1\r\nHost: gateway\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert one_answer(connection).startswith(b"HTTP/1.1 413 ")
        connection.sendall(b"no chunk\r\n")
        with contextlib.suppress(ConnectionError):
            assert connection.recv(2**16) == b""


ENDLESS = {
    "target": b"GET /",
    "a header": HEAD + b"X-Long: ",
    "headers": (HEAD, b"X-Many: a\r\n"),
    "a name": HEAD + b"X-",
    "empty lines": (b"", b"\r\n"),
    "an extension of a chunk": CHUNKED + b"1;",
    "trailers": (CHUNKED + b"0\r\n", b"X-Many: a\r\n"),
    "a trailer": CHUNKED + b"0\r\nX-Long: ",
    "zeros of a chunk's length": (CHUNKED, b"0"),
}


@pytest.mark.parametrize("case", ENDLESS.values(), ids=ENDLESS)
def test_nothing_but_a_body_has_no_end(address: tuple[str, int], case: bytes | tuple[bytes, bytes]) -> None:
    """Whoever sends more than the bound beside a body is refused, and the connection ends."""
    begun, more = case if isinstance(case, tuple) else (case, b"a")
    most = HEADER_BYTES + READ_BYTES
    with socket.create_connection(address, timeout=30) as connection:
        got = b""
        with contextlib.suppress(ConnectionError):
            connection.sendall(begun + more * (most // len(more) + 1))
            while part := connection.recv(2**16):
                got += part
    assert not got or got.startswith(b"HTTP/1.1 400 ")


def test_a_long_body_in_small_chunks_is_read(address: tuple[str, int]) -> None:
    """Its frame is longer than the bound, but no part of it is."""
    (found,) = told(answers(address, CHUNKED, b"1\r\na\r\n" * 20_000, b"0\r\n\r\n"))
    assert found["body"] == "a" * 20_000
