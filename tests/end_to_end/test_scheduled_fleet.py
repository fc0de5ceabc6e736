"""Two real nodes run what is scheduled: each run once, and the second one's rows are known from the first."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from producers.commands.main import main
from results_store.records import JobStatus
from results_store.store import Store
from tests.end_to_end.conftest import SCRIPTED
from tests.end_to_end.processes import fleet_in, until
from workers.fleet.local import LocalFleet

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[LocalFleet]:
    scripted = SCRIPTED.replace("[worker]\n", f'[worker]\nschedules = ["{tmp_path}"]\n')
    with fleet_in(tmp_path, f'{scripted}[result_cache]\ntasks = ["echo"]\n', workers_per_device=2) as fleet:
        yield fleet


def argosy(*arguments: str) -> str:
    done = CliRunner().invoke(main, list(arguments))
    assert done.exit_code == 0, done.output
    return done.output


def ran(store: Store, name: str) -> JobStatus:
    """Return the finished job of a schedule's run."""
    run = until(lambda: [one for one in store.schedules.runs(name) if one.state == "done"])[0]
    job = store.job(run.job or "")
    return until(lambda: (found := store.job(job.id)).finished and found)


def test_what_is_scheduled_is_submitted_by_one_of_two_nodes(fleet: LocalFleet, tmp_path: Path) -> None:
    source = tmp_path / "rows.txt"
    source.write_text("".join(f"row {number}\n" for number in range(300)))
    with Store(fleet.store_url) as store:
        jobs = []
        for name in ("first", "second"):
            soon = (datetime.now(UTC) + timedelta(seconds=2)).isoformat(timespec="seconds")
            argosy("schedule", "add", name, str(source), "-t", "echo", "--at", soon, "--tenant", "acme")
            jobs.append(ran(store, name))
        assert [(job.items, job.succeeded, job.tenant) for job in jobs] == [(300, 300, "acme")] * 2
        assert len(store.jobs()) == 2
        known = [row.batch is None for row in store.results(jobs[1].id)]
        assert known == [True] * 300, "the second run computed nothing"
        assert all(row.batch for row in store.results(jobs[0].id))
    assert "first" in argosy("schedule", "list")
