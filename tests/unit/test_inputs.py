"""What a worker reads on a stranger's word: only what it was told it may."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from producers.wire.errors import InputTooLarge, InputUnavailable, InvalidInput
from producers.wire.messages import InlineBytes, PathInput, UrlInput
from workers.envelope import inputs
from workers.envelope.fetching import _allowed
from workers.envelope.input_limits import InputLimits


def test_text_and_bytes_are_taken_as_they_are() -> None:
    """The common case touches neither disk nor network."""
    assert inputs.read("a text", InputLimits()) == "a text"
    assert inputs.read(InlineBytes(b"abc"), InputLimits()) == b"abc"


def test_too_much_is_refused() -> None:
    """A message put on Redis by hand has not passed the producer's checks."""
    limits = InputLimits(max_text_chars=10, max_input_bytes=10)
    with pytest.raises(InputTooLarge, match="11 characters, over 10"):
        inputs.read("x" * 11, limits)
    with pytest.raises(InputTooLarge, match="bytes"):
        inputs.read(InlineBytes(b"x" * 11), limits)


# --- paths ----------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An allowed root with a file, beside a secret."""
    (tmp_path / "root" / "sub").mkdir(parents=True)
    (tmp_path / "root" / "sub" / "a.png").write_bytes(b"image")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "root-too").mkdir()
    (tmp_path / "root-too" / "b.png").write_bytes(b"other")
    return tmp_path / "root"


def test_a_file_under_a_root_is_read(root: Path) -> None:
    """By its whole path, or relative to the root: producer and worker may see one folder at different places."""
    limits = InputLimits(allowed_roots=(str(root),))
    assert inputs.read(PathInput(str(root / "sub" / "a.png")), limits) == b"image"
    assert inputs.read(PathInput("sub/a.png"), limits) == b"image"


@pytest.mark.parametrize(
    "path", ["../secret", "{}/../secret", "/etc/passwd", "{}-too/b.png", "sub/missing.png", "a\0b", "link"]
)
def test_nothing_else_is(root: Path, path: str) -> None:
    """By any spelling, and by any link; and all alike, so that nobody can probe for files."""
    (root / "link").symlink_to(root.parent / "secret")
    with pytest.raises(InvalidInput) as caught:
        inputs.read(PathInput(path.format(root)), InputLimits(allowed_roots=(str(root),)))
    assert "is not a file that the worker may read" in str(caught.value)


def test_without_roots_no_path_is_read(root: Path) -> None:
    """Reading files is off until the operator says where."""
    with pytest.raises(InvalidInput, match="allowed_roots"):
        inputs.read(PathInput(str(root / "sub" / "a.png")), InputLimits())


def test_only_regular_files_are_read(root: Path) -> None:
    """A named pipe would hold the worker's thread for ever."""
    os.mkfifo(root / "pipe")
    limits = InputLimits(allowed_roots=(str(root),))
    for name in ("pipe", "sub"):
        with pytest.raises(InvalidInput):
            inputs.read(PathInput(name), limits)


def test_a_large_file_is_not_read(root: Path) -> None:
    """Its size is looked at before its content."""
    with pytest.raises(InputTooLarge):
        inputs.read(PathInput("sub/a.png"), InputLimits(allowed_roots=(str(root),), max_input_bytes=4))


# --- URLs -----------------------------------------------------------------------------------------

Answer = Callable[[BaseHTTPRequestHandler], None]


@pytest.mark.parametrize("host", ["x.example", "X.example:443", "x.example.", "http://x.example:80"])
def test_a_listed_host_may_have_the_usual_port(host: str) -> None:
    scheme = "http" if host.startswith("http:") else "https"
    for url in (f"{scheme}://x.example/a.png", f"{scheme}://x.example:{80 if scheme == 'http' else 443}/a.png"):
        assert _allowed(url, InputLimits(allowed_hosts=(host,))).hostname == "x.example"


@contextmanager
def web(answer: Answer) -> Iterator[tuple[str, list[str]]]:
    """A web server on loopback; yields its ``host:port`` and the Host headers it was asked with."""
    hosts: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hosts.append(str(self.headers["Host"]))
            self.close_connection = True
            answer(self)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"localhost:{server.server_port}", hosts
        finally:
            server.shutdown()
            thread.join()


