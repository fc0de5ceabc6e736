"""Admission against a real broker and a real store: what is refused at the door, for how long, and who is let
through.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from producers.client.client import Client
from producers.client.sending import admission
from producers.wire.connection import Connection
from producers.wire.errors import ConfigurationError, InvalidInput, Overloaded, RateLimited
from producers.wire.messages import Priority
from results_store.records import QueuedWork, Tenant
from results_store.sql.flight import FlightRecorder
from results_store.store import Store
from tests.integration.rows import batch
from tests.integration.stand_in import StandIn

FLEET = "[admission]\nmax_queued_s = { standard = 5, bulk = 50 }\n"


@pytest.fixture
def fleet_toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "fleet.toml"
    path.write_text(FLEET, encoding="utf-8")
    monkeypatch.setenv("ARGOSY_FLEET", str(path))
    return path


@pytest.fixture
def always_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each submission is judged by what the store holds now."""
    monkeypatch.setattr(admission, "LOOK_EVERY_S", 0.0)


@pytest.fixture
def client(broker_url: str, store: Store, store_url: str) -> Iterator[Client]:
    with Client(broker_url, store_url) as client:
        yield client


def limit(store: Store, name: str, **limits: float) -> None:
    store.tenants.configure(Tenant(name=name, lane=0, **limits))  # type: ignore[arg-type]


@pytest.mark.parametrize("durable", [True, False])
def test_a_tenant_over_its_rate_is_told_when_to_come_again(store: Store, client: Client, durable: bool) -> None:
    """One item in a thousand seconds: the second is refused for about as long, and nobody else is."""
    limit(store, "slow", max_items_per_s=0.001)
    client.submit("topic", "a", tenant="slow", durable=durable)
    with pytest.raises(RateLimited, match=r"0\.001 items a second") as refused:
        client.submit("topic", "b", tenant="slow", durable=durable)
    assert refused.value.retry_after_s == pytest.approx(999, abs=90)
    client.submit("topic", "c", tenant="other", durable=durable)
    client.submit("topic", "d", durable=durable)


def test_all_clients_of_a_tenant_share_its_rate(store: Store, client: Client, broker_url: str, store_url: str) -> None:
    """A second process is no way round it."""
    limit(store, "slow", max_items_per_s=0.001)
    client.submit("topic", "a", tenant="slow")
    with Client(broker_url, store_url, tenant="slow") as second, pytest.raises(RateLimited):
        second.submit("topic", "b")


def test_a_submission_of_many_keeps_to_the_rate_by_waiting(store: Store, client: Client) -> None:
    """Patiently it goes through in portions of a second's worth; impatiently it stops, and says what it keeps."""
    limit(store, "steady", max_items_per_s=50)
    assert client.submit_many("topic", ["a"] * 120, tenant="steady").progress().items == 120
    with pytest.raises(RateLimited) as refused:
        client.submit_many("topic", ["a"] * 1_000, tenant="steady", patience_s=0)
    assert refused.value.job is None or store.job(refused.value.job).items < 1_000


@pytest.mark.usefixtures("always_looking")
def test_a_tenant_has_no_more_in_flight_than_it_may(store: Store, client: Client, broker_url: str) -> None:
    """What has its results makes room for more."""
    limit(store, "small", max_in_flight=8)
    client.submit_many("topic", ["a"] * 8, tenant="small", patience_s=0)
    assert store.tenants.in_flight("small") == 8
    with pytest.raises(RateLimited, match="may have 8"):
        client.submit("topic", "b", tenant="small")
    client.submit_many("topic", ["a"] * 20)
    stand_in = StandIn(broker_url, store)
    for envelope in stand_in.waiting():
        stand_in.commit(envelope)
    assert store.tenants.in_flight("small") == 0
    client.submit("topic", "c", tenant="small")


def test_a_tenants_limits_hold_for_its_first_items_in_a_client(
    store: Store, client: Client, broker_url: str, store_url: str
) -> None:
    """The client has just looked at the store, for another tenant: it looks again for a tenant that is new here."""
    limit(store, "small", max_in_flight=8)
    client.submit_many("topic", ["a"] * 8, tenant="small", patience_s=0)
    with Client(broker_url, store_url) as second:
        second.submit_many("topic", ["b"], tenant="other", patience_s=0)
        with pytest.raises(RateLimited, match="may have 8"):
            second.submit_many("topic", ["c"], tenant="small", patience_s=0)


@pytest.mark.usefixtures("fleet_toml", "always_looking")
def test_too_many_seconds_of_work_are_refused(store: Store, client: Client) -> None:
    """Ten items of a second each, five allowed: standard work is refused for as long, more urgent and other work is
    not.
    """
    store.commit([], batches=[batch("b0", forward_s=20.0, items=20)])
    client.submit_many("topic", ["a"] * 10, priority="standard")
    with pytest.raises(Overloaded, match="max_queued_s") as refused:
        client.submit("topic", "b")
    assert refused.value.retry_after_s == pytest.approx(5)
    client.submit("topic", "c", priority="interactive")
    client.submit("topic", "d", priority="bulk")
    client.submit("image-classification", b"\x89PNG\r\n\x1a\n")


