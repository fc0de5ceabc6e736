"""The options of every TCP connection to Redis, by which the kernel notices a peer that has vanished."""

from __future__ import annotations

import socket
from typing import Any

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
