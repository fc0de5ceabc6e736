"""Fetch an input from a URL: from listed hosts with public addresses, redirects included, up to a size and a time.

One limit of time covers all of it (`producers.wire.outside.guarded_http`).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urljoin, urlsplit

from producers.wire.errors import InputUnavailable, InvalidInput
from producers.wire.outside.guarded_http import FAILURES, PORTS, NotPublicError, answer_of, is_momentary, retry_after_s
from workers.envelope.input_limits import FIELD, InputLimits

if TYPE_CHECKING:
    import httpcore2

_REDIRECTS = (301, 302, 303, 307, 308)

#: The answers of a host that may answer otherwise later, beside those of 500 and more (RFC 9110, 8470 and 6585).
_MOMENTARY = (408, 425, 429)

#: The answers of a host that is busy, whatever it is asked for.
_BUSY = (429, 503)

#: The most characters of a failure's reason, which may quote the host's answer.
_LONGEST_REASON = 200

#: Identity: a compressed answer could be a bomb.
_HEADERS = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "argosy"}


def fetch(url: str, limits: InputLimits) -> bytes:
    """Return the content at a URL. Raises InvalidInput, InputTooLarge or InputUnavailable."""
    until = time.monotonic() + limits.fetch_timeout_s
    for _ in range(limits.max_redirects + 1):
        parts = _allowed(url, limits)
        try:
            private = limits.allow_private_addresses
            with answer_of("GET", parts, until, headers=_HEADERS, private_addresses=private) as answer:
                headers = {name.lower(): value.decode("latin-1") for name, value in answer.headers}
                if answer.status not in _REDIRECTS or b"location" not in headers:
                    return _body(answer, headers, limits)
                url = urljoin(url, headers[b"location"])
        except InvalidInput:
            raise
        except NotPublicError as error:
            remedy = "limits.allow_private_addresses in fleet.toml allows it"
            raise InvalidInput(FIELD, f"is on {error}, whose address is not public", remedy) from error
        except FAILURES as error:
            if time.monotonic() > until:
                problem = f"takes longer than {limits.fetch_timeout_s:g} s to fetch"
                raise InputUnavailable(FIELD, problem, "try again", momentary=True, whole_place=True) from error
            reason = (str(error) or type(error).__name__)[:_LONGEST_REASON]
            problem, momentary = f"cannot be fetched from {parts.hostname}: {reason}", is_momentary(error)
            raise InputUnavailable(FIELD, problem, "try again", momentary=momentary, whole_place=momentary) from error
        except ValueError as error:  # of a name, an address or a redirect that is none
            raise InvalidInput(FIELD, f"is not a URL: {error}") from error
    raise InvalidInput(FIELD, f"redirects more than {limits.max_redirects} times", "send the final URL")


def _allowed(url: str, limits: InputLimits) -> SplitResult:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InvalidInput(FIELD, f"is not a URL: {error}") from error
    if parts.scheme not in PORTS:
        raise InvalidInput(FIELD, f"has the scheme {parts.scheme!r}", "send an https URL")
    if parts.username is not None or parts.password is not None:
        raise InvalidInput(FIELD, "carries a name or password", "send a URL without them")
    host = (parts.hostname or "").rstrip(".").lower()
    named = host if port in (None, PORTS[parts.scheme]) else f"{host}:{port}"
    if not host or not any(_matches(parts.scheme, named, allowed.lower()) for allowed in limits.allowed_hosts):
        hosts = ", ".join(limits.allowed_hosts) or "none"
        remedy = f"it fetches from these hosts: {hosts} (limits.allowed_hosts in fleet.toml); or send the bytes"
        raise InvalidInput(FIELD, f"is on {parts.scheme}://{named}, from which the worker does not fetch", remedy)
    return parts


def _matches(scheme: str, named: str, allowed: str) -> bool:
    allowed_scheme, _, allowed_name = allowed.rpartition("://")
    if scheme != (allowed_scheme or "https"):
        return False
    allowed_name = allowed_name.removesuffix(f":{PORTS[scheme]}").rstrip(".")
    return named.endswith(allowed_name[1:]) if allowed_name.startswith("*.") else named == allowed_name


def _body(answer: httpcore2.Response, headers: dict[bytes, str], limits: InputLimits) -> bytes:
    if not 200 <= answer.status < 300:
        raise InputUnavailable(
            FIELD,
            f"cannot be fetched: the host answers {answer.status}",
            "check the URL",
            momentary=answer.status in _MOMENTARY or answer.status >= 500,
            whole_place=answer.status in _BUSY,
            retry_after_s=retry_after_s(headers),
        )
    if headers.get(b"content-encoding", "identity") != "identity":
        raise InvalidInput(FIELD, "is compressed, though the worker did not request that", "send the bytes")
    length = headers.get(b"content-length", "0")
    limits.check_size(int(length) if length.isdecimal() and len(length) < 20 else 0)
    content = bytearray()
    for chunk in answer.iter_stream():
        content += chunk
        limits.check_size(len(content))
    return bytes(content)