@pytest.mark.usefixtures("fleet_toml", "always_looking")
def test_another_tenants_work_shuts_nobody_out(store: Store, client: Client) -> None:
    """Tenants take turns, so that one who has nothing queued does not wait behind who has much."""
    store.commit([], batches=[batch("b0", forward_s=20.0, items=20)])
    client.submit_many("topic", ["a"] * 10, priority="standard", tenant="many")
    client.submit("topic", "b", tenant="few")
    with pytest.raises(Overloaded):
        client.submit("topic", "c", tenant="many")


@pytest.mark.usefixtures("fleet_toml")
def test_an_interactive_item_does_not_wait_for_a_look(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the store should take its time over the queue, the item goes out by what was known before."""
    looking, seen = threading.Event(), threading.Event()

    def slow(_: FlightRecorder) -> list[QueuedWork]:
        seen.set()
        looking.wait(60)
        return []

    monkeypatch.setattr(FlightRecorder, "queued_work", slow)
    client.submit("topic", "a", priority="interactive")
    assert seen.wait(60)
    client.submit("topic", "b", priority="interactive", durable=False)
    looking.set()


def test_the_wait_that_is_seen_ahead() -> None:
    """More urgent work counts whoever's it is; of the own priority, one's own times the turns, and at most
    everything.
    """
    tenants = {
        name: Tenant(name=name, lane=lane, weight=weight) for name, lane, weight in [("a", 1, 1.0), ("b", 2, 3.0)]
    }
    work = [
        QueuedWork(model="text", priority=priority, items=items, seconds_per_item=0.1, lane=lane)
        for priority, lane, items in [(0, 2, 10), (3, 1, 20), (3, 2, 1_000), (9, 1, 5_000)]
    ]
    look = admission.QueueSnapshot(tenants=tenants, work=work)
    assert look.queued_s(["text"], Priority.INTERACTIVE, tenants["a"]) == pytest.approx(0.0)
    assert look.queued_s(["text"], Priority.STANDARD, tenants["a"]) == pytest.approx(1 + 2 * (1 + 3) / 1)
    assert look.queued_s(["text"], Priority.STANDARD, tenants["b"]) == pytest.approx(1 + 102)
    assert look.queued_s(["vision"], Priority.STANDARD, tenants["b"]) == 0.0


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[admission]\nmax_queued_s = { bulk = 0 }", "max_queued_s.bulk"),
        ("[admission]\nmax_queued_s = { sometime = 5 }", "sometime"),
        ("[admission]\nmax_queue = 5", "max_queue"),
    ],
)
def test_a_wrong_setting_is_named(fleet_toml: Path, text: str, named: str) -> None:
    """With its file."""
    fleet_toml.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=named) as error:
        _ = Connection().admission
    assert str(fleet_toml) in str(error.value)


@pytest.mark.parametrize("name", ["a b", "a/b", "x" * 65, "ä", "a\n"])
def test_what_is_no_tenants_name(broker_url: str, sqlite_url: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It becomes part of keys and of what operators read: letters, digits and a few signs."""
    with pytest.raises(InvalidInput, match="tenant"):
        Client(broker_url, sqlite_url, tenant=name)
    monkeypatch.setenv("ARGOSY_TENANT", name)
    with pytest.raises(InvalidInput, match="ARGOSY_TENANT"):
        Client(broker_url, sqlite_url)


def test_the_tenant_of_a_call_goes_before_the_clients_and_that_before_the_environments(
    broker_url: str, store: Store, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the job, on the envelope, and in the lane that it waits in."""
    monkeypatch.setenv("ARGOSY_TENANT", "environment")
    with Client(broker_url, store_url) as client:
        assert client.submit_many("topic", ["a"]).progress().tenant == "environment"
    with Client(broker_url, store_url, tenant="client") as client:
        assert client.submit_many("topic", ["b"]).progress().tenant == "client"
        handle = client.submit("topic", "c", tenant="call")
        assert store.job(handle.job).tenant == "call"
        assert client.submit_many("topic", ["d"], tenant="").progress().tenant == ""
    waiting = {envelope.items[0].input: envelope.tenant for envelope in StandIn(broker_url, store).waiting()}
    assert waiting == {"a": "environment", "b": "client", "c": "call", "d": ""}
    assert [tenant.lane for tenant in store.tenants.every()] == [0, 3, 2, 1]


def test_an_idempotency_key_is_its_tenants_own(client: Client, store: Store) -> None:
    """Nobody goes on with another's job, or sees that there is one, by hitting upon its key."""
    mine = client.submit_many("topic", ["a"], idempotency_key="nightly", tenant="mine")
    other = client.submit_many("topic", ["b"], idempotency_key="nightly", tenant="other")
    assert mine.id != other.id
    assert client.submit_many("topic", ["a"], idempotency_key="nightly", tenant="mine").id == mine.id
    assert store.job(mine.id).items == store.job(other.id).items == 1
