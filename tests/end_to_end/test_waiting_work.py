"""Two real workers, one of which is killed: what waits for a host or a pause holds nothing up, and none of it is lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from producers import Client
from results_store.store import Store
from tests.end_to_end.conftest import SCRIPTED
from tests.end_to_end.processes import fleet_in, until
from tests.integration.test_retries import Host, host, picture
from workers.fleet.local import LocalFleet

__all__ = ["host"]

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

TIMEOUT_S = 120

#: The minute for which an input server is away.
AWAY_S = 60.0

#: The slots of a worker are fewer than the envelopes that wait.
FILES = """
[worker]
models = ["scripted", "file"]
concurrency = 4
grace_s = 2.0
lease_s = 3.0
reconcile_every_s = 0.3
publish_overdue_s = 2.0
[retry]
first_wait_s = 0.2
longest_wait_s = 1.0
[limits]
allow_private_addresses = true
allowed_hosts = ["http://{host}"]
[models.file]
class = "tests.file_model:FileModel"
source = {{ path = "tests" }}
[models.file.tasks.sum]
kind = "image-classification"
"""


def fleet_text(host: Host) -> str:
    scripted = SCRIPTED[SCRIPTED.index("[models.scripted]") :]
    return FILES.format(host=host.name).replace('"tests"', f'"{Path(__file__).parents[1]}"') + scripted


@pytest.fixture
def fleet(tmp_path: Path, host: Host) -> Iterator[LocalFleet]:
    """A fleet whose workers are started again when they die."""
    with fleet_in(tmp_path, fleet_text(host), workers_per_device=2) as fleet:
        for worker in fleet.workers:
            worker.restarts.longest_wait_s = 0.1
        watching = threading.Thread(target=fleet.watch)
        watching.start()
        yield fleet
        fleet.request_stop()
        watching.join()


def test_what_waits_outlives_a_worker_and_holds_up_nobody(fleet: LocalFleet, host: Host) -> None:
    """More of it than there are slots; others are answered meanwhile; in the end each item has its one result."""
    with Client() as client, Store(fleet.store_url) as store:
        away = client.submit_many("sum", [host.url(f"{number}.png") for number in range(200)], priority="bulk")
        beside = client.submit_many("sum", [picture(1), host.url("x.png")], priority="bulk")
        store.pauses.pause("task", "shout")
        paused = client.submit_many(["echo", "shout"], [f"text {number}" for number in range(500)], priority="bulk")

        until(lambda: beside.progress().succeeded == 1)
        until(lambda: paused.progress().succeeded == 500)
        assert client.submit("echo", "now").result(timeout_s=TIMEOUT_S), "slots are free"
        killed = fleet.workers[0].process
        assert killed is not None
        killed.kill()
        assert client.submit("echo", "again").result(timeout_s=TIMEOUT_S)
        assert (away.progress().done, paused.progress().done) == (0, 500), "nothing of it has started"

        host.come()
        store.pauses.resume("task", "shout")
        for job, results in ((away, 200), (beside, 2), (paused, 1000)):
            status = job.wait(timeout_s=TIMEOUT_S)
            assert (status.succeeded, status.total) == (results, results)
        assert len({(row.seq, row.task) for row in paused.results()}) == 1000


def test_an_input_server_that_is_away_for_a_minute_fails_nobody(tmp_path: Path, host: Host) -> None:
    """With the settings that everybody has; whoever waits for an answer of such an input has it, too."""
    settings = fleet_text(host)
    settings = settings.replace("[retry]\nfirst_wait_s = 0.2\nlongest_wait_s = 1.0\n", "")
    assert "[retry]" not in settings
    comes = threading.Timer(AWAY_S, host.come)
    with fleet_in(tmp_path, settings, workers_per_device=2), Client() as client:
        inputs = [picture(1), *(host.url(f"{number}.png") for number in range(300))]
        many = client.submit_many("sum", inputs, priority="bulk")
        lone = client.submit("sum", host.url("lone.png"))
        until(lambda: many.progress().succeeded == 1)
        assert (many.progress().done, host.asked) == (1, [])
        comes.start()
        assert lone.result(timeout_s=200)
        status = many.wait(timeout_s=200)
        assert (status.succeeded, status.failed, status.total) == (301, 0, 301)
    comes.join()
    assert {*host.asked} == {*(f"/{number}.png" for number in range(300)), "/lone.png"}
