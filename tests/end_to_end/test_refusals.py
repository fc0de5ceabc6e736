"""A whole fleet while its Redis refuses: it waits, computes what it holds, and goes on, in the same processes."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from redis import Redis

from producers import BrokerUnavailable, Client, Overloaded
from producers.client.handles import Handle
from producers.wire.connection import Connection
from tests.end_to_end.processes import device_process, until
from tests.end_to_end.test_faults import assert_each_once_and_right, gated, texts, wait_until_some_are_done
from tests.refusing import WAYS
from workers.fleet import doctor
from workers.fleet.local import LocalFleet

TIMEOUT_S = 90
CONNECTIONS = Path(__file__).parents[2] / "docs" / "operations" / "connections.md"


def processes(fleet: LocalFleet) -> list[int]:
    """The workers' processes and their device processes."""
    workers = [service.process.pid for service in fleet.workers if service.process]
    return [*workers, *(device_process(worker).pid for worker in workers)]


@pytest.mark.parametrize("way", list(WAYS))
def test_a_redis_that_refuses_is_waited_for(shared_fleet: LocalFleet, way: str, tmp_path: Path) -> None:
    """What was accepted before and meanwhile arrives; no process ends, none loads its models anew, nothing is in the log
    that looks like a fault of the program.
    """
    refusing, taken_nevertheless = WAYS[way]
    gate = tmp_path / "gate"
    gate.touch()
    before = processes(shared_fleet)
    log = shared_fleet.workers[0].log
    seen = log.stat().st_size
    expected = gated(3000, gate)
    accepted: list[Handle] = []
    with (
        Client(shared_fleet.broker_url, shared_fleet.store_url) as client,
        Redis.from_url(shared_fleet.broker_url) as redis,
    ):
        job = client.submit_many(["echo", "shout"], expected)
        done = wait_until_some_are_done(job)
        with refusing(redis):
            for number in range(3):
                with contextlib.suppress(BrokerUnavailable, Overloaded):
                    accepted.append(client.submit("echo", f"meanwhile {number}"))
            gate.unlink()
            if taken_nevertheless:
                assert_each_once_and_right(job, expected)
            else:
                until(lambda: job.progress().done > done)
        assert_each_once_and_right(job, expected)
        for handle in accepted:
            handle.result(timeout_s=TIMEOUT_S)
        client.submit("echo", "after").result(timeout_s=TIMEOUT_S)
    assert processes(shared_fleet) == before
    said = log.read_bytes()[seen:].decode() if log.exists() else ""  # MISCONF has deleted only Valkey's own folder
    assert "Traceback" not in said
    assert "Unrecoverable" not in said


@pytest.mark.parametrize(
    "way",
    ["full", *(pytest.param(way, marks=pytest.mark.long) for way in ("read-only", "not permitted", "unable to save"))],
)
def test_workers_stop_and_start_while_redis_refuses(fleet: LocalFleet, client: Client, way: str) -> None:
    """An operator's stop gives envelopes back that Redis does not take: they come again when it does. The started
    worker empties a full Redis meanwhile.
    """
    refusing, taken_nevertheless = WAYS[way]
    expected = ["sleep 1.5 a", *texts(3000), "sleep 1.5 b"]
    job = client.submit_many(["echo", "shout"], expected)
    wait_until_some_are_done(job)
    service = fleet.workers[0]
    with Redis.from_url(fleet.broker_url) as redis:
        with refusing(redis):
            service.stop()
            assert service.process is not None
            assert service.process.returncode == 0
            service.start()
            assert service.ready_file is not None
            until(service.ready_file.exists)
            if taken_nevertheless:
                until(lambda: not any(redis.llen(key) for key in redis.scan_iter("argosy.scripted*", _type="list")))
            assert service.process.poll() is None
        assert_each_once_and_right(job, expected)


@pytest.mark.long
def test_the_documented_rights_are_enough(shared_fleet: LocalFleet) -> None:
    """A worker starts and computes, clients submit, and doctor sees the broker, with these rights and no others."""
    (rights,) = re.findall(r"^ACL SETUSER argosy on >PASSWORD (.*)$", CONNECTIONS.read_text("utf-8"), re.MULTILINE)
    service = shared_fleet.workers[0]
    seen = service.log.stat().st_size
    with Redis.from_url(shared_fleet.broker_url) as redis:
        redis.execute_command("ACL", "SETUSER", "admin", "on", ">admin", "~*", "&*", "+@all")
    address = urlsplit(shared_fleet.broker_url)
    with Redis(host=address.hostname or "", port=address.port or 0, username="admin", password="admin") as admin:
        admin.execute_command("ACL", "SETUSER", "default", "resetkeys", "resetchannels", *rights.split())
        try:
            service.stop()
            service.start()
            assert service.ready_file is not None
            until(service.ready_file.exists)
            with Client(shared_fleet.broker_url, shared_fleet.store_url) as client:
                client.check()
                handles = [client.submit("echo", f"text {durable}", durable=durable) for durable in (True, False)]
                job = client.submit_many("echo", texts(200))
                assert all(handle.result(timeout_s=TIMEOUT_S) for handle in handles)
                assert job.wait(timeout_s=TIMEOUT_S).succeeded == 200
            where = Connection(shared_fleet.broker_url, shared_fleet.store_url, {})
            assert not any("tell its version" in finding.found for finding in doctor._broker(where))
            assert all(finding.found.startswith("the broker takes them") for finding in doctor._messages(where))
            admin.execute_command("ACL", "SETUSER", "default", "-info")
            assert "it answers, but does not tell its version" in next(doctor._broker(where)).found
        finally:
            admin.execute_command("ACL", "SETUSER", "default", "~*", "&*", "+@all")
    assert b"NOPERM" not in service.log.read_bytes()[seen:]


def test_a_fleet_without_descriptors_starts_its_worker_later(
    fleet: LocalFleet, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the log can be opened nor a process be started: nothing else goes down, and it is tried again."""
    watching = threading.Thread(target=fleet.watch)
    watching.start()
    worker, broker = fleet.workers[0].process, fleet.broker_process
    assert worker is not None
    assert broker is not None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        free = os.open(os.devnull, os.O_RDONLY)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        try:
            worker.kill()
            until(lambda: any("Too many open files" in record.getMessage() for record in caplog.records))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        until(lambda: fleet.workers[0].process is not worker)
        assert broker.poll() is None
        with Client(fleet.broker_url, fleet.store_url) as client:
            assert client.submit("echo", "after").result(timeout_s=TIMEOUT_S)
    finally:
        fleet.request_stop()
        watching.join()


@pytest.mark.long
def test_a_fleet_with_a_damaged_append_only_file_starts(fleets, scripted_settings, fleet: LocalFleet) -> None:
    """The store publishes again what Valkey cannot read any more."""
    expected = texts(2000)
    fleet.workers[0].stop()
    with Client(fleet.broker_url, fleet.store_url) as client:
        job = client.submit_many(["echo", "shout"], expected).id
    fleet.stop()
    (written,) = (fleet.home / "valkey" / "appendonlydir").glob("*.incr.aof")
    data = bytearray(written.read_bytes())
    data[len(data) // 2] ^= 0xFF
    framing = data.index(b"*3\r\n", len(data) // 3)
    data[framing] = ord("?")
    written.write_bytes(data)
    again = fleets(scripted_settings)
    with Client(again.broker_url, again.store_url) as client:
        assert_each_once_and_right(client.job(job), expected)
    (aside,) = fleet.home.glob("valkey.unreadable-*")
    assert (aside / "appendonlydir").is_dir()
