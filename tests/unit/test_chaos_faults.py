"""The chaos benchmark's agent, links and kinds do the harm that they are for."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest

from benchmarks import chaos, convention
from benchmarks.disasters import agent, faults
from benchmarks.disasters.links import Link

PROCESS = """
import threading, time
from time import time as imported
ticks = threading.Event()
def loop():
    while True:
        ticks.wait(0.01)
thread = threading.Thread(target=loop, name="loop-1", daemon=True)
thread.start()
threading.Thread(target=threading.Event().wait, name="idle", daemon=True).start()
for request in iter(input, "end"):
    print(int(time.time() - time.monotonic()), int(imported() - time.monotonic()), thread.is_alive(), flush=True)
"""


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[str]]:
    """A process with an agent. To each line it answers with its two clocks and whether its thread lives."""
    monkeypatch.setenv("PYTHONPATH", "")
    agent.install(tmp_path / "agent")
    command = [sys.executable, "-c", PROCESS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        said(process)
        yield process
        process.kill()


def said(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdin
    assert process.stdout
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline().split()


def ident(process: subprocess.Popen[str], name: str) -> int:
    return next(thread for thread, found in agent.ask(process.pid, "threads") if found == name)


def test_an_agent_names_the_threads_but_not_its_own(process):
    assert {name for _, name in agent.ask(process.pid, "threads")} == {"MainThread", "loop-1", "idle"}


def test_an_agent_ends_a_thread(process):
    thread = ident(process, "loop-1")
    assert agent.ask(process.pid, "raise_in", thread=thread, error="MemoryError")
    while said(process)[2] == "True":
        pass
    assert not agent.ask(process.pid, "raise_in", thread=thread, error="MemoryError")


def test_an_agent_holds_a_thread_that_runs(process):
    """A thread that waits for ever cannot be caught; the others go on meanwhile."""
    assert agent.ask(process.pid, "hold", threads=[ident(process, "idle"), ident(process, "loop-1")], for_s=0.1)
    assert not agent.ask(process.pid, "hold", threads=[ident(process, "idle")], for_s=0.1)
    assert said(process)[2] == "True"


def test_an_agent_shifts_the_clock_also_where_it_was_imported_by_name(process):
    right = [int(number) for number in said(process)[:2]]
    agent.ask(process.pid, "clock", shift_s=3600)
    wrong = [int(number) for number in said(process)[:2]]
    assert [round((one - other) / 3600) for one, other in zip(wrong, right, strict=True)] == [1, 1]
    agent.ask(process.pid, "clock", shift_s=0)
    again = [int(number) for number in said(process)[:2]]
    assert [round((one - other) / 3600) for one, other in zip(again, right, strict=True)] == [0, 0]


def test_an_agent_says_what_it_cannot_do(process):
    with pytest.raises(OSError, match="KeyError"):
        agent.ask(process.pid, "dance")
    process.kill()
    process.wait()
    with pytest.raises(OSError, match="refused"):
        agent.ask(process.pid, "threads")


@pytest.fixture
def link() -> Iterator[Link]:
    """A link to a server that echoes."""

    def echo(peer: socket.socket) -> None:
        with peer:
            while data := peer.recv(100):
                peer.sendall(data)

    def serve() -> None:
        while True:
            try:
                peer, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=echo, args=(peer,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, daemon=True).start()
        with Link(server.getsockname) as link:
            yield link
        server.shutdown(socket.SHUT_RDWR)


def connected(link: Link) -> socket.socket:
    return socket.create_connection(("127.0.0.1", link.port), timeout=30)


def assert_echoes(peer: socket.socket) -> None:
    peer.sendall(b"x")
    assert peer.recv(1) == b"x"


def assert_silent(peer: socket.socket) -> None:
    """Neither an answer nor an end comes."""
    peer.settimeout(0.3)
    peer.sendall(b"y")
    with pytest.raises(TimeoutError):
        peer.recv(1)
    peer.settimeout(30)


def assert_unreachable(link: Link) -> None:
    with pytest.raises(TimeoutError):
        socket.create_connection(("127.0.0.1", link.port), timeout=0.3)


def test_a_link_forgets_existing_connections_and_takes_new_ones(link):
    with connected(link) as old:
        assert_echoes(old)
        link.silence(existing=True, new=False)
        assert_silent(old)
        with connected(link) as new:
            assert_echoes(new)
        link.speak(existing=False)
        assert_silent(old)


def test_a_link_without_new_connections_keeps_the_existing_ones(link):
    with connected(link) as old:
        assert_echoes(old)
        link.silence(existing=False, new=True)
        assert_unreachable(link)
        assert_echoes(old)
        link.speak(existing=True)
        with connected(link) as new:
            assert_echoes(new)


def test_a_split_network_that_heals_brings_everything(link):
    with connected(link) as old:
        assert_echoes(old)
        link.silence(existing=True, new=True)
        assert_silent(old)
        assert_unreachable(link)
        link.speak(existing=True)
        assert old.recv(1) == b"y"


def test_a_silent_peer_does_not_acknowledge(link):
    """A proxy that only stops reading would: then no keepalive and no TCP_USER_TIMEOUT could notice."""
    with connected(link) as old:
        assert_echoes(old)
        link.silence(existing=True, new=False)
        old.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 500)
        old.sendall(b"y")
        with pytest.raises(TimeoutError, match="110"):
            old.recv(1)


def test_a_server_that_is_down_refuses():
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = gone.getsockname()
    with Link(lambda: address) as link, pytest.raises(ConnectionResetError), connected(link) as peer:
        peer.recv(1)


def test_kinds_are_chosen_by_name_group_and_store():
    everything = faults.chosen([], with_postgresql=True)
    assert everything == list(faults.KINDS)
    assert set(everything) - set(faults.chosen([], with_postgresql=False)) == {
        "postgresql", "postgresql_session", "postgresql_stopped",
    }  # fmt: skip
    assert faults.chosen(["clocks", "memory"], with_postgresql=False) == [
        "worker_clock", "gateway_clock", "client_clock", "memory",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="weather"):
        faults.chosen(["weather"], with_postgresql=True)


def test_a_sequence_has_each_kind_as_often_as_any_other():
    names = list(faults.KINDS)
    found = faults.sequence(names, 100, Random(1))
    counts = Counter(found)
    assert set(counts) == set(names)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert found == faults.sequence(names, 100, Random(1)) != faults.sequence(names, 100, Random(2))


def test_each_name_of_a_thread_comes_in_turn(process):
    stage = SimpleNamespace(random=Random(1), tried_threads=Counter(), struck_threads=Counter())
    labels = []
    for _ in range(3):
        pid, threads, label = faults.threads_of(stage, [process.pid], "raises")[0]
        assert (pid, len(threads)) == (process.pid, 1)
        stage.tried_threads[label] += 1
        labels.append(label)
    assert sorted(labels) == ["MainThread raises", "idle raises", "loop-N raises"]


def test_the_fleet_blames_by_the_default():
    assert "max_attempts" not in chaos.FLEET


@pytest.mark.parametrize(
    ("changed", "kept"),
    [({}, True), ({"clean": False}, False), ({"kills": 10}, False), ({"kinds": ["worker"]}, False), ({"commit": "other"}, False)],
    ids=str,
)  # fmt: skip
def test_a_series_goes_on_after_the_runs_that_ended_well(tmp_path, changed, kept):
    options = SimpleNamespace(items=2000, kills=100, kinds=["device", "worker"])
    found = {"items": 2000, "kills": 100, "kinds": ["device", "worker"], "clean": True, **changed}
    commit = found.pop("commit", convention.versions()["commit"])
    file = tmp_path / "chaos-sqlite-1.json"
    assert not chaos._kept(file, options)
    file.write_text(json.dumps({"figures": found, "versions": {"commit": commit}}), encoding="utf-8")
    assert chaos._kept(file, options) is kept
