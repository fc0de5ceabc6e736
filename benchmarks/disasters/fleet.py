"""The fleets that are tried: with a gateway, and with a link between its processes and Valkey."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.disasters.links import Address, Link
from workers.fleet.embedded_broker import free_port
from workers.fleet.local import LocalFleet
from workers.fleet.services import Service
from workers.settings import Settings


class GatewayFleet(LocalFleet):
    """A local fleet, usually without Flower, and with a gateway from `start_gateway` on."""

    def __init__(
        self,
        settings: Settings,
        home: Path,
        *,
        flower: bool = False,
        gateway: Sequence[str] = ("--no-auth", "--rate", "10000"),
        **options: Any,
    ) -> None:
        super().__init__(settings, home, flower=flower, **options)
        port = free_port()
        self.gateway_url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "producers.commands.main", "gateway", *gateway]
        self.gateway = Service(
            "gateway", [*command, "--port", str(port)], {}, home / "logs" / "gateway.log", stop_timeout_s=20
        )

    def start_gateway(self) -> None:
        """Start the gateway as a service of the fleet, which starts it again and stops it."""
        self.gateway.environment = os.environ | {
            "ARGOSY_BROKER_URL": self.broker_url,
            "ARGOSY_STORE_URL": self.store_url,
        }
        self.gateway.start()
        self.services.append(self.gateway)


class LinkedFleet(GatewayFleet):
    """Its workers, gateway and clients connect to Valkey by `link`."""

    def __init__(self, settings: Settings, home: Path, **options: Any) -> None:
        super().__init__(settings, home, **options)
        self.link = Link(self._valkey_address)

    @property
    def valkey_url(self) -> str:
        """Valkey's own address, past the link."""
        return super().broker_url

    @property
    def broker_url(self) -> str:
        address = urlsplit(self.valkey_url)
        return address._replace(netloc=f":{address.password}@127.0.0.1:{self.link.port}").geturl()

    def _valkey_address(self) -> Address:
        address = urlsplit(self.valkey_url)
        return address.hostname or "", address.port or 0


@contextmanager
def watched(fleet: LocalFleet) -> Iterator[None]:
    """Have the fleet start again each process that ends, as `argosy up` does."""
    thread = threading.Thread(target=fleet.watch, name="watch")
    thread.start()
    try:
        yield
    finally:
        fleet.request_stop()
        thread.join()
