"""`argosy doctor` and a running fleet: each planted fault is found, and nothing where there is none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from redis import Redis

from producers.commands.main import main
from producers.commands.serving import unscheduled
from producers.wire.connection import Connection
from producers.wire.live_nodes import NODES
from producers.wire.publisher import Publisher
from producers.wire.queues import PRIORITY_SEPARATOR
from results_store.records import ResultState
from results_store.sql.engines.weight import Weight
from results_store.sql.waiting.schedules import Planned, Schedule
from results_store.store import Store
from tests.integration.rows import batch, new_envelope, new_job, result
from workers import settings
from workers.fleet import doctor, running_fleet
from workers.fleet.findings import Finding
from workers.node import declared_settings, presence
from workers.node.presence import ModelState, NodeState

LONG_AGO_S = 600.0

#: The submission of a schedule, as far as a node must understand it.
OF_DATA = '{"rows": {"where": ["/data/logs/rows.csv"]}}'


@pytest.fixture(autouse=True)
def environment(store: Store, store_url: str, broker_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARGOSY_STORE_URL", store_url)
    monkeypatch.setenv("ARGOSY_BROKER_URL", broker_url)
    monkeypatch.setattr(running_fleet, "SECOND_LOOK_S", 0.01)


@pytest.fixture
def publisher(broker_url: str) -> Iterator[Publisher]:
    publisher = Publisher(broker_url)
    yield publisher
    publisher.close()


def announce(publisher: Publisher, *, ahead_s: float = 0.0) -> None:
    """Announce a worker of the model "text", as workers do every two seconds."""
    models = {"text": ModelState(revision="r")}
    at = time.time() + ahead_s
    presence.tell(publisher, NodeState(name="w1", device="cpu", models=models, lanes=[0, 1], at=at))


def problems() -> list[Finding]:
    return [finding for finding in running_fleet.examine(Connection()) if not finding.ok]


def wait_for_long(store: Store, *, model: str = "text", priority: int = 0) -> None:
    created_at = store.now() - LONG_AGO_S
    envelope = new_envelope("a0", job="a", created_at=created_at, model=model, priority=priority)
    store.add_envelopes([envelope], jobs=[new_job("a", created_at=created_at)])


def test_a_fleet_without_a_fault_has_no_finding(publisher: Publisher, store: Store, broker_url: str) -> None:
    """Work that is on its way, or waits behind more urgent work, is none."""
    announce(publisher)
    wait_for_long(store, priority=9)
    store.commit([], batches=[batch("b", started_at=store.now(), priorities={"0": 5})])
    with Redis.from_url(broker_url) as redis:
        redis.lpush(f"argosy.text/1{PRIORITY_SEPARATOR}9", b"{}")
    assert problems() == []


def test_a_reload_is_no_problem(publisher: Publisher, store: Store) -> None:
    """The command declares settings that the file does not have; doctor says so, and finds nothing missing."""
    chosen = settings.load(environment={}).models["text"]
    declared = declared_settings.table(msgspec.structs.replace(chosen, batch_rows=7))
    store.declarations.declare("text", declared, proven=True)
    [finding] = doctor._declared(Connection(), settings.load(environment={}))
    assert (finding.ok, "settings of the last `argosy models reload`" in finding.found) == (True, True)


def test_no_worker_is_a_problem() -> None:
    """All else may look well: nothing is computed."""
    examined = CliRunner().invoke(main, ["doctor"])
    assert examined.exit_code == 1
    assert "missing  worker" in examined.output
    assert "none online" in examined.output


def idle_worker(publisher: Publisher, store: Store, redis: Redis) -> None:
    wait_for_long(store)


def stopped_lane(publisher: Publisher, store: Store, redis: Redis) -> None:
    wait_for_long(store)
    store.commit([], batches=[batch("b", started_at=store.now(), priorities={"9": 5})])


def unserved_model(publisher: Publisher, store: Store, redis: Redis) -> None:
    wait_for_long(store, model="vision")


def unread_queue(publisher: Publisher, store: Store, redis: Redis) -> None:
    redis.lpush("argosy.vision", b"{}")


def unread_lane(publisher: Publisher, store: Store, redis: Redis) -> None:
    redis.lpush("argosy.text/7", b"{}", b"{}")


def unread_priority(publisher: Publisher, store: Store, redis: Redis) -> None:
    redis.lpush(f"argosy.text{PRIORITY_SEPARATOR}11", b"{}")


def wrong_clock(publisher: Publisher, store: Store, redis: Redis) -> None:
    announce(publisher, ahead_s=180)


def dead_letter(publisher: Publisher, store: Store, redis: Redis) -> None:
    store.add_envelopes([new_envelope("a0", job="a")], jobs=[new_job("a")])
    store.claim(["a0"], worker="w1", lease_s=0)
    store.commit([result(0, job="a", envelope="a0", state=ResultState.FAILED, output=None)], dead=["a0"])


def late_schedule(publisher: Publisher, store: Store, redis: Redis) -> None:
    store.schedules.add(Schedule(name="nightly", submission="{}", host="gone", next_at=store.now() - 90))


def forbidden_schedule(publisher: Publisher, store: Store, redis: Redis) -> None:
    """Nobody has named its folder, and its time is to come."""
    store.schedules.add(Schedule(name="nightly", submission=OF_DATA, next_at=store.now() + 900))


def failed_schedule(publisher: Publisher, store: Store, redis: Redis) -> None:
    store.schedules.add(Schedule(name="nightly", submission="{}", next_at=1.0))
    run = store.schedules.take("here", "runner", lambda _, now: Planned(now, None))
    assert run is not None
    store.schedules.end(run, "failed", error="absent.txt does not exist")


def lost_results(publisher: Publisher, store: Store, redis: Redis) -> None:
    """The envelope is gone, and its job still lacks the result."""
    wait_for_long(store)
    with store._database.write(Weight.NOTE) as connection:  # nothing but a fault does this
        connection.exec_driver_sql("DELETE FROM payloads")
        connection.exec_driver_sql("DELETE FROM envelopes")


@pytest.mark.parametrize("end", [f"{PRIORITY_SEPARATOR}5", f"{PRIORITY_SEPARATOR}9", ":5"])
def test_celerys_priorities_are_read(publisher: Publisher, broker_url: str, end: str) -> None:
    """A worker takes messages of all of them, after both separators: such a list is no fault."""
    announce(publisher)
    with Redis.from_url(broker_url) as redis:
        redis.lpush(f"argosy.text{end}", b"{}")
    assert problems() == []


@pytest.mark.parametrize(
    ("plant", "about", "found"),
    [
        (idle_worker, "work of text, interactive", "1 envelopes wait, the oldest for 0:10:0"),
        (stopped_lane, "work of text, interactive", "take less urgent work only"),
        (unserved_model, "work of vision, interactive", "no worker serves this model"),
        (unread_queue, "queue argosy.vision", "1 messages wait, and no worker reads them"),
        (unread_lane, "queue argosy.text/7", "2 messages wait, and no worker reads them"),
        (unread_priority, "queue argosy.text", "1 messages wait (priority 11), and no worker reads them"),
        (wrong_clock, "clock", "the clock of worker w1 is 0:03:00 ahead of the store's"),
        (dead_letter, "dead letters", "1 envelopes were given up"),
        (late_schedule, "schedule nightly", "its run is 0:01:30 late, and nobody has begun it"),
        (forbidden_schedule, "schedule nightly", "no living node may run it"),
        (failed_schedule, "schedule nightly", "its last run failed: absent.txt does not exist"),
        (lost_results, "jobs", "1 lack results that no envelope owes, for instance a"),
    ],
)
def test_a_planted_fault_is_found(
    publisher: Publisher,
    store: Store,
    broker_url: str,
    plant: Callable[[Publisher, Store, Redis], None],
    about: str,
    found: str,
) -> None:
    """By name, with a remedy, and nothing else is said."""
    announce(publisher)
    with Redis.from_url(broker_url) as redis:
        plant(publisher, store, redis)
    (problem,) = problems()
    assert problem.about == about
    assert found in problem.found
    assert problem.remedy


@pytest.mark.parametrize(
    ("places", "on", "host", "ok"),
    [
        (["/data"], "here", None, True),
        (["/srv", "/data/logs"], "here", "here", True),
        (["/data"], "elsewhere", "here", False),
        (["/data-too"], "here", None, False),
        (["s3://logs/"], "here", None, False),
    ],
)
def test_a_schedule_is_run_by_a_node_of_its_machine_that_may_read_it(
    publisher: Publisher, store: Store, places: list[str], on: str, host: str | None, ok: bool
) -> None:
    models = {"text": ModelState(revision="r")}
    state = NodeState(name="w1", device="cpu", models=models, lanes=[0, 1], at=time.time(), host=on, schedules=places)
    presence.tell(publisher, state)
    store.schedules.add(Schedule(name="nightly", submission=OF_DATA, host=host, next_at=store.now() + 900))
    found = problems()
    assert (found == []) is ok
    assert (unscheduled(OF_DATA, host) == "") is ok, "`argosy schedule add` says the same"
    assert ok or "`[worker] schedules = [" in found[0].remedy


def test_a_full_redis_is_no_wrong_clock(publisher: Publisher, broker_url: str) -> None:
    """Workers cannot renew the time of their announcements there, but their life."""
    with Redis.from_url(broker_url) as redis:
        announce(publisher, ahead_s=-60)
        (problem,) = problems()
        assert problem.about == "clock"
        redis.config_set("maxmemory", 1)
        try:
            assert problems() == []
        finally:
            redis.config_set("maxmemory", 0)


def test_an_error_in_one_check_hides_no_other(publisher: Publisher, store: Store, broker_url: str) -> None:
    """Another program may have made the key of the nodes' names."""
    announce(publisher)
    with Redis.from_url(broker_url) as redis:
        dead_letter(publisher, store, redis)
        redis.delete(NODES)
        redis.set(NODES, b"no set")
        found = {problem.about: problem.found for problem in problems()}
    assert "WRONGTYPE" in found["worker"]
    assert "1 envelopes were given up" in found["dead letters"]


