"""Schedules over HTTP: in the form of `argosy schedule list --json`, without secrets; operators change them and leave a trace."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from contextlib import closing

import httpx2 as httpx
import pytest
from click.testing import CliRunner

from producers.commands.main import main
from producers.commands.scheduling.schedule_times import planned
from producers.wire.publisher import Publisher
from results_store.sql.waiting.schedules import Schedule
from results_store.store import Store
from tests.end_to_end.gateway_server import Served, serving
from tests.integration.test_schedules import MINUTE, submission
from workers.node import presence
from workers.node.presence import NodeState

SECRET = "hunter2"


@pytest.fixture
def served(broker_url: str, store: Store, store_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("ARGOSY_STORE_URL", store_url)
    monkeypatch.setenv("ARGOSY_BROKER_URL", broker_url)
    with serving(broker_url, store_url) as found:
        yield found


@pytest.fixture
def operator(served: Served) -> Iterator[httpx.Client]:
    with served.client(served.key("ours", operator=True)) as found:
        yield found


def add(store: Store, name: str, where: str = "/nowhere", **changes: object) -> None:
    due = {"next_at": store.now() + 3600} | changes
    assert store.schedules.add(Schedule(name=name, submission=submission(where), **due))  # type: ignore[arg-type]


def listed() -> list[dict[str, object]]:
    """What the command prints."""
    done = CliRunner().invoke(main, ["schedule", "list", "--json"])
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def fail(store: Store, name: str, error: str, at: float = MINUTE) -> None:
    """Let a schedule have a run that fails."""
    run = store.schedules.take(platform.node(), "n", planned, now=at, may=lambda one: one.name == name)
    assert run is not None
    store.schedules.end(run, "failed", error=error)


def test_the_list_is_the_commands(operator: httpx.Client, store: Store) -> None:
    """Also of a schedule that a newer version wrote."""
    add(store, "nightly")
    add(store, "once", next_at=MINUTE)
    fail(store, "once", "first error")
    fail(store, "once", "second error", at=MINUTE + 60)
    newer = submission("/a").replace('"rows":', '"v":2,"rows":')
    assert store.schedules.add(Schedule(name="newer", submission=newer, next_at=None))
    assert store.schedules.add(Schedule(name="no-json", submission="{", next_at=None))
    answer = operator.get("/api/schedules").json()["schedules"]
    assert [one["name"] for one in answer] == ["newer", "nightly", "no-json", "once"]
    unread = [one.pop("unread") for one in answer]
    assert [found is None for found in unread] == [True, False, True, False], "what has no next time waits for nobody"
    assert str(unread[1]).startswith(
        "no running worker may read its source, and it waits until one may: start a worker"
    )
    assert answer == listed()
    assert [one["submission"] is None for one in answer] == [True, False, True, False]
    runs = operator.get("/api/schedules/once/runs").json()["runs"]
    assert [run["error"] for run in runs] == ["second error", "first error"]
    assert (answer[3]["last_run"], answer[1]["last_run"]) == (runs[0], None)
    assert operator.get("/api/schedules/once/runs?limit=1").json()["runs"] == runs[:1]


def test_no_secret_of_a_url_is_told(operator: httpx.Client, store: Store) -> None:
    """Neither of a source nor in the error of a run, which quotes it."""
    url = f"https://ann:{SECRET}@p@logs.example/a/{{planned_at:%Y}}.csv?sig={SECRET}&x=1"
    add(store, "signed", url, next_at=MINUTE)
    fail(store, "signed", f"InvalidInput: {url}:3: is no text")
    found = operator.get("/api/schedules")
    assert found.json()["schedules"][0]["submission"]["rows"]["where"] == [
        "https://***@logs.example/a/{planned_at:%Y}.csv?***"
    ]
    runs = operator.get("/api/schedules/signed/runs")
    assert (
        runs.json()["runs"][0]["error"] == "InvalidInput: https://***@logs.example/a/{planned_at:%Y}.csv?*** is no text"
    )
    assert SECRET not in found.text + runs.text
    assert SECRET in str(listed())


def test_a_source_that_a_worker_may_read_is_no_problem(operator: httpx.Client, store: Store, broker_url: str) -> None:
    """Its places are not told."""
    add(store, "ours", "/data/rows.txt")
    add(store, "other", "/elsewhere/rows.txt")
    state = NodeState(name="w1", device="cpu", models={}, host=platform.node(), schedules=["/data/"])
    with closing(Publisher(broker_url)) as publisher:
        presence.tell(publisher, state)
        found = operator.get("/api/schedules")
        presence.leave(publisher, "w1")
    assert [one["unread"] is None for one in found.json()["schedules"]] == [False, True]
    assert '"/data/"' not in found.text


def test_operators_pause_resume_and_remove(served: Served, operator: httpx.Client, store: Store) -> None:
    """Each change once in the audit log, with the words of the command; others only look."""
    add(store, "nightly", next_at=1.0)
    with (
        served.client(served.key("", role="viewer", all_tenants=True)) as wall,
        served.client(served.key("acme")) as acme,
    ):
        assert wall.get("/api/schedules").json() == operator.get("/api/schedules").json()
        assert acme.get("/api/schedules").status_code == 403
        for caller in (wall, acme):
            assert caller.post("/api/schedules/nightly/pause").status_code == 403
            assert caller.delete("/api/schedules/nightly").status_code == 403
    for _ in range(2):
        (paused,) = operator.post("/api/schedules/nightly/pause").json()["schedules"]
    assert paused["paused_at"] is not None
    before = store.now()
    for _ in range(2):
        (resumed,) = operator.post("/api/schedules/nightly/resume").json()["schedules"]
    assert resumed["paused_at"] is None
    assert resumed["next_at"] > before, "the time that passed meanwhile is left out"
    assert operator.delete("/api/schedules/nightly").json() == {"schedules": []}
    for path, method in (("pause", "POST"), ("resume", "POST"), ("", "DELETE")):
        refused = operator.request(method, f"/api/schedules/nightly/{path}".rstrip("/"))
        assert (refused.status_code, refused.json()["type"]) == (404, "urn:argosy:problem:UnknownSchedule")
    assert operator.get("/api/schedules/nightly/runs").status_code == 404
    wrong = operator.post("/api/schedules/a%00b/pause")
    assert (wrong.status_code, wrong.json()["field"]) == (422, "name")
    entries = [one for one in store.audit.newest() if one.subject == "schedule:nightly"]
    assert [(one.action, one.source) for one in reversed(entries)] == [
        ("schedule pause", "http"),
        ("schedule resume", "http"),
        ("schedule remove", "http"),
    ]
    assert {one.name.split()[0] for one in entries} == {"ours"}


def test_a_schedule_of_another_version_is_paused_and_not_resumed_here(operator: httpx.Client, store: Store) -> None:
    """Its next time is not known to this version."""
    assert store.schedules.add(Schedule(name="newer", submission='{"times": []}', next_at=1.0))
    assert operator.post("/api/schedules/newer/pause").status_code == 200
    refused = operator.post("/api/schedules/newer/resume")
    assert refused.status_code == 422
    assert "'newer' has a form that this version does not read" in refused.json()["detail"]
    assert store.schedules.every()[0].paused_at is not None
