"""Serve the application with uvicorn until a signal stops it."""

from __future__ import annotations

import ipaddress
import signal

import uvicorn

from producers.client.async_client import AsyncClient
from producers.gateway.app import create_app
from producers.gateway.settings import GatewaySettings
from producers.wire.command_line import log_to_stderr
from producers.wire.errors import ConfigurationError

#: Seconds for open requests to end after a stop signal. Their submitted items are computed anyway.
GRACE_S = 10


def serve(settings: GatewaySettings, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM. Raises ConfigurationError if `--no-auth` would open the gateway to the network."""
    if not settings.auth and not _is_loopback(host):
        raise ConfigurationError(
            f"--no-auth: refused on {host}: other machines could reach it; listen on 127.0.0.1, or use keys"
        )
    log_to_stderr()
    app = create_app(settings, lambda: AsyncClient(store_timeout_s=settings.store_timeout_s))
    for number in (signal.SIGINT, signal.SIGTERM):
        # uvicorn handles these signals, and raises them again after a clean shutdown
        signal.signal(number, lambda *_: None)
    uvicorn.run(app, host=host, port=port, timeout_graceful_shutdown=GRACE_S, log_config=None, server_header=False)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
