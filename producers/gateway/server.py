"""Serve the application with uvicorn until a signal stops it."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import uvicorn
from starlette.types import ASGIApp

from producers.client.async_client import AsyncClient
from producers.gateway import connections
from producers.gateway.app import create_app
from producers.gateway.browsers import is_loopback
from producers.gateway.metrics.health_listener import HealthListener
from producers.gateway.settings import GatewaySettings
from producers.wire.command_line import LeaveTextOut, log_to_stderr
from producers.wire.errors import ConfigurationError

#: Seconds for open requests to end after a stop signal. Their submitted items are computed anyway.
GRACE_S = 10


def serve(settings: GatewaySettings, host: str, port: int, health_port: int | None = None) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises ConfigurationError if `--no-auth` would open the gateway to the network, or if a port is taken.

    At `health_port` the health checks answer too, and metrics and the scaler's number alone: see `HealthListener`.
    """
    if not settings.auth and not is_loopback(host):
        raise ConfigurationError(
            f"--no-auth: refused on {host}: other machines could reach it; listen on 127.0.0.1, or use keys"
        )
    if not settings.auth and "*" in settings.allowed_origins:
        raise ConfigurationError(
            "--no-auth: refused with --allow-origin '*': any site could use the fleet; name the sites"
        )
    _check_address(host, port, "--port")
    if health_port is not None:
        _check_address(host, health_port, "--health-port")
    log_to_stderr()
    logging.getLogger("uvicorn.error").addFilter(LeaveTextOut())
    app = create_app(settings, lambda: AsyncClient(store_timeout_s=settings.store_timeout_s))
    for number in (signal.SIGINT, signal.SIGTERM):
        # uvicorn handles these signals, and raises them again after a clean shutdown
        signal.signal(number, lambda *_: None)
    with suppress(OSError, ValueError):  # a container may forbid it; the limit stays as it is
        connections.raise_limit()
    main = _Server(config(app, host, port))
    beside = [] if health_port is None else [_Beside(config(HealthListener(app), host, health_port, lifespan="off"))]
    with asyncio.Runner(loop_factory=main.config.get_loop_factory()) as runner:
        runner.run(_both(main, beside))
    if not main.started:
        sys.exit(3)


def _check_address(host: str, port: int, option: str) -> None:
    try:
        for family, kind, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
    except (socket.gaierror, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "no name of a host"
        raise ConfigurationError(f"--host: {host}: {reason}; give an address of this machine") from error
    except OSError as error:
        raise ConfigurationError(f"{option}: {host}:{port}: {error.strerror}; choose another one") from error


def config(app: ASGIApp, host: str, port: int, *, lifespan: str = "on") -> uvicorn.Config:
    """Return uvicorn's settings for a gateway."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        lifespan=lifespan,  # type: ignore[arg-type] # one of its literals
        http=connections.BoundedConnection,
        ws="none",
        backlog=connections.ACCEPTED,
        timeout_graceful_shutdown=GRACE_S,
        log_config=None,
        server_header=False,
    )


async def _both(main: uvicorn.Server, beside: list[_Beside]) -> None:
    tasks = [asyncio.create_task(server.serve()) for server in beside]
    try:
        await main.serve()
    finally:
        for server in beside:
            server.should_exit = True
        await asyncio.gather(*tasks, return_exceptions=True)


class _Server(uvicorn.Server):
    """uvicorn's server, with a long queue of connections of which few are accepted at once."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for server in self.servers:
            connections.lengthen_backlog(server.sockets)


class _Beside(_Server):
    """A server that ends with another one, which receives the signals."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
