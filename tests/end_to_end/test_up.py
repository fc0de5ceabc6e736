"""`argosy up` as people live with it: stopped and started again, closed with its terminal, killed, refused a port."""

from __future__ import annotations

import os
import pty
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import psutil
import pytest

from producers import Client, ConfigurationError
from producers.wire import connection
from tests.conftest import free_port
from tests.end_to_end.conftest import SCRIPTED, Fleets
from tests.end_to_end.processes import until
from workers import settings
from workers.fleet import services
from workers.fleet.local import LocalFleet


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder of the test's fleets, which clients find by the environment."""
    monkeypatch.setenv("ARGOSY_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def broker_port(fleet: LocalFleet) -> int:
    port = urlsplit(fleet.broker_url).port
    assert port
    return port


@pytest.mark.long
def test_clients_outlive_a_restart_of_the_fleet(
    fleets: Fleets, scripted_settings: settings.Settings, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It comes back at its address; if another program took the port meanwhile, the same clients find the new one."""
    first = fleets(scripted_settings)
    with Client() as client:
        assert client.submit("echo", "before").result(timeout_s=60)
        first.stop()
        second = fleets(scripted_settings)
        assert second.broker_url == first.broker_url
        assert client.submit("echo", "after", durable=False).result(timeout_s=60)
        second.stop()
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of before are not closed yet
            other.bind(("127.0.0.1", broker_port(first)))
            other.listen()
            third = fleets(scripted_settings)
            assert broker_port(third) != broker_port(first)
            assert f"port {broker_port(first)} of the broker is taken" in caplog.text
            job = client.submit_many("echo", ["elsewhere", "as well"])
            assert job.wait(timeout_s=60).succeeded == 2
            assert client.submit("echo", "direct", durable=False).result(timeout_s=60)
    assert stat.S_IMODE((home / "fleet.json").stat().st_mode) == 0o600


@pytest.mark.long
def test_a_worker_that_fails_to_start_twice_is_started_again(
    fleets: Fleets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each time the launcher says how it ended and what it said last."""
    left = tmp_path / "left"
    left.write_text("..", encoding="utf-8")
    path = tmp_path / "fleet.toml"
    path.write_text(f'{SCRIPTED}\n[models.scripted.options]\nfail_to_load = "{left}"\n', encoding="utf-8")
    monkeypatch.setenv("ARGOSY_FLEET", str(path))
    fleet = fleets(settings.load())
    with Client(fleet.broker_url, fleet.store_url) as client:
        assert client.submit("echo", "at last").result(timeout_s=60)
    ends = [record.message for record in caplog.records if record.message.startswith("worker-cpu ended")]
    assert ["exit code 1" in end and "scripted not to load" in end for end in ends] == [True, True]


def test_a_fixed_port_that_is_taken_is_named(scripted_settings: settings.Settings, tmp_path: Path) -> None:
    """The operator chose it, for a firewall or a bookmark: another one would be of no use."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        fleet = LocalFleet(scripted_settings, tmp_path / "home", flower=False, broker_port=port)
        with pytest.raises(ConfigurationError, match=f"port {port} is taken.*--broker-port"):
            fleet.start()


def test_a_fleet_without_flower_does_not_name_the_flower_of_an_earlier_start(
    fleets: Fleets, scripted_settings: settings.Settings, home: Path
) -> None:
    home.mkdir()
    earlier = connection.LocalFleet(
        pid=1,
        broker_url=f"redis://:secret@127.0.0.1:{free_port()}/0",
        store_url="",
        flower_url=f"http://127.0.0.1:{free_port()}",
    )
    (home / "fleet.json").write_bytes(msgspec.json.encode(earlier))
    fleet = fleets(scripted_settings)
    assert fleet.broker_url == earlier.broker_url
    assert "flower   off" in fleet.whereabouts()
    announced = msgspec.json.decode((home / "fleet.json").read_bytes(), type=connection.LocalFleet)
    assert announced.flower_url == ""


class Terminal:
    """`argosy up` in a terminal of its own."""

    def __init__(self, *options: str) -> None:
        self._mine, theirs = pty.openpty()
        self.up = subprocess.Popen(
            [sys.executable, "-m", "producers.commands.main", "up", "--no-flower", *options],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=_take_terminal,  # noqa: PLW1509 - it takes no lock
        )
        os.close(theirs)
        said = b""
        while b"logs " not in said:
            said += os.read(self._mine, 4096)
        self.family = psutil.Process(self.up.pid).children(recursive=True)

    def close(self) -> None:
        os.close(self._mine)


def _take_terminal() -> None:
    import fcntl
    import termios

    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def terminal(scripted_settings: settings.Settings, home: Path) -> Iterator[Terminal]:
    terminal = Terminal("--broker-port", str(free_port()))
    yield terminal
    terminal.up.kill()
    terminal.up.wait()
    _, alive = psutil.wait_procs(terminal.family, timeout=30)
    for process in alive:
        process.kill()


def test_a_closed_terminal_stops_the_fleet(terminal: Terminal, home: Path) -> None:
    """As Ctrl-C does: in order, with exit code 0, and nothing left running."""
    terminal.close()
    assert terminal.up.wait(timeout=60) == 0
    _, alive = psutil.wait_procs(terminal.family, timeout=30)
    assert not alive
    assert not (home / "processes.json").exists()


def test_a_killed_launcher_leaves_nothing_running(terminal: Terminal) -> None:
    """Orphans would go on unwatched, while clients are told that the fleet has stopped."""
    terminal.up.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(terminal.family, timeout=60)
    assert not alive
    terminal.close()


def test_a_log_is_bounded_while_its_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer keeps its descriptor, and goes on at the beginning of the emptied file."""
    monkeypatch.setattr(services, "LOG_BYTES", 1000)
    log = tmp_path / "log"
    script = "import sys\nfor line in sys.stdin: print(line.strip() * 100, flush=True)"
    process = services.spawn([sys.executable, "-c", script], log, stdin=subprocess.PIPE)
    assert process.stdin
    for text in (b"early" * 5 + b"\n", b"late" * 2 + b"\n"):
        process.stdin.write(text)
        process.stdin.flush()
        until(lambda: log.read_bytes().endswith(b"\n"))
        services.bound_log(log)
    process.stdin.close()
    assert process.wait(timeout=30) == 0
    assert log.read_bytes() == b"late" * 200 + b"\n"
    assert (tmp_path / "log.1").read_bytes() == b"early" * 500 + b"\n"
