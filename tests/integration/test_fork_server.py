"""Device processes are forked from a server that has their libraries imported; nothing is left behind."""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from tests.end_to_end.processes import device_process, until
from workers.device import fork_client, libraries
from workers.device.device_client import DeviceEvent, ProcessDevice
from workers.device.device_process import ModelToLoad
from workers.device.devices import cpu

SCRIPTED = ModelToLoad("tests.scripted_model:ScriptedModel", "scripted", ".", "1", {}, {})

#: A worker, as far as its device process is concerned: it prints the process's id, and waits.
WORKER = """
import queue, sys
from tests.integration.test_fork_server import SCRIPTED, cpu, ProcessDevice
events = queue.SimpleQueue()
device = ProcessDevice(cpu(), [SCRIPTED], events.put, threads=1)
device.start()
assert events.get().header["event"] == "ready"
print(device.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has its own notes of libraries, and no fleet."""
    monkeypatch.setattr(libraries.model_source, "cache_folder", lambda: tmp_path)
    monkeypatch.delenv(fork_client.VARIABLE, raising=False)


@pytest.fixture
def events() -> queue.SimpleQueue[DeviceEvent]:
    return queue.SimpleQueue()


@pytest.fixture
def device(events: queue.SimpleQueue[DeviceEvent]) -> Iterator[ProcessDevice]:
    device = ProcessDevice(cpu(), [SCRIPTED], events.put, threads=1)
    yield device
    device.close()


def _started(device: ProcessDevice, events: queue.SimpleQueue[DeviceEvent]) -> psutil.Process:
    device.start()
    assert events.get(timeout=60).header["event"] == "ready"
    assert device.pid is not None
    return psutil.Process(device.pid)


def _is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_the_next_life_is_forked_from_the_same_server(
    device: ProcessDevice, events: queue.SimpleQueue[DeviceEvent]
) -> None:
    """Whatever it had imported is there at once; the death has its signal in the message, as before."""
    first = _started(device, events)
    server = first.ppid()
    first.kill()
    lost = events.get(timeout=60).header
    assert (lost["event"], lost["message"]) == ("lost", "the device process ended with signal 9")
    second = _started(device, events)
    assert second.pid != first.pid
    assert second.ppid() == server != os.getpid()


def test_a_server_that_was_killed_costs_no_running_process(
    device: ProcessDevice, events: queue.SimpleQueue[DeviceEvent]
) -> None:
    """The kernel may choose it when memory is short. The next start has a new one."""
    first = _started(device, events)
    server = psutil.Process(first.ppid())
    server.kill()
    until(lambda: _is_gone(server.pid))
    assert first.is_running()
    first.kill()
    assert events.get(timeout=60).header["event"] == "lost"
    assert _started(device, events).ppid() != server.pid


def test_closing_ends_both(device: ProcessDevice, events: queue.SimpleQueue[DeviceEvent]) -> None:
    process = _started(device, events)
    server = process.ppid()
    device.close()
    assert not psutil.pid_exists(process.pid)
    assert not psutil.pid_exists(server)


def test_a_process_that_has_not_begun_can_be_ended(device: ProcessDevice) -> None:
    """The server may still import libraries."""
    device.start()
    device.close()
    assert device.pid is None


def test_a_fleets_server_that_does_not_fork_is_not_asked_again(
    device: ProcessDevice,
    events: queue.SimpleQueue[DeviceEvent],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may hang in an import. The worker then has its own."""
    monkeypatch.setenv(fork_client.VARIABLE, str(tmp_path / "fork.sock"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(str(tmp_path / "fork.sock"))
        server.listen()
        device.start()
        device.kill()
        assert events.get(timeout=60).header["event"] == "lost"
        server_of_its_own = psutil.Process(_started(device, events).ppid())
        assert server_of_its_own.ppid() == os.getpid()


def test_both_end_with_a_worker_that_is_killed() -> None:
    """Nobody is there to end them."""
    with subprocess.Popen(
        [sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdout is not None
        pid = int(worker.stdout.readline())
        server = psutil.Process(pid).ppid()
        assert device_process(worker.pid).pid == pid, "by its name"
        worker.kill()
    until(lambda: _is_gone(pid) and _is_gone(server))


def test_the_server_imports_what_was_noted_and_has_one_thread(
    device: ProcessDevice, events: queue.SimpleQueue[DeviceEvent], tmp_path: Path
) -> None:
    """A fork has no other threads, so whatever they held would be held for ever."""
    note = libraries.note_of([(SCRIPTED.class_, SCRIPTED.backend)])
    note.parent.mkdir()
    note.write_bytes(msgspec.json.encode(["torch", "torch.no_such_module", "this"]))
    process = _started(device, events)
    server = psutil.Process(process.ppid())
    assert note.is_relative_to(tmp_path)
    assert "libtorch" in Path(f"/proc/{server.pid}/maps").read_text("utf-8")
    assert server.num_threads() == 1


def test_a_site_hook_with_a_thread_gets_a_new_python(
    device: ProcessDevice,
    events: queue.SimpleQueue[DeviceEvent],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A fork in the middle of what that thread does could wait for it for ever."""
    hook = "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    (tmp_path / "sitecustomize.py").write_text(hook, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    process = _started(device, events)
    assert "workers.device.device_process" in process.cmdline()
    process.send_signal(signal.SIGKILL)
    assert events.get(timeout=60).header["message"] == "the device process ended with signal 9"
