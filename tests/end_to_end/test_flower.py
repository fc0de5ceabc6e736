"""What an operator sees in Flower."""

from __future__ import annotations

import json
import re
import socket
import urllib.error
import urllib.request
from typing import Any

import pytest

from producers import Client
from tests.end_to_end.conftest import Fleets
from tests.end_to_end.processes import until
from workers.fleet.local import FLOWER, LocalFleet
from workers.settings import Settings


@pytest.fixture
def watched(fleets, scripted_settings, monkeypatch) -> LocalFleet:
    """A fleet with Flower, whose API is opened for the test to read."""
    monkeypatch.setenv("FLOWER_UNAUTHENTICATED_API", "true")
    return fleets(scripted_settings, flower=True)


def fetch(url: str) -> Any:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)
    except (urllib.error.URLError, ConnectionError):
        return None  # not up yet


def test_every_envelope_is_seen_with_readable_arguments_and_no_texts(watched: LocalFleet):
    """Name, model, count, tasks, priority, job and runtime; never what the texts say. Of each worker, which revision
    it serves.
    """
    secret = "attack at dawn"
    until(lambda: "argosy.scripted<" in _page(f"{watched.flower_url}/broker"))  # before anybody asked it to look
    until(lambda: fetch(f"{watched.flower_url}/api/workers?refresh=1"))
    assert until(lambda: served(watched)).startswith("tests@")
    with Client(watched.broker_url, watched.store_url) as client:
        job = client.submit_many(["echo", "shout"], [f"{secret} {n}" for n in range(130)])
        job.wait(timeout_s=60)
        tasks = until(
            lambda: (
                (found := fetch(f"{watched.flower_url}/api/tasks"))
                and len(found) >= 3
                and all(task["state"] == "SUCCESS" for task in found.values())
                and found
            )
        )
    assert {task["name"] for task in tasks.values()} == {"argosy.envelope"}
    for task in tasks.values():
        assert "scripted: " in task["args"]
        assert "echo+shout, bulk" in task["args"]
        assert job.id in task["args"]
        assert task["runtime"] > 0
    assert secret not in json.dumps(tasks)
    assert set(fetch(f"{watched.flower_url}/api/workers")) == {f"argosy-cpu@{socket.gethostname()}"}


@pytest.mark.long
def test_flower_has_new_queues_and_keeps_its_tasks(watched: LocalFleet, fleets: Fleets, scripted_settings: Settings):
    """The lane of a tenant that came later is there; a restart of the fleet forgets nothing, not even the address."""
    until(lambda: _page(watched.flower_url))
    with Client(watched.broker_url, watched.store_url) as client:
        client.submit("echo", "a text", tenant="acme").result(timeout_s=60)
    until(lambda: "argosy.scripted/1<" in _page(f"{watched.flower_url}/broker"))
    before = until(lambda: fetch(f"{watched.flower_url}/api/tasks?state=SUCCESS"))
    watched.stop()
    again = fleets(scripted_settings, flower=True)
    assert again.flower_url == watched.flower_url
    assert set(until(lambda: fetch(f"{again.flower_url}/api/tasks"))) == set(before)


def served(watched: LocalFleet) -> str:
    """What Flower says that the worker serves, once it has asked it."""
    workers = fetch(f"{watched.flower_url}/api/workers?refresh=1") or {}
    found = [
        worker["stats"]["models"]["scripted"] for worker in workers.values() if "models" in worker.get("stats", {})
    ]
    return str(found[0]) if found else ""


@pytest.mark.long
def test_flower_listens_on_loopback_and_only_reads(fleets, scripted_settings):
    """Nobody else reaches it, and nobody can stop a worker through it, unless an operator opens it."""
    fleet = fleets(scripted_settings, flower=True)
    assert fleet.flower_url.startswith("http://127.0.0.1:")
    page = until(lambda: _page(fleet.flower_url))
    assert "Flower" in page
    shown = re.findall(r'data-column="(\w+)"', _page(f"{fleet.flower_url}/tasks"))
    assert ",".join(shown) == FLOWER["FLOWER_TASKS_COLUMNS"]
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{fleet.flower_url}/api/tasks", timeout=10)
    (flower,) = [service for service in fleet.services if service.name == "flower"]
    flower.stop()
    flower.environment = {**flower.environment, "FLOWER_UNAUTHENTICATED_API": "true"}
    flower.start()
    until(lambda: _page(fleet.flower_url))
    revoke = urllib.request.Request(f"{fleet.flower_url}/api/task/revoke/some-envelope", method="POST")
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(revoke, timeout=10)


def _page(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return str(answer.read().decode())
    except (urllib.error.URLError, ConnectionError):
        return ""
