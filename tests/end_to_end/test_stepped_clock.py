"""The clock of the store's machine is set while two nodes wait for a run: the run is submitted once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from producers.commands.scheduling.schedule_times import planned
from results_store.sql.waiting.schedules import Schedule
from results_store.store import Store
from tests.end_to_end.processes import until
from tests.integration.test_schedules import submission
from workers.node.scheduling.scheduled_submissions import ScheduledSubmissions, environment_of

pytestmark = pytest.mark.long

#: PostgreSQL's own clock with the seconds of a table. In the search path it comes before the one in `pg_catalog`.
CLOCK = """
CREATE TABLE public.clock_steps AS SELECT 0::float8 AS seconds;
CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS
    'SELECT pg_catalog.clock_timestamp() + make_interval(secs => seconds) FROM public.clock_steps';
"""


class SteppedClock:
    """The clock of a PostgreSQL database. A session sees each step at once."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        connection.execute(CLOCK)
        name = connection.info.dbname
        connection.execute(f"ALTER DATABASE {name} SET search_path = public, pg_catalog")

    def set(self, at: float) -> None:
        """Set the clock to a Unix time, in one step."""
        real = "extract(epoch FROM pg_catalog.clock_timestamp())"
        self._connection.execute(f"UPDATE public.clock_steps SET seconds = %s::float8 - {real}", [at])


@pytest.fixture
def clock(postgresql_url: str) -> Iterator[SteppedClock]:
    with closing(psycopg.connect(postgresql_url, autocommit=True)) as connection:
        yield SteppedClock(connection)


def test_two_nodes_and_a_clock_that_is_set_over_the_minute_submit_one_job(
    clock: SteppedClock, postgresql_url: str, broker_url: str, tmp_path: Path
) -> None:
    """Forward, back and forward again, with a process of each node; a later minute has a run of its own."""
    source = tmp_path / "rows.txt"
    source.write_text("".join(f"row {number}\n" for number in range(100)))
    with closing(Store(postgresql_url)) as new:
        new.migrate()
    with Store(postgresql_url) as store:
        minute = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) + timedelta(hours=2)

        def at(after_s: float) -> None:
            """Set the store's clock to a time after the minute."""
            clock.set(minute.timestamp() + after_s)

        at(-2.0)
        assert -3.0 < store.now() - minute.timestamp() < 60.0, "the clock of the store is the stepped one"
        hourly = submission(source).replace("* * * * *", "0 * * * *")
        assert store.schedules.add(Schedule(name="s", submission=hourly, next_at=minute.timestamp()))
        environment = environment_of(broker_url, postgresql_url)
        nodes = [ScheduledSubmissions(store, environment, [str(tmp_path)]) for _ in range(2)]
        try:
            at(-600.0)
            ended(nodes)
            assert store.schedules.runs("s") == []
            at(1.0)
            for node in nodes:
                node.look()
            until(lambda: [run.state for run in store.schedules.runs("s")] == ["done"])
            for after_s in (-600.0, 1.0):
                at(after_s)
                ended(nodes)
            assert [(run.planned_at, run.state) for run in store.schedules.runs("s", 10)] == [
                (minute.timestamp(), "done")
            ]
            assert [job.items for job in store.jobs()] == [100]
            at(3601.0)
            until(lambda: [node.look() for node in nodes] and len(store.schedules.runs("s", 10)) == 2)
            until(lambda: store.schedules.runs("s")[0].state == "done")
            ended(nodes)
        finally:
            for node in nodes:
                node.stop()
        assert [job.items for job in store.jobs()] == [100, 100]
        assert planned(store.schedules.every()[0], store.now()).due_at is None


def ended(nodes: list[ScheduledSubmissions]) -> None:
    """Let each node look until nothing is due for it and its process has ended."""
    for node in nodes:
        node.look()
        while node._process is not None:
            assert node._process.wait(60) == 0
            node.look()
