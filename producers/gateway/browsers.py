"""Requests that a web page makes in somebody's browser: refused unless the page is the gateway's own or is allowed.

A gateway without keys trusts its machine, and so it must not answer a page of another site that reaches it through the
operator's browser: by a form, by a script, or by a name that resolves to this machine (DNS rebinding).
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from producers.gateway.problems import Problem
from producers.gateway.settings import GatewaySettings

_READING = ("GET", "HEAD", "OPTIONS")


def check(method: str, headers: Headers, settings: GatewaySettings) -> None:
    """Raise Problem for a foreign `Host` at a gateway without keys, and for a change that another site asks for."""
    host = headers.get("host", "")
    name = name_of(host)
    if not settings.auth and not is_loopback(name) and name not in settings.allowed_hosts:
        raise Problem(
            403,
            "ForeignHost",
            f"a gateway without keys does not answer as {name[:100]!r}",
            remedy="use the address of this machine, or start the gateway with --allow-host",
        )
    if method in _READING:
        return
    origin = headers.get("origin")
    if origin in settings.allowed_origins or "*" in settings.allowed_origins:
        return
    # by either: a page at another scheme of this host has the host's name in its origin
    foreign = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
    foreign |= origin is not None and origin.partition("://")[2] != host
    if foreign:
        raise Problem(
            403,
            "ForeignOrigin",
            "a page of another site asks for a change",
            remedy="start the gateway with --allow-origin for that site",
        )


def name_of(host: str) -> str:
    """Return the name or address in a `Host`, without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".").lower()
    except ValueError:
        return host


def is_loopback(host: str) -> bool:
    """Return whether a name or an address is this machine's own."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
