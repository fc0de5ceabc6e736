"""The flight recorder of a whole fleet: batches rerun, arrivals replayed, figures shown.

Half of its job's results are rows, and the other half are in chunks: every reader of a job sees each of them.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest
from click.testing import CliRunner

from producers import Client
from producers.commands.main import main
from results_store.records import Batch
from results_store.store import Store
from tests.end_to_end.conftest import SCRIPTED
from tests.end_to_end.gateway_server import serving
from tests.end_to_end.processes import fleet_in
from workers import settings
from workers.batching.planning.policy import Budget, Policy
from workers.batching.planning.what_if import recordings
from workers.commands.rerun import CannotRerun, rerun
from workers.device.devices import cpu
from workers.fleet.local import LocalFleet

TASKS = ("echo", "place", "say", "shout")
IN_CHUNKS = """
[models.scripted.tasks.say]
kind = "text-classification"
[models.scripted.tasks.place]
kind = "feature-extraction"
"""


@pytest.fixture(scope="module")
def shared_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    """A fleet whose model has also labels with scores, and vectors."""
    with fleet_in(tmp_path_factory.mktemp("shared"), SCRIPTED + IN_CHUNKS) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def ran(shared_fleet: LocalFleet) -> list[Batch]:
    """Batches of a job of 300 items, some alike, and of a few interactive ones; the oldest first, with their traces."""
    texts = [f"text {n % 250} " + "x" * (n % 40) for n in range(300)]
    with Client(shared_fleet.broker_url, shared_fleet.store_url) as client:
        job = client.submit_many(TASKS, texts, priority="bulk")
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
    assert again.differences == dict.fromkeys(TASKS, 0.0)


def test_every_reader_sees_rows_and_chunks(ran: list[Batch], shared_fleet: LocalFleet) -> None:
    """The client, the gateway's lines, pages and items, a file, and SQL."""
    with Client(shared_fleet.broker_url, shared_fleet.store_url) as client:
        (status,) = [status for status in client.jobs() if status.items == 300]
        job = client.job(status.id)
        rows = list(job.results())
        assert sorted((row.seq, row.task) for row in job.as_completed()) == [(row.seq, row.task) for row in rows]
    keys = [(seq, task) for seq in range(300) for task in TASKS]
    assert [(row.seq, row.task) for row in rows] == keys
    assert (status.succeeded, status.total) == (1200, 1200)
    with (
        serving(shared_fleet.broker_url, shared_fleet.store_url) as served,
        served.client(served.key("operators", operator=True)) as operator,
    ):
        lines = operator.get(f"/api/jobs/{job.id}/results").text.splitlines()
        assert [(row["seq"], row["task"]) for row in map(json.loads, lines)] == keys
        page = operator.get(f"/api/jobs/{job.id}/page", params={"limit": 7, "after_seq": 150, "after_task": "say"})
        assert [(row["seq"], row["task"]) for row in page.json()["results"]] == keys[603:610]
        items = operator.get(f"/api/jobs/{job.id}/items", params={"limit": 20, "after_seq": 69}).json()["items"]
        assert [item["seq"] for item in items] == list(range(70, 90))
        assert {len(item["results"]) for item in items} == {4}
    told = CliRunner().invoke(main, ["results", job.id, "--format", "jsonl"])
    assert [json.loads(line)["seq"] for line in told.output.splitlines()] == [seq for seq, _ in keys]
    with closing(sqlite3.connect(shared_fleet.store_url.removeprefix("sqlite:///"))) as connection:
        counts = [
            connection.execute(f"SELECT count(*) FROM {table} WHERE job = ?", [job.id]).fetchone()[0]
            for table in ("results", "result_chunks", "item_results")
        ]
    assert counts == [600, 10, 1200]


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
