"""Ten thousand rows through a real fleet, submitted again: the tenant that had them computed gets them from the store."""

from __future__ import annotations

from pathlib import Path

import pytest

from producers import Client
from results_store.export.text_export import stream
from results_store.store import Store
from tests.end_to_end.conftest import SCRIPTED
from tests.end_to_end.processes import fleet_in

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

ROWS = 10_000


def test_a_second_submission_computes_none_and_another_tenants_computes_all(tmp_path: Path) -> None:
    """By two workers; also of a file's rows that come in another order."""
    texts = [f"row {number}" for number in range(ROWS)]
    with (
        fleet_in(tmp_path, f'{SCRIPTED}[result_cache]\ntasks = ["echo"]\n', workers_per_device=2) as fleet,
        Client() as client,
        Store(fleet.store_url) as store,
    ):
        outputs = []
        for tenant, rows, computed in (("acme", texts, ROWS), ("acme", texts[::-1], 0), ("other", texts, ROWS)):
            before = sum(batch.items for batch in store.flight.recent(limit=10 * ROWS))
            job = client.submit_many("echo", rows, tenant=tenant)
            status = job.wait(timeout_s=300)
            assert (status.succeeded, status.total) == (ROWS, ROWS)
            found = {rows[row.seq]: row for row in stream(store, job.id)}
            assert sum(row.batch is not None for row in found.values()) == computed
            ran = sum(batch.items for batch in store.flight.recent(limit=10 * ROWS)) - before
            assert ran >= computed if computed else ran == 0, "an envelope may run twice, and is stored once"
            outputs.append({text: row.output for text, row in found.items()})
        assert outputs[0] == outputs[1] == outputs[2]
        assert len(outputs[0]) == ROWS
