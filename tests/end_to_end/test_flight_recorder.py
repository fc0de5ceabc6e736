"""The flight recorder of a whole fleet: batches rerun, arrivals replayed, figures shown."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from producers import Client
from producers.commands.main import main
from results_store.records import Batch
from results_store.store import Store
from workers import settings
from workers.batching.planning.policy import Budget, Policy
from workers.batching.planning.what_if import recordings
from workers.commands.rerun import CannotRerun, rerun
from workers.device.devices import cpu
from workers.fleet.local import LocalFleet


@pytest.fixture(scope="module")
def ran(shared_fleet: LocalFleet) -> list[Batch]:
    """Batches of a job of 300 items, some alike, and of a few interactive ones; the oldest first, with their traces."""
    texts = [f"text {n % 250} " + "x" * (n % 40) for n in range(300)]
    with Client(shared_fleet.broker_url, shared_fleet.store_url) as client:
        job = client.submit_many(("echo", "shout"), texts, priority="bulk")
        for n in range(5):
            client.submit("echo", f"sleep 0.001 {n}", priority="interactive").result(timeout_s=60)
        job.wait(timeout_s=60)
    with Store(shared_fleet.store_url) as store:
        return store.flight.recent(limit=1000, traces=True)[::-1]


def test_every_item_is_in_one_batch_with_its_arrival(ran: list[Batch]) -> None:
    """Nothing that ran is missing, and each row says who wanted it."""
    assert sum(batch.items for batch in ran) == 305
    for batch in ran:
        assert batch.trace
        items = batch.trace["items"]
        assert len(items) == batch.items
        assert {row for _, _, row, *_ in items} == set(range(batch.rows))
        assert all(waited_ms >= 0 for *_, waited_ms in items)
        assert batch.idle_s >= 0
    assert any(batch.predicted_s for batch in ran)


def test_a_batch_runs_again_in_the_same_company(ran: list[Batch], shared_fleet: LocalFleet) -> None:
    """The same rows, and nothing else comes out."""
    batch = max(ran, key=lambda batch: batch.items)
    with Store(shared_fleet.store_url) as store:
        again = rerun(store, settings.load(), cpu(), batch.id)
    assert (again.rows, again.padded_tokens) == (batch.rows, batch.padded_tokens)
    assert again.compared == batch.heads
    assert again.differences == {"echo": 0.0, "shout": 0.0}


def test_a_batch_whose_inputs_are_gone_cannot_run_again(ran: list[Batch], shared_fleet: LocalFleet) -> None:
    """It says so, before a device is started."""
    with Client(shared_fleet.broker_url, shared_fleet.store_url) as client:
        client.submit("echo", "passing by", durable=False).result(timeout_s=60)
    with Store(shared_fleet.store_url) as store, pytest.raises(CannotRerun, match="not kept"):
        rerun(store, settings.load(), cpu(), store.flight.recent(limit=1)[0].id)


def test_recorded_arrivals_are_replayed_against_other_settings(ran: list[Batch]) -> None:
    """Every item arrives again and is computed; smaller batches are smaller."""
    (recording,) = recordings(ran)
    assert len(recording.trace) == 305
    same = recording.forecast(Policy(budgets={"scripted": Budget(512, 32)}))
    single = recording.forecast(Policy(budgets={"scripted": Budget(512, 1)}))
    assert single.rows == 1.0
    assert same.rows > 1.0
    assert set(same.latency_s) == set(recording.recorded().latency_s) == {0, 9}


def test_the_commands_show_it(ran: list[Batch]) -> None:
    """As an operator would type them."""
    shown = CliRunner().invoke(main, ["what-if", "--set", "batch_rows=4,window=64"])
    assert shown.exit_code == 0, shown.output
    for word in ("as recorded", "the same, simulated", "its error", "batch_rows=4"):
        assert word in shown.output
    refused = CliRunner().invoke(main, ["what-if", "--set", "speed=9"])
    assert refused.exit_code == 2
    again = CliRunner().invoke(main, ["rerun", ran[0].id])
    assert again.exit_code == 0, again.output
    assert ran[0].id in again.output
    assert json.loads(CliRunner().invoke(main, ["batches", "--json"]).output)["items"] >= 305
