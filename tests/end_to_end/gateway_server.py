"""A gateway served by uvicorn, as its callers meet it: a port, in a thread of the test's process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import httpx2 as httpx
import uvicorn
from fastapi import FastAPI

from producers import AsyncClient
from producers.gateway.app import create_app
from producers.gateway.gateway import Gateway
from producers.gateway.keys import new_key
from producers.gateway.server import config as server_config
from producers.gateway.settings import GatewaySettings
from results_store.gateway.api_keys import Role
from results_store.store import Store
from tests.conftest import free_port
from tests.end_to_end.processes import until

#: Quick to notice what another gateway left behind, and generous with requests: tests make many.
SETTINGS = GatewaySettings(rate_per_s=10_000, batch_look_s=0.5)


@dataclass(frozen=True)
class Served:
    """A gateway's address, the store behind it to make keys in, and the gateway itself to look at."""

    url: str
    store_url: str
    app: FastAPI

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").partition(":")
        return host, int(port)

    @property
    def serving(self) -> int:
        """How many requests are being served."""
        gateway: Gateway = self.app.state.gateway
        return gateway.serving.total()

    def key(
        self,
        tenant: str,
        *,
        operator: bool = False,
        role: Role = "member",
        all_tenants: bool = False,
        expires_at: float | None = None,
        rate_per_s: float | None = None,
    ) -> str:
        """Make a key for a tenant."""
        now = time.time()
        text, row = new_key(
            f"{tenant} {now}",
            tenant,
            role="operator" if operator else role,
            all_tenants=all_tenants,
            expires_at=expires_at,
            rate_per_s=rate_per_s,
            created_at=now,
        )
        with Store(self.store_url) as store:
            assert store.keys.add(row)
        return text

    def client(self, key: str | None = None) -> httpx.Client:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60)


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """Serve an application by uvicorn, in a thread; gives its address, and ends with the block."""
    port = free_port()
    server = uvicorn.Server(server_config(app, "127.0.0.1", port))
    thread = threading.Thread(target=server.run, name="uvicorn")
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive(), 30)
        assert server.started
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def serving(
    broker_url: str, store_url: str, settings: GatewaySettings = SETTINGS, **changes: object
) -> Iterator[Served]:
    """Serve a gateway until the block ends; then its thread, its port and its client are gone."""
    chosen = replace(settings, **changes)  # type: ignore[arg-type]
    app = create_app(chosen, lambda: AsyncClient(broker_url, store_url, store_timeout_s=10))
    with served(app) as url:
        yield Served(url, store_url, app)
