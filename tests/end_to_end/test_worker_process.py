"""What keeps a fleet's processes quick, and what only a benchmark would notice if it were lost."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import pytest

from producers import Client
from tests.end_to_end.conftest import SCRIPTED
from tests.end_to_end.processes import device_process, fleet_in
from workers.fleet.local import LocalFleet


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    """A fleet whose scripted model also tells how many objects of its worker no collection looks through."""
    telling = SCRIPTED + '[models.scripted.tasks.frozen]\nkind = "text-classification"\n'
    with fleet_in(tmp_path_factory.mktemp("quick"), telling) as fleet:
        yield fleet


def test_what_a_worker_starts_with_is_never_collected(client: Client) -> None:
    """Celery, SQLAlchemy and the models' preparation are some 100,000 objects: looking through them stops every
    thread.
    """
    assert client.submit("frozen", "how many?").result(timeout_s=60)["objects"] > 50_000


def test_the_device_process_leaves_its_cpu_to_whoever_wakes_up(fleet: LocalFleet) -> None:
    """Or each message would wait until a matrix product has had its time slice."""
    worker = fleet.workers[0].process
    assert worker is not None
    mine, its = psutil.Process(worker.pid).nice(), device_process(worker.pid).nice()
    assert its == min(mine + 10, 19), "19 is the most that there is"
