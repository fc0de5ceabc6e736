"""Threads of a worker that fail, end or hang, and a device that cannot be started: the work goes on without hands."""

from __future__ import annotations

import os
import resource
import signal
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from producers import Client, Job
from tests.end_to_end.processes import device_process, until
from workers.fleet import doctor
from workers.fleet.local import LocalFleet
from workers.node.watchdog import LEAST_LIMIT_S

TIMEOUT_S = 120

#: Every thread of a worker and its device process.
THREADS = (
    "batcher",
    "device-cpu",
    "argosy-writer",
    "streams",
    "drain",
    "leases",
    "cancellations",
    "tenants",
    "pauses",
    "reloads",
    "presence",
    "following",
    "reconciler",
    "retention",
    "schedules",
    "costs",
    "sharing",
    "watchdog",
    "watchdog guard",
    "ThreadPoolExecutor-0_0",
    "MainThread",
    "device MainThread",
    "device argosy frames",
)


@pytest.fixture
def faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the agent that raises in threads, or holds them up, in every process of the fleet."""
    folder = tmp_path / "faults"
    folder.mkdir()
    agent = Path(__file__).parent / "thread_faults"
    monkeypatch.setenv("PYTHONPATH", f"{agent}{os.pathsep}{os.environ.get('PYTHONPATH', Path.cwd())}")
    monkeypatch.setenv("ARGOSY_THREAD_FAULTS", str(folder))
    return folder


@pytest.fixture
def watched(faults: Path, fleet: LocalFleet) -> Iterator[LocalFleet]:
    """A fleet whose processes are started again when they end."""
    watching = threading.Thread(target=fleet.watch)
    watching.start()
    yield fleet
    fleet.request_stop()
    watching.join()


def cause(faults: Path, how: str, thread: str) -> None:
    """Raise in a thread, or hold it up, and return once it is done."""
    file = faults / f"{how} {thread}"
    file.touch()
    until(lambda: not file.exists())


def texts(count: int) -> list[str]:
    return [f"item {n:05} of a job" for n in range(count)]


def assert_right(job: Job, expected: list[str]) -> None:
    status = job.wait(timeout_s=TIMEOUT_S)
    assert (status.succeeded, status.done, status.total) == (len(expected),) * 3
    assert all(row.output["crc"] == zlib.crc32(expected[row.seq].encode()) for row in job.results())


def has_ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def worker_pid(fleet: LocalFleet) -> int:
    process = fleet.workers[0].process
    assert process is not None
    return process.pid


@pytest.mark.parametrize("how", ["raise", pytest.param("exit", marks=pytest.mark.faults)])
def test_an_exception_in_any_thread_costs_nothing(watched: LocalFleet, client: Client, faults: Path, how: str):
    """MemoryError or SystemExit in each thread in turn: it goes on, or the process ends and is started again."""
    for thread in THREADS:
        expected = texts(300)
        job = client.submit_many("echo", expected)
        cause(faults, how, thread)
        assert_right(job, expected)
        assert_right(client.submit_many("echo", expected), expected)


@pytest.mark.faults
@pytest.mark.parametrize("thread", ["batcher", "argosy-writer", "device-cpu", "watchdog"])
def test_a_thread_that_hangs_ends_the_process(
    watched: LocalFleet, client: Client, faults: Path, monkeypatch: pytest.MonkeyPatch, thread: str
):
    """Its leases are given up at once, doctor says which thread it was, and its successor does the work."""
    pid, device = worker_pid(watched), device_process(worker_pid(watched))
    cause(faults, "hold", thread)
    expected = texts(500)
    job = client.submit_many("echo", expected)
    until(lambda: not psutil.pid_exists(pid))
    until(lambda: has_ended(device))
    assert_right(job, expected)
    monkeypatch.setenv("ARGOSY_BROKER_URL", watched.broker_url)
    monkeypatch.setenv("ARGOSY_STORE_URL", watched.store_url)
    found = [finding for finding in doctor.examine(None) if "ended itself" in finding.found]
    assert [(finding.ok, f"the thread {thread} made no progress" in finding.found) for finding in found] == [
        (False, True)
    ]


@pytest.mark.faults
def test_the_ready_file_is_gone_before_the_process(watched: LocalFleet, faults: Path):
    """Whoever asks by the ready file does not take a process that ends for one that works."""
    service = watched.workers[0]
    assert service.ready_file is not None
    pid = worker_pid(watched)
    cause(faults, "hold", "batcher")
    until(lambda: not service.ready_file.exists() or worker_pid(watched) != pid)
    until(lambda: worker_pid(watched) != pid and service.ready_file.exists())


@pytest.mark.faults
def test_a_worker_that_was_stopped_goes_on(watched: LocalFleet, client: Client):
    """SIGSTOP for longer than the watchdog's limit, then SIGCONT: the process stays, and its threads have their turn."""
    pid = worker_pid(watched)
    worker = psutil.Process(pid)
    expected = texts(500)
    worker.send_signal(signal.SIGSTOP)
    job = client.submit_many("echo", expected)
    threading.Event().wait(LEAST_LIMIT_S + 3)
    worker.send_signal(signal.SIGCONT)
    assert_right(job, expected)
    assert worker_pid(watched) == pid


def no_more_descriptors(worker: psutil.Process) -> Callable[[], None]:
    """Take away all descriptors that the process has not opened yet; return what gives them back."""
    before = worker.rlimit(resource.RLIMIT_NOFILE)
    worker.rlimit(resource.RLIMIT_NOFILE, (worker.num_fds() // 2, before[1]))
    return lambda: worker.rlimit(resource.RLIMIT_NOFILE, before)


def test_a_device_that_cannot_be_started_now_is_started_later(watched: LocalFleet, client: Client):
    """No descriptor is left when the device dies: the start has failed, and the next one succeeds."""
    worker = psutil.Process(worker_pid(watched))
    device = device_process(worker.pid)
    give_back = no_more_descriptors(worker)
    device.kill()
    log = watched.workers[0].log
    until(lambda: "cannot be started (1)" in log.read_text(encoding="utf-8"))
    give_back()
    expected = texts(500)
    assert_right(client.submit_many("echo", expected), expected)
    assert worker.is_running()


@pytest.mark.faults
def test_a_worker_whose_device_never_starts_ends(watched: LocalFleet, client: Client):
    """No descriptor for good: the device is out of service, the envelopes go back, and another process does them."""
    worker = psutil.Process(worker_pid(watched))
    device = device_process(worker.pid)
    expected = texts(500)
    no_more_descriptors(worker)
    device.kill()
    job = client.submit_many("echo", expected)
    until(lambda: has_ended(worker))
    assert_right(job, expected)
