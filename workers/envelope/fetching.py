"""Fetch an input from a URL: from listed hosts with public addresses, redirects included, up to a size and a time.

The connection goes to the address that was checked, so that a second DNS answer cannot change it. One limit covers all
of it: looking the name up, connecting, headers, interim answers, chunks and trailers. A timeout per read would let a
host drip for ever.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias
from urllib.parse import SplitResult, quote, urljoin, urlsplit

import httpcore2
import truststore

from producers.wire.errors import InputUnavailable, InvalidInput
from workers.envelope.input_limits import FIELD, InputLimits

_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_PORTS = {"http": 80, "https": 443}
_REDIRECTS = (301, 302, 303, 307, 308)

#: The well-known prefix by which IPv6 reaches IPv4 (RFC 6052). Such an address is judged as the IPv4 address in it.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")

#: The most characters of a failure's reason, which may quote the host's answer.
_LONGEST_REASON = 200

_FAILURES = (
    httpcore2.NetworkError,
    httpcore2.ProtocolError,
    httpcore2.TimeoutException,
    httpcore2.UnsupportedProtocol,
    OSError,
)


def fetch(url: str, limits: InputLimits) -> bytes:
    """Return the content at a URL. Raises InvalidInput, InputTooLarge or InputUnavailable."""
    until = time.monotonic() + limits.fetch_timeout_s
    for _ in range(limits.max_redirects + 1):
        parts = _allowed(url, limits)
        try:
            with _answer(parts, limits, until) as answer:
                headers = {name.lower(): value.decode("latin-1") for name, value in answer.headers}
                if answer.status not in _REDIRECTS or b"location" not in headers:
                    return _body(answer, headers, limits)
                url = urljoin(url, headers[b"location"])
        except InvalidInput:
            raise
        except _FAILURES as error:
            if time.monotonic() > until:
                problem = f"takes longer than {limits.fetch_timeout_s:g} s to fetch"
                raise InputUnavailable(FIELD, problem, "try again") from error
            reason = (str(error) or type(error).__name__)[:_LONGEST_REASON]
            raise InputUnavailable(FIELD, f"cannot be fetched from {parts.hostname}: {reason}", "try again") from error
        except ValueError as error:  # of a name, an address or a redirect that is none
            raise InvalidInput(FIELD, f"is not a URL: {error}") from error
    raise InvalidInput(FIELD, f"redirects more than {limits.max_redirects} times", "send the final URL")


def _allowed(url: str, limits: InputLimits) -> SplitResult:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InvalidInput(FIELD, f"is not a URL: {error}") from error
    if parts.scheme not in _PORTS:
        raise InvalidInput(FIELD, f"has the scheme {parts.scheme!r}", "send an https URL")
    if parts.username is not None or parts.password is not None:
        raise InvalidInput(FIELD, "carries a name or password", "send a URL without them")
    host = (parts.hostname or "").rstrip(".").lower()
    named = host if port in (None, _PORTS[parts.scheme]) else f"{host}:{port}"
    if not host or not any(_matches(parts.scheme, named, allowed.lower()) for allowed in limits.allowed_hosts):
        hosts = ", ".join(limits.allowed_hosts) or "none"
        remedy = f"it fetches from these hosts: {hosts} (limits.allowed_hosts in fleet.toml); or send the bytes"
        raise InvalidInput(FIELD, f"is on {parts.scheme}://{named}, from which the worker does not fetch", remedy)
    return parts


def _matches(scheme: str, named: str, allowed: str) -> bool:
    allowed_scheme, _, allowed_name = allowed.rpartition("://")
    if scheme != (allowed_scheme or "https"):
        return False
    allowed_name = allowed_name.removesuffix(f":{_PORTS[scheme]}").rstrip(".")
    return named.endswith(allowed_name[1:]) if allowed_name.startswith("*.") else named == allowed_name


def _address(parts: SplitResult, limits: InputLimits, until: float) -> str:
    """Return an address of the host. If any of its addresses is not public, the whole host is refused."""
    found = _looked_up(str(parts.hostname), parts.port or _PORTS[parts.scheme], until)
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    for address in addresses:
        if not limits.allow_private_addresses and not _is_public(address):
            remedy = "limits.allow_private_addresses in fleet.toml allows it"
            raise InvalidInput(FIELD, f"is on {parts.hostname}, whose address is not public", remedy)
    return str(addresses[0])


def _looked_up(host: str, port: int, until: float) -> list[Any]:
    """Return `getaddrinfo` of a host within the time that is left.

    A look-up cannot be stopped, so it runs in a thread of its own, which the resolver's own timeouts end.
    """
    answer: SimpleQueue[list[Any] | Exception] = SimpleQueue()

    def look_up() -> None:
        try:
            answer.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except Exception as error:  # noqa: BLE001 - raised by the caller
            answer.put(error)

    try:
        threading.Thread(target=look_up, name="argosy look-up", daemon=True).start()
        found = answer.get(timeout=_left_s(until))
    except RuntimeError as error:  # the system gives no thread
        raise httpcore2.ConnectError(str(error)) from error
    except Empty:
        raise httpcore2.ConnectTimeout("the look-up of its name takes too long") from None
    if isinstance(found, Exception):
        raise found
    return found


def _is_public(address: _Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        held = address.ipv4_mapped or address.sixtofour
        if held is None and address in _NAT64:
            held = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if held is not None:
            return _is_public(held)
        # the other forms that hold an IPv4 address, and local translations, lie outside global unicast
        if address not in _GLOBAL_UNICAST or address.teredo is not None:
            return False
    return address.is_global and not address.is_multicast


@contextmanager
def _answer(parts: SplitResult, limits: InputLimits, until: float) -> Iterator[httpcore2.Response]:
    """Connect to the checked address, with the host's name in the request and in the check of the certificate."""
    # Identity: a compressed answer could be a bomb. There is no proxy, which would resolve the name again.
    host = str(parts.hostname).encode("idna").decode()
    named = f"[{host}]" if ":" in host else host
    named = named if parts.port is None else f"{named}:{parts.port}"
    headers = [("Host", named), ("Accept", "*/*"), ("Accept-Encoding", "identity"), ("User-Agent", "argosy")]
    target = parts._replace(scheme="", netloc="", fragment="", path=parts.path or "/").geturl()
    url = httpcore2.URL(
        scheme=parts.scheme.encode(),
        host=_address(parts, limits, until).encode(),
        port=parts.port,
        target=quote(target, safe="%/:=&?~#+!$,;'@()*[]").encode(),
    )
    trust = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with (
        httpcore2.ConnectionPool(ssl_context=trust, network_backend=_Until(until)) as pool,
        pool.stream("GET", url, headers=headers, extensions={"sni_hostname": host}) as answer,
    ):
        yield answer


