"""A request to a host that a caller named: to a public address, within a time.

The connection goes to the address that was checked, so that a second DNS answer cannot change it. One limit covers all
of it: looking the name up, connecting, headers, interim answers, chunks and trailers. A timeout per read would let a
host drip for ever. Redirects are not followed, and there is no proxy, which would resolve the name again.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias
from urllib.parse import SplitResult, quote

import httpcore2
import truststore

_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

#: The ports of the schemes that are served.
PORTS = {"http": 80, "https": 443}

#: The errors of a request that may succeed when it is made again. A name or an address that is none is a ValueError.
FAILURES = (
    httpcore2.NetworkError,
    httpcore2.ProtocolError,
    httpcore2.TimeoutException,
    httpcore2.UnsupportedProtocol,
    OSError,
)

#: Failures of a name's look-up that pass: the name server does not answer now.
_LOOK_UP_AGAIN = (socket.EAI_AGAIN,)

#: The well-known prefix by which IPv6 reaches IPv4 (RFC 6052). Such an address is judged as the IPv4 address in it.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")


class NotPublicError(Exception):
    """An address of the host is not public."""


def is_momentary(error: BaseException | None) -> bool:
    """Return whether one of `FAILURES` may pass by itself.

    A name that does not exist does not pass, nor a certificate that is not valid.
    """
    while error is not None:
        if isinstance(error, socket.gaierror):
            return error.errno in _LOOK_UP_AGAIN
        if isinstance(
            error, ssl.SSLCertVerificationError | httpcore2.UnsupportedProtocol | httpcore2.LocalProtocolError
        ):
            return False
        error = error.__cause__ or error.__context__
    return True


def retry_after_s(headers: Mapping[bytes, str]) -> float | None:
    """Return the seconds that an answer's ``Retry-After`` asks to wait (RFC 9110, section 10.2.3), or None.

    `headers` have lower-case names. A date counts from the answer's own ``Date``, if it has one: clocks differ.
    """
    value = headers.get(b"retry-after", "").strip()
    if value.isdecimal() and value.isascii():
        return float(value[:9])
    with suppress(ValueError, TypeError, OverflowError):
        then = parsedate_to_datetime(value).timestamp()
        date = headers.get(b"date")
        now = parsedate_to_datetime(date).timestamp() if date else time.time()
        return max(0.0, then - now)
    return None


@contextmanager
def answer_of(
    method: str,
    parts: SplitResult,
    until: float,
    *,
    headers: Mapping[str, str],
    content: bytes | None = None,
    private_addresses: bool = False,
) -> Iterator[httpcore2.Response]:
    """Yield the answer of a split URL, whose body is not read yet. The host's name is in the request and in the check
    of the certificate.

    `until` is a time of `time.monotonic`. Raises NotPublicError unless `private_addresses`, one of `FAILURES`, or
    ValueError.
    """
    host = str(parts.hostname).encode("idna").decode()
    named = f"[{host}]" if ":" in host else host
    named = named if parts.port is None else f"{named}:{parts.port}"
    target = parts._replace(scheme="", netloc="", fragment="", path=parts.path or "/").geturl()
    url = httpcore2.URL(
        scheme=parts.scheme.encode(),
        host=_address(parts, until, private_addresses=private_addresses).encode(),
        port=parts.port,
        target=quote(target, safe="%/:=&?~#+!$,;'@()*[]").encode(),
    )
    trust = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    sent = [("Host", named), *headers.items()]
    with (
        httpcore2.ConnectionPool(ssl_context=trust, network_backend=_Until(until)) as pool,
        pool.stream(method, url, headers=sent, content=content, extensions={"sni_hostname": host}) as answer,
    ):
        yield answer


def _address(parts: SplitResult, until: float, *, private_addresses: bool) -> str:
    """Return an address of the host. If any of its addresses is not public, the whole host is refused."""
    found = _looked_up(str(parts.hostname), parts.port or PORTS[parts.scheme], until)
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    if not private_addresses and not all(map(_is_public, addresses)):
        raise NotPublicError(str(parts.hostname))
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
