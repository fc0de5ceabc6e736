"""Serving the application with uvicorn, until it is told to stop."""

from __future__ import annotations

import ipaddress
import signal

import uvicorn

from producers.client.async_client import AsyncClient
from producers.gateway.app import create_app
from producers.gateway.settings import GatewaySettings
from producers.wire.command_line import log_to_stderr
from producers.wire.errors import ConfigurationError

#: How long requests under way may take to end once the server is told to stop; what they had submitted goes on anyway.
GRACE_S = 10


def serve(settings: GatewaySettings, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM. Raises ConfigurationError if everybody on the network would be the operator."""
    if not settings.auth and not _is_loopback(host):
        raise ConfigurationError(
            f"--no-auth: refused on {host}: others could reach it; listen on 127.0.0.1, or use keys"
        )
    log_to_stderr()
    app = create_app(settings, lambda: AsyncClient(store_timeout_s=settings.store_timeout_s))
    for number in (signal.SIGINT, signal.SIGTERM):
        # uvicorn hears them itself, and raises them again once it has ended well
        signal.signal(number, lambda *_: None)
    uvicorn.run(app, host=host, port=port, timeout_graceful_shutdown=GRACE_S, log_config=None, server_header=False)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