def _body(answer: httpcore2.Response, headers: dict[bytes, str], limits: InputLimits) -> bytes:
    if not 200 <= answer.status < 300:
        raise InputUnavailable(FIELD, f"cannot be fetched: the host answers {answer.status}", "check the URL")
    if headers.get(b"content-encoding", "identity") != "identity":
        raise InvalidInput(FIELD, "is compressed, though the worker did not request that", "send the bytes")
    length = headers.get(b"content-length", "0")
    limits.check_size(int(length) if length.isdecimal() and len(length) < 20 else 0)
    content = bytearray()
    for chunk in answer.iter_stream():
        content += chunk
        limits.check_size(len(content))
    return bytes(content)


class _Until(httpcore2.NetworkBackend):
    """The network until a time: every wait is bounded by the time that is left."""

    def __init__(self, until: float) -> None:
        self._until = until
        self._network = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> _StreamUntil:
        """Connect within the time that is left."""
        stream = self._network.connect_tcp(host, port, _left_s(self._until), local_address, socket_options)
        return _StreamUntil(stream, self._until)


class _StreamUntil(httpcore2.NetworkStream):
    def __init__(self, stream: httpcore2.NetworkStream, until: float) -> None:
        self._stream = stream
        self._until = until

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left_s(self._until))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left_s(self._until))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        return _StreamUntil(self._stream.start_tls(ssl_context, server_hostname, _left_s(self._until)), self._until)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left_s(until: float) -> float:
    left_s = until - time.monotonic()
    if left_s <= 0:
        raise httpcore2.ReadTimeout("the time is over")
    return left_s
