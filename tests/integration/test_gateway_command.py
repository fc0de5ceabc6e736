"""`argosy gateway`: keys made, listed and removed; and served as a program of its own."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from resource import RLIMIT_NOFILE, prlimit

import httpx2 as httpx
import pytest
from click.testing import CliRunner, Result

from producers.commands.main import main
from producers.gateway.keys import new_key
from results_store.store import Store
from tests.conftest import free_port
from tests.end_to_end.processes import until


@pytest.fixture
def store_url(sqlite_url: str) -> str:
    """The commands do nothing that depends on the database: one is enough."""
    return sqlite_url


@pytest.fixture(autouse=True)
def environment(store: Store, store_url: str, broker_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARGOSY_STORE_URL", store_url)
    monkeypatch.setenv("ARGOSY_BROKER_URL", broker_url)


def argosy(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["gateway", *arguments])


def test_keys_are_made_listed_and_removed(store: Store) -> None:
    """The secret is shown once; afterwards only its hash is there."""
    assert "make one with" in argosy("keys", "list").stderr
    made = argosy("keys", "add", "laptop", "--tenant", "ours", "--expires", "90d", "--rate", "5")
    key = made.stdout.strip()
    assert re.fullmatch(r"argosy-[0-9a-z]{26}-[0-9a-f]{64}", key)
    (row,) = store.keys.all()
    assert (row.name, row.tenant, row.role, row.rate_per_s) == ("laptop", "ours", "member", 5)
    assert key.rpartition("-")[2] not in str(row)

    listed = argosy("keys", "list").stdout
    assert re.search(r"^laptop  tenant 'ours'  member  created \S+ \S+  expires ", listed)
    assert key not in listed
    assert "remove it first" in argosy("keys", "add", "laptop", "--tenant", "ours").stderr
    assert "is not a valid tenant name" in argosy("keys", "add", "x", "--tenant", "a b").stderr
    assert argosy("keys", "remove", "laptop").exit_code == 0
    assert "no key 'laptop'" in argosy("keys", "remove", "laptop").stderr


def test_a_viewers_key_is_of_a_tenant_or_of_all(store: Store) -> None:
    """Which of them is never a default: all tenants are said."""
    assert "--tenant: is missing; name the tenant" in argosy("keys", "add", "x", "--role", "viewer").stderr
    assert "a member has one tenant" in argosy("keys", "add", "x", "--all-tenants").stderr
    argosy("keys", "add", "a", "--role", "viewer", "--tenant", "ours")
    argosy("keys", "add", "b", "--role", "viewer", "--all-tenants")
    argosy("keys", "add", "c", "--role", "operator")
    rights = [(key.role, key.tenant, key.all_tenants) for key in store.keys.all()]
    assert rights == [("viewer", "ours", False), ("viewer", "", True), ("operator", "", True)]
    listed = argosy("keys", "list").stdout
    for line in ("a  tenant 'ours'  viewer  ", "b  tenant ''  viewer of all tenants  ", "c  tenant ''  operator  "):
        assert line in listed


def test_an_expiry_beyond_any_calendar_is_refused_and_listed(store: Store) -> None:
    """It was taken, and ended each list of the keys."""
    assert "is over 100 years" in argosy("keys", "add", "x", "--tenant", "ours", "--expires", "99999999999999w").stderr
    assert store.keys.add(new_key("earlier", "ours", expires_at=6e19, created_at=0)[1])
    assert "earlier  tenant 'ours'  member" in argosy("keys", "list").stdout


def test_a_key_s_name_is_text_in_the_terminal() -> None:
    argosy("keys", "add", "\x1b[2Jnight\n", "--tenant", "ours")
    shown = [argosy("keys", "list").stdout, argosy("keys", "remove", "\x1b[2Jnight\n").stderr]
    shown.append(argosy("keys", "remove", "\x1b[2Jday\n").stderr)
    for text in shown:
        assert "\x1b" not in text
        assert "\\x1b[2J" in text
        assert text.count("\n") == 1


@pytest.mark.parametrize("origin", ["app.example", "null", "https://app.example/page", "https://user@app.example"])
def test_an_origin_that_no_browser_sends_is_refused(origin: str) -> None:
    """It would allow nothing, and say nothing."""
    refused = argosy("--allow-origin", origin)
    assert refused.exit_code == 2
    assert f"{origin!r} is not an origin; write scheme and host alone" in refused.stderr


@pytest.mark.long
def test_it_serves_until_it_is_told_to_stop() -> None:
    """And ends well then. The health checks have a port of their own, and nothing else is there."""
    port, health = free_port(), f"http://127.0.0.1:{free_port()}"
    key = argosy("keys", "add", "laptop", "--tenant", "ours").stdout.strip()
    command = [sys.executable, "-m", "producers.commands.main", "gateway", "--port", str(port)]
    command += ["--health-port", health.rpartition(":")[2]]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        try:
            until(lambda: answers(f"http://127.0.0.1:{port}/readyz"))
            tasks = httpx.get(f"http://127.0.0.1:{port}/api/tasks", headers={"Authorization": f"Bearer {key}"})
            assert "sentiment" in [task["name"] for task in tasks.json()["tasks"]]
            assert answers(f"{health}/healthz")
            assert answers(f"{health}/readyz")
            assert httpx.get(f"{health}/api/tasks").status_code == 404
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        logged = process.stderr.read().decode()
        assert process.wait(30) == 0
    assert re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO uvicorn\.access: .*/api/tasks", logged, re.MULTILINE)


def test_an_operators_key_needs_no_tenant() -> None:
    """It sees all tenants' jobs; any other key belongs to one."""
    assert argosy("keys", "add", "root", "--operator").exit_code == 0
    assert "--tenant: is missing" in argosy("keys", "add", "x").stderr


def test_a_taken_port_is_named() -> None:
    """With the option that chooses another one."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert f"--port: 127.0.0.1:{port}: Address already in use" in argosy("--port", str(port)).stderr


def test_many_connections_at_once_leave_descriptors(tmp_path: Path) -> None:
    """More than the process may open come while it stands still: none of its own files lacks a descriptor then."""
    port = free_port()
    log = tmp_path / "gateway.log"
    command = [sys.executable, "-m", "producers.commands.main", "gateway", "--port", str(port)]
    with ExitStack() as held, log.open("wb") as file, subprocess.Popen(command, stderr=file) as process:
        try:
            until(lambda: answers(f"http://127.0.0.1:{port}/readyz"))
            prlimit(process.pid, RLIMIT_NOFILE, (400, 400))
            process.send_signal(signal.SIGSTOP)
            for _ in range(600):
                held.enter_context(socket.create_connection(("127.0.0.1", port))).sendall(b"GET / HTTP/1.1\r\nHost: ")
            process.send_signal(signal.SIGCONT)
            assert httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=60).status_code == 200
        finally:
            process.send_signal(signal.SIGCONT)
            process.terminate()
    assert "cut off: there are too many connections" in log.read_text()
    assert "Too many open files" not in log.read_text()


def test_no_keys_on_no_open_address() -> None:
    """Without keys everybody who reaches it is the operator."""
    assert "refused on 0.0.0.0" in argosy("--no-auth", "--host", "0.0.0.0").stderr


def answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False