@pytest.mark.parametrize(("keys", "ok"), [("~argosy*", False), ("~argosy* ~_kombu* ~unacked*", True)])
def test_a_user_of_redis_without_all_rights_is_told(
    broker_url: str, monkeypatch: pytest.MonkeyPatch, keys: str, ok: bool
) -> None:
    """Those of docs/operations/connections.md are enough; without the keys of kombu, workers wait."""
    with Redis.from_url(broker_url) as redis:
        redis.execute_command("ACL", "SETUSER", "some", *f"reset on >pw {keys} &* +@all -@dangerous +info".split())
    monkeypatch.setenv("ARGOSY_BROKER_URL", broker_url.replace("redis://", "redis://some:pw@"))
    found = {finding.about: finding for finding in doctor.examine(None)}
    assert found["broker"].ok
    assert found["messages"].ok is ok
    assert ok or "No permissions to access a key; give its user all commands" in found["messages"].found


def test_it_looks_at_the_running_fleet_not_at_the_built_in_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broker_url: str, store_url: str
) -> None:
    """`argosy up` announces its fleet.toml, as clients find it."""
    file = tmp_path / "fleet.toml"
    file.write_text('[worker]\nmodels = ["text"]\n', encoding="utf-8")
    for name in ("ARGOSY_BROKER_URL", "ARGOSY_STORE_URL"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("ARGOSY_HOME", str(tmp_path))
    fleet = f'{{"pid": 1, "broker_url": "{broker_url}", "store_url": "{store_url}", "config": "{file}"}}'
    (tmp_path / "fleet.json").write_text(fleet, encoding="utf-8")
    (found,) = [finding for finding in doctor.examine(None) if finding.about == "settings"]
    assert found.found.startswith("models text;")


def test_broken_settings_hide_nothing_of_the_fleet(tmp_path: Path) -> None:
    """The fleet may run with a file that was broken later."""
    file = tmp_path / "fleet.toml"
    file.write_text("[worker]\nmodels = 1\n", encoding="utf-8")
    found = {finding.about: finding.ok for finding in doctor.examine(file)}
    assert {name: found[name] for name in ("settings", "broker", "worker")} == {
        "settings": False,
        "broker": True,
        "worker": False,
    }
