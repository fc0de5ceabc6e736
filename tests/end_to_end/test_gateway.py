"""The gateway with a real fleet behind it: every route, every refusal, over a real socket."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator

import httpx
import pytest

from tests.end_to_end.gateway_server import Served, serving
from workers.fleet import LocalFleet


@pytest.fixture(scope="module")
def served(shared_fleet: LocalFleet) -> Iterator[Served]:
    with serving(shared_fleet.broker_url, shared_fleet.store_url) as found:
        yield found


@pytest.fixture(scope="module")
def ours(served: Served) -> Iterator[httpx.Client]:
    """A caller of the tenant `ours`."""
    with served.client(served.key("ours")) as client:
        yield client


@pytest.fixture(scope="module")
def theirs(served: Served) -> Iterator[httpx.Client]:
    """A caller of another tenant."""
    with served.client(served.key("theirs")) as client:
        yield client


def crc(text: str) -> int:
    return zlib.crc32(text.encode())


def test_an_item_is_answered_in_one_request(ours: httpx.Client) -> None:
    """What an API backend wants: ask, wait, have it."""
    answer = ours.post("/api/items", json={"task": "echo", "input": "a text", "key": "mine", "wait_s": 30})

    assert answer.status_code == 200
    (row,) = answer.json()["results"]
    assert (row["state"], row["output"]["crc"], row["key"]) == ("succeeded", crc("a text"), "mine")


def test_an_item_is_accepted_and_fetched_later(ours: httpx.Client, theirs: httpx.Client) -> None:
    """A handle outlives the request, and is nobody else's."""
    accepted = ours.post("/api/items", json={"task": ["echo", "shout"], "input": "sleep 0.2"})
    assert accepted.status_code == 202
    where = accepted.headers["location"]

    answer = ours.get(where, params={"wait_s": 30})
    assert answer.status_code == 200
    assert {row["task"] for row in answer.json()["results"]} == {"echo", "shout"}
    assert theirs.get(where).status_code == 404


def test_many_are_one_job(ours: httpx.Client, theirs: httpx.Client) -> None:
    """Submitted in a body, followed by events, read as lines; another tenant sees nothing of it."""
    body = {
        "task": "echo",
        "inputs": [f"text {n}" for n in range(20)] + [{"input": "raise", "key": "bad"}],
        "name": "x",
    }
    accepted = ours.post("/api/jobs", json=body)
    assert accepted.status_code == 202
    job = accepted.json()["id"]

    with ours.stream("GET", f"/api/jobs/{job}/events") as events:
        told = "".join(events.iter_text())
    assert "event: progress" in told
    assert told.rstrip().rpartition("data: ")[2].startswith("{")
    assert '"finished":true' in told.rpartition("event: finished")[2]

    rows = [json.loads(line) for line in ours.get(f"/api/jobs/{job}/results").text.splitlines()]
    assert [row["output"]["crc"] for row in rows[:20]] == [crc(f"text {n}") for n in range(20)]
    assert (rows[20]["key"], rows[20]["error"]["kind"]) == ("bad", "ModelError")
    assert "traceback" not in rows[20]["error"]

    status = ours.get(f"/api/jobs/{job}").json()
    assert (status["state"], status["succeeded"], status["failed"], status["name"]) == ("finished", 20, 1, "x")
    for path in ("", "/results", "/events", "/page"):
        assert theirs.get(f"/api/jobs/{job}{path}").status_code == 404
    assert theirs.post(f"/api/jobs/{job}/cancel").status_code == 404
    assert job not in theirs.get("/api/jobs").text
    assert job in ours.get("/api/jobs").text
