"""How Redis is reached: the options of a connection, and the forms of a URL that Celery has beside ``redis://``."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlsplit

#: By name, because platforms differ: macOS calls the idle time TCP_KEEPALIVE, and has no TCP_USER_TIMEOUT.
_OPTIONS = {
    "TCP_KEEPIDLE": 10,
    "TCP_KEEPALIVE": 10,
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 20_000,  # ms, for data that was sent and not acknowledged
}

#: For redis-py and for kombu: a connection is closed within about 25 s, whether it is idle or waits for an answer.
KEEPALIVE: dict[str, Any] = {
    "socket_keepalive": True,
    "socket_keepalive_options": {
        getattr(socket, name): value for name, value in _OPTIONS.items() if hasattr(socket, name)
    },
}

#: For kombu. It reads an answer once there is some, so `socket_timeout` does not limit BRPOP, which waits a second at a
#: time. Each 6 s it drops a connection whose answer is 6 s late, and a subscription that has left two pings unanswered.
CONSUMER: dict[str, Any] = {
    "socket_connect_timeout": 5,
    "socket_timeout": 5,
    "health_check_interval": 6,
    **KEEPALIVE,
}

SENTINEL, SOCKET = "sentinel", "redis+socket"

SENTINEL_EXAMPLE = "sentinel://:PASSWORD@host1:26379;sentinel://host2:26379/0?master_name=mymaster"
SOCKET_EXAMPLE = "redis+socket:///run/redis/redis.sock?virtual_host=0"


class Sentinels(NamedTuple):
    """The sentinels that name the master of a group of Redis servers, and what the master is to be told.

    `own` has the user and the password of the sentinels themselves.
    """

    hosts: list[tuple[str, int]]
    master: str
    database: int
    user: str | None
    password: str | None
    own: dict[str, str]

    @property
    def celery_url(self) -> str:
        """The URL for Celery, which has the name of the master and the login of the sentinels as options beside it."""
        login = "" if self.password is None else f"{quote(self.user or '', '')}:{quote(self.password, '')}@"
        return ";".join(f"{SENTINEL}://{login}{host}:{port}/{self.database}" for host, port in self.hosts)


def sentinels(url: str) -> Sentinels | None:
    """Return the sentinels of a URL like `SENTINEL_EXAMPLE`; None for other URLs. Raises ValueError."""
    if not url.startswith(f"{SENTINEL}://"):
        return None
    parts = [urlsplit(one) for one in url.split(";")]
    options = dict(option for part in parts for option in parse_qsl(part.query))
    known = ("master_name", "sentinel_username", "sentinel_password")
    try:
        hosts = [(part.hostname, part.port or 26379) for part in parts if part.hostname and part.scheme == SENTINEL]
    except ValueError:  # its text has the port, which may be a password without its host
        raise ValueError(f"write it like {SENTINEL_EXAMPLE}, with a number as each port") from None
    logins = {(part.username, part.password) for part in parts if part.username or part.password}
    paths = {part.path.strip("/") for part in parts} - {""} or {"0"}
    alike = len(logins) <= 1 and len(paths) == 1 and all(path.isdecimal() for path in paths)
    if len(hosts) < len(parts) or not alike or any(part.fragment for part in parts):
        raise ValueError(f"write it like {SENTINEL_EXAMPLE}, with the same login and database everywhere")
    if unknown := options.keys() - set(known):
        raise ValueError(f"the option {min(unknown)!r} is not one of {', '.join(known)}")
    if not options.get("master_name"):
        raise ValueError("add the name of the group, as in ?master_name=mymaster")
    user, password = (None if text is None else unquote(text) for text in (logins or {(None, None)}).pop())
    own = {name.removeprefix("sentinel_"): options[name] for name in known[1:] if name in options}
    return Sentinels(hosts, options["master_name"], int(paths.pop()), user or None, password, own)


def sentinel_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of connections to sentinels. A client leaves a silent sentinel at once for the next."""
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    timeouts = {name: options[name] for name in ("socket_timeout", "socket_connect_timeout")}
    return {**timeouts, "retry": Retry(NoBackoff(), 0)}


def unix_socket(url: str) -> str | None:
    """Return the URL for redis-py of a URL like `SOCKET_EXAMPLE`; None for other URLs. Raises ValueError."""
    if not url.startswith(f"{SOCKET}://"):
        return None
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query))
    database = options.pop("virtual_host", "0")
    if options or parts.hostname or len(parts.path) < 2 or not database.isdecimal():
        raise ValueError(f"write it like {SOCKET_EXAMPLE}, with the path of the socket and the number of the database")
    return f"unix://{parts.netloc}{parts.path}?db={database}"
