"""What keeps a fleet's processes quick, and what only a benchmark would notice if it were lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import psutil
import pytest

from producers import BrokerUnavailable, Client
from results_store.store import Store
from tests.end_to_end.conftest import SCRIPTED
from tests.end_to_end.page_jobs import submit
from tests.end_to_end.processes import device_process, fleet_in, until
from tests.tls import CERTIFICATE, tls_in_front_of
from workers.fleet.local import LocalFleet


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    """A fleet whose scripted model also tells how many objects of its worker no collection looks through."""
    telling = SCRIPTED + '[models.scripted.tasks.frozen]\nkind = "text-classification"\n'
    with fleet_in(tmp_path_factory.mktemp("quick"), telling) as fleet:
        yield fleet


def test_what_a_worker_starts_with_is_never_collected(client: Client) -> None:
    """Celery, SQLAlchemy and the models' preparation are some 100,000 objects: looking through them stops every
    thread.
    """
    assert client.submit("frozen", "how many?").result(timeout_s=60)["objects"] > 50_000


def test_the_device_process_leaves_its_cpu_to_whoever_wakes_up(fleet: LocalFleet) -> None:
    """Or each message would wait until a matrix product has had its time slice."""
    worker = fleet.workers[0].process
    assert worker is not None
    mine, its = psutil.Process(worker.pid).nice(), device_process(worker.pid).nice()
    assert its == min(mine + 10, 19), "19 is the most that there is"
    if sys.platform != "linux":
        return  # where threads have no ranks of their own
    threads = device_process(worker.pid).threads()
    ranks = Counter(os.getpriority(os.PRIO_PROCESS, thread.id) for thread in threads)
    assert ranks == {its: len(threads) - 1, mine: 1}, "all but the thread that reads frames"


def test_the_device_processes_of_a_fleet_are_forked_from_one_server(fleet: LocalFleet, client: Client) -> None:
    """It outlives the workers, so that all of them are soon back. Without it a worker has its own."""
    [server] = [service for service in fleet.services if service.name == "fork-server"]
    worker = fleet.workers[0].process
    assert server.process is not None
    assert worker is not None
    assert device_process(worker.pid).ppid() == server.process.pid
    server.process.kill()
    server.process.wait()
    device_process(worker.pid).kill()
    assert client.submit("echo", "again").result(timeout_s=60)["crc"]
    assert psutil.Process(device_process(worker.pid).ppid()).ppid() == worker.pid
    server.start()


def test_cancelled_work_of_a_model_that_nobody_serves_ends(fleet: LocalFleet) -> None:
    """Any worker can end it. Else its job would be cancelling until somebody serves the model again."""
    with Store(fleet.store_url) as store:
        job, _ = submit(store, ["x", "y"])
        store.cancel_job(job)
        until(lambda: store.job(job).finished)
        assert store.job(job).cancelled == 2


@pytest.mark.long
def test_the_ready_file_of_a_killed_worker_is_gone_while_the_next_one_loads(fleet: LocalFleet) -> None:
    """A supervisor that only starts the command, as a container does, would see a worker that is ready."""
    service = fleet.workers[0]
    assert service.process is not None
    ready = service.ready_file
    assert ready is not None
    service.process.kill()
    service.process.wait()
    assert ready.exists()
    with service.log.open("ab") as log:
        service.process = subprocess.Popen(
            service.command, env=dict(service.environment), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    until(lambda: not ready.exists())
    until(ready.exists)


@pytest.mark.faults
def test_a_worker_ends_despite_a_thread_of_a_class(fleet: LocalFleet, client: Client) -> None:
    """Python waits for each thread that is no daemon: its supervisor would have to kill the worker."""
    assert client.submit("echo", "thread").result(timeout_s=60)["crc"]
    service = fleet.workers[0]
    assert service.process is not None
    service.process.terminate()
    assert service.process.wait(60) == 0
    service.start()
    assert service.ready_file is not None
    until(service.ready_file.exists)


@pytest.mark.faults
@pytest.mark.parametrize("code", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_loads_ends_at_a_signal(fleet: LocalFleet, tmp_path: Path, code: signal.Signals) -> None:
    """At once, with its device process, however long the model would take: R06 of the cases."""
    toml = tmp_path / "fleet.toml"
    toml.write_text(f'{SCRIPTED}\n[models.scripted.options]\nfail_to_load = "hang"\n', encoding="utf-8")
    environment = {**fleet.workers[0].environment, "ARGOSY_FLEET": str(toml)}
    command = [sys.executable, "-m", "producers.commands.main", "worker", "--device", "cpu"]
    with subprocess.Popen(command, env=environment) as worker:
        device = device_process(worker.pid)
        until(lambda: device.num_threads() > 1)
        worker.send_signal(code)
        assert worker.wait(60) in (-code, 128 + code), "as a shell sees it, both are the same"
    until(lambda: not device.is_running() or device.status() == psutil.STATUS_ZOMBIE)  # init may reap it later


@pytest.mark.long
def test_a_broker_behind_tls_with_an_authority_of_its_own(fleet: LocalFleet) -> None:
    """Worker and client trust the authority that the URL names, and no other."""
    service, plain = fleet.workers[0], urlsplit(fleet.broker_url)
    environment = service.environment
    with tls_in_front_of(plain.port or 0) as port:
        url = f"rediss://{plain.netloc.rpartition('@')[0]}@127.0.0.1:{port}{plain.path}"
        trusting = f"{url}?ssl_ca_certs={quote(str(CERTIFICATE))}"
        service.stop()
        service.environment = {**environment, "ARGOSY_BROKER_URL": trusting}
        service.start()
        try:
            with Client(trusting, fleet.store_url) as client:
                job = client.submit_many("echo", ["a", "b"])
                assert client.submit("echo", "c", durable=False).result(timeout_s=60)["crc"]
                assert job.wait(timeout_s=60).succeeded == 2
            with Client(url, fleet.store_url) as client, pytest.raises(BrokerUnavailable, match="certificate"):
                client.check()
        finally:
            service.stop()
            service.environment = environment
            service.start()
            assert service.ready_file is not None
            until(service.ready_file.exists)


@pytest.mark.long
def test_a_worker_stops_while_its_database_is_away(fleet: LocalFleet, client: Client) -> None:
    """It holds results that it cannot store: after its grace they are left to be computed again."""
    service = fleet.workers[0]
    assert service.process is not None
    store = fleet.home / "store.db"
    handle = client.submit("echo", "hold " + str(fleet.home / "held"), priority="bulk")
    until((fleet.home / "held").exists)
    store.rename(fleet.home / "away.db")
    (fleet.home / "held").unlink()
    until(lambda: "the database is away" in service.log.read_text(encoding="utf-8"))
    service.process.terminate()
    assert service.process.wait(60) == 0
    (fleet.home / "away.db").rename(store)
    service.start()
    until((fleet.home / "held").exists)
    (fleet.home / "held").unlink()
    assert handle.result(timeout_s=60)["crc"]
