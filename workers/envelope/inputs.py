"""Read an item's input: a text as it is, bytes, a file under an allowed root, or a URL of an allowed host.

Inputs come from strangers. A path must lie under a root after all links are followed. A URL is fetched only from listed
hosts with public addresses, redirects included, up to a size and a time. The connection goes to the address that was
checked, so that a second DNS answer cannot change it.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import SplitResult, urljoin, urlsplit

from producers.wire.blobs import Blobs, BlobSettings
from producers.wire.errors import InputTooLarge, InputUnavailable, InvalidInput
from producers.wire.messages import (
    BlobInput,
    DerivedInput,
    InlineBytes,
    Input,
    MessagesInput,
    PathInput,
    QuestionInput,
    RowInput,
    SeedInput,
    SentencesInput,
    SeriesInput,
    TextAndImageInput,
    UrlInput,
)

if TYPE_CHECKING:
    import httpx2

_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

#: The content of an item, after its references are read.
Content: TypeAlias = (
    str
    | bytes
    | MessagesInput
    | QuestionInput
    | RowInput
    | SentencesInput
    | SeriesInput
    | SeedInput
    | TextAndImageInput
)

_FIELD = "input"
_PORTS = {"http": 80, "https": 443}
#: The well-known prefix by which IPv6 reaches IPv4 (RFC 6052). Such an address is judged as the IPv4 address that it
#: holds.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class InputLimits:
    """The limits of the inputs that a worker reads. Paths and URLs are read only if they are listed here.

    `allowed_roots` are folders. `allowed_hosts` are ``host``, ``host:port``, or ``*.domain`` (any host under it), by
    https; ``http://host`` allows a host by plain http. `allow_private_addresses` allows listed hosts inside the own
    network. `blobs` is the storage of inputs that are sent by reference.
    """

    max_text_chars: int = 100_000
    max_input_bytes: int = 20 * 1024 * 1024
    allowed_roots: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    allow_private_addresses: bool = False
    fetch_timeout_s: float = 20.0
    max_redirects: int = 3
    blobs: Blobs = field(default_factory=lambda: Blobs(BlobSettings()))


def may_wait(value: Input) -> bool:
    """Return whether reading an input may wait for a file or a network. Derive a derived input before this question."""
    if isinstance(value, TextAndImageInput):
        return may_wait(value.image)
    return isinstance(value, PathInput | UrlInput | BlobInput)


def carried(value: Input, limits: InputLimits) -> Input:
    """Return an input that was sent by reference as if it were inline, or any other as it is. Raises like `read`."""
    if not isinstance(value, BlobInput):
        return value
    most_bytes = 4 * limits.max_text_chars if value.text else limits.max_input_bytes
    return limits.blobs.get(value, most_bytes)


def read(value: Input, limits: InputLimits) -> Content:
    """Return an input's content; an object of texts is its own content.

    Raises InvalidInput, InputTooLarge, or InputUnavailable if it cannot be fetched.
    """
    value = carried(value, limits)
    assert not isinstance(value, BlobInput), "a blob holds no reference"
    if isinstance(value, str):
        if len(value) > limits.max_text_chars:
            problem = f"has {len(value):,} characters, over {limits.max_text_chars:,}"
            raise InputTooLarge(_FIELD, problem, "split the text")
        return value
    if isinstance(value, InlineBytes):
        _check_size(len(value.data), limits)
        return value.data
    if isinstance(value, PathInput):
        return _read_path(value.path, limits)
    if isinstance(value, UrlInput):
        return _read_url(value.url, limits)
    if isinstance(value, TextAndImageInput):
        try:
            content = read(value.image, limits)
        except InvalidInput as error:
            raise error.of_part("image") from error
        assert isinstance(content, bytes), "files hold bytes"
        return TextAndImageInput(value.text, InlineBytes(content))
    if isinstance(value, DerivedInput):
        raise InvalidInput(_FIELD, "is a derived input that was not derived yet")
    return value


def _check_size(size_bytes: int, limits: InputLimits) -> None:
    if size_bytes > limits.max_input_bytes:
        problem = f"has {size_bytes:,} bytes or more, over {limits.max_input_bytes:,}"
        raise InputTooLarge(_FIELD, problem, "send a smaller file")


# --- paths ----------------------------------------------------------------------------------------


def _read_path(path: str, limits: InputLimits) -> bytes:
    file = _resolved(path, limits)
    try:
        # non-blocking, because of named pipes; without following a link that was put there after the check
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise InputUnavailable(_FIELD, f"cannot be read: {error.strerror}", "check the file at the worker") from error
    try:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            raise InvalidInput(_FIELD, "is not a regular file", "name a file")
        _check_size(state.st_size, limits)
        with open(descriptor, "rb", closefd=False) as opened:
            content = opened.read(limits.max_input_bytes + 1)
    finally:
        os.close(descriptor)
    _check_size(len(content), limits)  # the file may have grown
    return content


def _resolved(path: str, limits: InputLimits) -> Path:
    """Return the file of a path, with links followed, if it lies under an allowed root.

    A relative path is searched under each root: producer and worker may mount a folder at different places. A file
    outside the roots and a missing file give the same error, so that nobody can probe for files.
    """
    for root in limits.allowed_roots:
        try:
            base = Path(root).resolve(strict=True)
            file = (base / path).resolve(strict=True)
        except (OSError, RuntimeError, ValueError):  # missing, a cycle of links, or a NUL in the name
            continue
        if file.is_relative_to(base):
            return file
    roots = ", ".join(limits.allowed_roots) or "none"
    remedy = f"the worker reads these folders: {roots} (limits.allowed_roots in fleet.toml); or send the bytes"
    raise InvalidInput(_FIELD, "is not a file that the worker may read", remedy)


# --- URLs -----------------------------------------------------------------------------------------


def _read_url(url: str, limits: InputLimits) -> bytes:
    import httpx2

    until = time.monotonic() + limits.fetch_timeout_s
    for _ in range(limits.max_redirects + 1):
        parts = _allowed(url, limits)
        try:
            with _answer(parts, limits) as answer:
                if not answer.has_redirect_location:
                    return _body(answer, limits, until)
                url = urljoin(url, answer.headers["Location"])
        except (httpx2.HTTPError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise InputUnavailable(_FIELD, f"cannot be fetched from {parts.hostname}: {reason}", "try again") from error
    raise InvalidInput(_FIELD, f"redirects more than {limits.max_redirects} times", "send the final URL")


def _allowed(url: str, limits: InputLimits) -> SplitResult:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InvalidInput(_FIELD, f"is not a URL: {error}") from error
    if parts.scheme not in _PORTS:
        raise InvalidInput(_FIELD, f"has the scheme {parts.scheme!r}", "send an https URL")
    if parts.username is not None or parts.password is not None:
        raise InvalidInput(_FIELD, "carries a name or password", "send a URL without them")
    host = (parts.hostname or "").rstrip(".").lower()
    named = host if port in (None, _PORTS[parts.scheme]) else f"{host}:{port}"
    if not host or not any(_matches(parts.scheme, named, allowed.lower()) for allowed in limits.allowed_hosts):
        hosts = ", ".join(limits.allowed_hosts) or "none"
        remedy = f"it fetches from these hosts: {hosts} (limits.allowed_hosts in fleet.toml); or send the bytes"
        raise InvalidInput(_FIELD, f"is on {parts.scheme}://{named}, from which the worker does not fetch", remedy)
    return parts


def _matches(scheme: str, named: str, allowed: str) -> bool:
    allowed_scheme, _, allowed_name = allowed.rpartition("://")
    if scheme != (allowed_scheme or "https"):
        return False
    return named.endswith(allowed_name[1:]) if allowed_name.startswith("*.") else named == allowed_name


def _address(parts: SplitResult, limits: InputLimits) -> str:
    """Return an address of the host. If any of its addresses is not public, the whole host is refused."""
    port = parts.port or _PORTS[parts.scheme]
    found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    for address in addresses:
        if not limits.allow_private_addresses and not _is_public(address):
            remedy = "limits.allow_private_addresses in fleet.toml allows it"
            raise InvalidInput(_FIELD, f"is on {parts.hostname}, whose address is not public", remedy)
    return str(addresses[0])


def _is_public(address: _Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        held = address.ipv4_mapped or address.sixtofour
        if held is None and address in _NAT64:
            held = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if held is not None:
            return _is_public(held)
    return address.is_global and not address.is_multicast


@contextmanager
def _answer(parts: SplitResult, limits: InputLimits) -> Iterator[httpx2.Response]:
    """Connect to the checked address, with the host's name in the request and in the check of the certificate."""
    import ssl

    import httpx2
    import truststore

    address = _address(parts, limits)
    literal = f"[{address}]" if ":" in address else address
    host = str(parts.hostname)
    netloc = literal if parts.port is None else f"{literal}:{parts.port}"
    trust = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Identity: a compressed answer could be a bomb. No environment: a proxy would resolve the name again.
    headers = {"Host": parts.netloc, "Accept-Encoding": "identity", "User-Agent": "argosy"}
    with (
        httpx2.Client(verify=trust, trust_env=False, timeout=limits.fetch_timeout_s) as client,
        client.stream(
            "GET",
            parts._replace(netloc=netloc, fragment="").geturl(),
            headers=headers,
            extensions={"sni_hostname": host},
        ) as answer,
    ):
        yield answer


def _body(answer: httpx2.Response, limits: InputLimits, until: float) -> bytes:
    if not answer.is_success:
        raise InputUnavailable(_FIELD, f"cannot be fetched: the host answers {answer.status_code}", "check the URL")
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise InvalidInput(_FIELD, "is compressed, though the worker did not request that", "send the bytes")
    length = answer.headers.get("Content-Length", "0")
    _check_size(int(length) if length.isdecimal() else 0, limits)
    content = bytearray()
    for chunk in answer.iter_raw():
        content += chunk
        _check_size(len(content), limits)
        # the client's own timeout is per read: a host that drips bytes would never reach it
        if time.monotonic() > until:
            raise InputUnavailable(_FIELD, f"takes longer than {limits.fetch_timeout_s:g} s to fetch", "try again")
    return bytes(content)