def sends(body: bytes, status: int = 200, **headers: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        with contextlib.suppress(ConnectionError):  # the worker hung up, as it should
            request.wfile.write(body)

    return answer


def own_network(host: str, **more: Any) -> InputLimits:
    return InputLimits(allowed_hosts=(f"http://{host}",), allow_private_addresses=True, **more)


def test_a_listed_host_is_fetched_from() -> None:
    """The request goes to the address that was checked, and still names its host."""
    with web(sends(b"image")) as (host, asked):
        assert inputs.read(UrlInput(f"http://{host}/a.png?b#c"), own_network(host)) == b"image"
        assert asked == [host]


@pytest.mark.parametrize(
    "url",
    [
        "https://other.example/a.png",
        "https://listed.example.other.example/",
        "https://notlisted.example/",
        "https://listed.example:8443/",
        "http://listed.example/",
        "ftp://listed.example/a",
        "file:///etc/passwd",
        "https://user:word@listed.example/",
        "https://listed.example@other.example/",
        "https:///a",
        "https://[::1",
        "https://listed.example:99999/",
        "//listed.example/a",
    ],
)
def test_any_other_is_not(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused by its spelling, before a name is looked up."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("a name was looked up"))
    with pytest.raises(InvalidInput) as caught:
        inputs.read(UrlInput(url), InputLimits(allowed_hosts=("listed.example", "*.wild.example")))
    assert not isinstance(caught.value, InputUnavailable)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1",
        "255.255.255.255", "::1", "::", "fe80::1", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254",
        "64:ff9b::7f00:1", "2002:7f00:1::", "::127.0.0.1", "64:ff9b:1::7f00:1", "2001:0:7f00:1::80ff:fffe",
    ],
)  # fmt: skip
def test_a_listed_name_may_not_lead_inside(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever owns the name chooses its address: the cloud's metadata service, a database. One bad one is enough."""
    found = [(0, 0, 0, "", ("93.184.215.14", 443)), (0, 0, 0, "", (address, 443))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(InvalidInput, match="not public"):
        inputs.read(UrlInput("https://a.wild.example/x"), InputLimits(allowed_hosts=("*.wild.example",)))


def test_a_redirect_is_checked_like_the_first_url() -> None:
    """An open redirect on a listed host must not lead to a host that is not."""
    with web(sends(b"", 302, Location="http://127.0.0.1:1/inside")) as (host, asked):
        with pytest.raises(InvalidInput, match=r"is on http://127\.0\.0\.1:1, from which the worker does not fetch"):
            inputs.read(UrlInput(f"http://{host}/"), own_network(host))
        assert len(asked) == 1


def test_redirects_end() -> None:
    """Two hosts that send back and forth would hold a thread for ever."""
    with web(sends(b"", 302, Location="/again")) as (host, asked):
        with pytest.raises(InvalidInput, match="redirects more than 3 times"):
            inputs.read(UrlInput(f"http://{host}/"), own_network(host))
        assert len(asked) == 4


@pytest.mark.parametrize("location", ["http://[::1", "//[", "http://[x]/", "http://a..b/"])
def test_a_redirect_to_what_is_no_url_is_refused(location: str) -> None:
    """Whoever owns the host chooses it: the error is the input's, and no fault of the model."""
    with web(sends(b"", 302, Location=location)) as (host, _):
        limits = replace(own_network(host), allowed_hosts=(f"http://{host}", "http://a..b"))
        with pytest.raises(InvalidInput, match="is not a URL"):
            inputs.read(UrlInput(f"http://{host}/"), limits)


@pytest.mark.parametrize("headers", [{"Content_Length": "100000000"}, {}])
def test_a_large_answer_is_cut_off(headers: dict[str, str]) -> None:
    """By what it announces, or, if it announces nothing, by what has come."""
    with web(sends(b"x" * 200_000, **headers)) as (host, _), pytest.raises(InputTooLarge):
        inputs.read(UrlInput(f"http://{host}/"), own_network(host, max_input_bytes=100_000))


def test_a_compressed_answer_is_refused() -> None:
    """A few kilobytes could unpack to gigabytes."""
    with web(sends(b"x", Content_Encoding="gzip")) as (host, _), pytest.raises(InvalidInput, match="compressed"):
        inputs.read(UrlInput(f"http://{host}/"), own_network(host))


ENDLESS = {
    "body": (b"HTTP/1.1 200 OK\r\n\r\n", b"x"),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"x"),
    "header lines": (b"HTTP/1.1 200 OK\r\n", b"X-More: 1\r\n"),
    "early hints": (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    "continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    "a chunk's extension": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"x"),
    "trailers": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n", b"x"),
    "nothing": (b"", b""),
}


@pytest.mark.parametrize("part", ENDLESS)
def test_a_host_that_drips_is_given_up(part: str) -> None:
    """Each byte in time, the whole never: the limit is on the whole."""
    begin, more = ENDLESS[part]
    given_up = threading.Event()

    def drip(request: BaseHTTPRequestHandler) -> None:
        with contextlib.suppress(ConnectionError):
            request.wfile.write(begin)
            while not given_up.wait(0.01):
                request.wfile.write(more)

    with web(drip) as (host, _):
        try:
            with pytest.raises(InputUnavailable, match=r"takes longer than|cannot be fetched"):
                inputs.read(UrlInput(f"http://{host}/"), own_network(host, fetch_timeout_s=0.2))
        finally:
            given_up.set()


@pytest.mark.parametrize("full", [True, False])
def test_a_host_that_says_nothing_is_given_up(full: bool) -> None:
    """It takes no connection, because its queue is full; or it takes it and begins no encryption."""
    with socket.socket() as server, contextlib.ExitStack() as others:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(4 * full):
            waiting = others.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        host = f"localhost:{server.getsockname()[1]}"
        limits = InputLimits(allowed_hosts=(host,), allow_private_addresses=True, fetch_timeout_s=0.2)
        with pytest.raises(InputUnavailable, match=r"takes longer than 0\.2 s to fetch"):
            inputs.read(UrlInput(f"https://{host}/"), limits)


def test_a_look_up_has_the_time_of_the_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever owns the name runs its name server, which may answer late or never."""
    given_up = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: given_up.wait())
    try:
        with pytest.raises(InputUnavailable, match=r"takes longer than 0\.2 s to fetch"):
            inputs.read(
                UrlInput("https://slow.example/"), InputLimits(allowed_hosts=("slow.example",), fetch_timeout_s=0.2)
            )
    finally:
        given_up.set()


@pytest.mark.parametrize("path", ["x" * 200_000, "a b\tc", "caf\u00e9?q=\u65e5", "%zz", "\ud800"])
def test_any_path_is_asked_for_or_refused(path: str) -> None:
    """An error of the HTTP client would look like a fault of the model."""
    with web(sends(b"image")) as (host, _):
        expected = pytest.raises(InvalidInput) if path[0] in "x\ud800" else contextlib.nullcontext()
        with expected:
            assert inputs.read(UrlInput(f"http://{host}/{path}"), own_network(host)) == b"image"


MOMENTARY = (408, 425, 429, 500, 502, 503, 504, 520)


@pytest.mark.parametrize("status", [*MOMENTARY, 400, 401, 403, 404, 410, 414, 451])
def test_a_host_that_refuses_is_quoted(status: int) -> None:
    """It may answer later: that is another kind of failure than a wrong input. Some answers pass by themselves."""
    with web(sends(b"", status)) as (host, _), pytest.raises(InputUnavailable, match=str(status)) as caught:
        inputs.read(UrlInput(f"http://{host}/"), own_network(host))
    assert caught.value.momentary is (status in MOMENTARY)


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("30", 30), (" 30 ", 30), ("0", 0), ("Sun, 06 Nov 1994 08:50:07 GMT", 30), ("Sun, 06 Nov 1994 08:00:00 GMT", 0),
        ("-5", None), ("1.5", None), ("soon", None), ("\xb2", None), ("Sun, 99 Nov 1994 08:50:07 GMT", None),
        ("Fri, 31 Dec 99999 00:00:00 GMT", None), ("9" * 400, 999_999_999),
    ],
)  # fmt: skip
def test_a_host_says_when_to_ask_again(said: str, seconds: float | None) -> None:
    """In seconds or by a date, which counts from the host's own clock. Anything else says nothing."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response_only(503)
        request.send_header("Date", "Sun, 06 Nov 1994 08:49:37 GMT")
        request.send_header("Retry-After", said)
        request.end_headers()

    with web(answer) as (host, _), pytest.raises(InputUnavailable) as caught:
        inputs.read(UrlInput(f"http://{host}/"), own_network(host))
    assert caught.value.retry_after_s == seconds


@pytest.mark.parametrize(("code", "momentary"), [("EAI_AGAIN", True), ("EAI_NONAME", False), ("EAI_FAIL", False)])
def test_a_name_server_that_is_away_comes_back(code: str, momentary: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that does not exist is a mistake of the caller."""

    def look_up(*_: object, **__: object) -> None:
        raise socket.gaierror(getattr(socket, code), "scripted")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with pytest.raises(InputUnavailable) as caught:
        inputs.read(UrlInput("https://away.example/"), InputLimits(allowed_hosts=("away.example",)))
    assert caught.value.momentary is momentary


def test_what_a_host_answers_does_not_fill_the_error() -> None:
    """The client quotes a header that it cannot read, in the whole."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(b"HTTP/1.1 200 OK\r\nA\x00: " + b"x" * 50_000 + b"\r\n\r\n")

    with web(answer) as (host, _), pytest.raises(InputUnavailable, match="cannot be fetched") as caught:
        inputs.read(UrlInput(f"http://{host}/"), own_network(host))
    assert len(str(caught.value)) < 500


def test_a_host_that_is_away_is_an_input_unavailable() -> None:
    """Not an internal error of the worker."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        host = f"localhost:{taken.getsockname()[1]}"
        with pytest.raises(InputUnavailable, match="cannot be fetched") as caught:
            inputs.read(UrlInput(f"http://{host}/"), own_network(host))
        assert caught.value.momentary
