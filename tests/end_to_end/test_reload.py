"""A running fleet's model is changed: every item is answered once, wholly by one version, and after the change by
the new one.
"""

from __future__ import annotations

import re
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
from click.testing import CliRunner

from producers import Client, Job
from producers.commands.main import main
from producers.wire.publisher import Publisher
from results_store.records import Result
from results_store.store import Store
from tests.end_to_end.processes import device_process, fleet_in, until
from tests.versioned_model import write_version
from workers import settings
from workers.commands import reload as redeclaring
from workers.commands.reload import NotTaken
from workers.fleet.local import LocalFleet
from workers.node import presence

T = TypeVar("T")

FLEET = """
[worker]
models = ["versioned", "reader"]
lease_s = 3.0
reconcile_every_s = 0.3
publish_overdue_s = 2.0
[models.versioned]
class = "tests.versioned_model:VersionedModel"
source = {{ path = "{folder}" }}
batch_cost = 512
batch_rows = 32
[models.versioned.tasks.echo]
kind = "text-classification"
[models.reader]
class = "tests.versioned_model:ReadingModel"
source = {{ path = "{reader}" }}
uses = {{ weights = "versioned" }}
batch_cost = 512
[models.reader.tasks.read]
kind = "text-classification"
"""
SHOUT = '[models.versioned.tasks.shout]\nkind = "text-classification"\n'


def fleet_file(versions: Path, served: Path) -> str:
    return FLEET.format(folder=served, reader=versions / "reader")


@dataclass
class Rig:
    fleet: LocalFleet
    file: Path
    versions: Path
    client: Client
    count: int = 1

    def version(self, **how: object) -> Path:
        """Write the next version."""
        self.count += 1
        return write_version(self.versions / f"v{self.count}", self.count, **how)  # type: ignore[arg-type]

    def reload(self, folder: Path) -> list[str]:
        """Do what the command does; return what it says."""
        file = settings.load(self.file)
        chosen = redeclaring.changed(file, "versioned", revision=None, source=str(folder))
        said: list[str] = []
        publisher = Publisher(self.fleet.broker_url)
        try:
            with Store(self.fleet.store_url) as store:
                own = file.models["versioned"]
                redeclaring.reload(store, publisher, "versioned", chosen, file=own, timeout_s=60, say=said.append)
        finally:
            publisher.close()
        return said

    def argosy(self, *words: str) -> str:
        ran = CliRunner().invoke(main, words, catch_exceptions=False)
        assert ran.exit_code == 0, ran.output
        return ran.output

    def states(self) -> dict[str, presence.ModelState]:
        publisher = Publisher(self.fleet.broker_url)
        try:
            return {node.name: node.models["versioned"] for node in presence.nodes(publisher)}
        finally:
            publisher.close()

    def serving(self) -> int:
        """The version that answers now, also for the model that reads its weights."""
        asked = [self.client.submit(task, "which?", priority="interactive") for task in ("echo", "read")]
        [version] = {handle.result(timeout_s=60)["version"] for handle in asked}
        return int(version)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Two workers that serve version 1 at first."""
    folder = tmp_path_factory.mktemp("reload")
    (folder / "reader").mkdir()
    text = fleet_file(folder, write_version(folder / "v1", 1))
    with (
        fleet_in(folder, text, workers_per_device=2) as fleet,
        Client(fleet.broker_url, fleet.store_url) as client,
    ):
        rig = Rig(fleet, folder / "fleet.toml", folder, client)
        until(lambda: len(rig.states()) == 2)
        yield rig


def texts(count: int) -> list[str]:
    return [f"sleep 0.02 item {n:05}" if n % 20 == 0 else f"item {n:05} of a job" for n in range(count)]


def assert_each_once_by_one_version(job: Job, expected: list[str]) -> list[Result]:
    status = job.wait(timeout_s=90)
    assert (status.succeeded, status.total) == (len(expected),) * 2
    rows: list[Result] = list(job.results())
    assert Counter(row.seq for row in rows) == Counter(range(len(expected)))
    for row in rows:
        assert row.output["crc"] == zlib.crc32(expected[row.seq].encode())
        assert re.search(rf"\bv{row.output['version']}@", row.model_revision)
        assert row.output["finished_by"] == row.output["version"]
    return rows


def under_load(client: Client, task: str, expected: list[str], change: Callable[[], T]) -> tuple[list[Job], T]:
    """Make a change while jobs run, the first before it and the last after it; return the jobs and what the change
    returned.
    """

    def begin() -> Job:
        job = client.submit_many(task, expected)
        until(lambda: job.progress().done)
        return job

    jobs = [begin()]
    with ThreadPoolExecutor() as pool:
        changed = pool.submit(change)
        while not changed.done():
            jobs.append(begin())
    return [*jobs, begin()], changed.result()


def test_a_reload_under_load(rig: Rig) -> None:
    """What waits is computed by the new version, and none by the old one once the command says that all have it."""
    old, folder, expected = rig.serving(), rig.version(), texts(500)
    jobs, (said, taken_at) = under_load(rig.client, "echo", expected, lambda: (rig.reload(folder), time.time()))
    assert len(said) == 2
    assert all(f"v{rig.count}@" in line for line in said)
    rows = [row for job in jobs for row in assert_each_once_by_one_version(job, expected)]
    assert {row.output["version"] for row in rows} == {old, rig.count}
    assert max(row.computed_at for row in rows if row.output["version"] == old) < taken_at
    assert rig.argosy("models", "list").count(f"v{rig.count}@") == 4, "of two models at two workers"
    examined = CliRunner().invoke(main, ["doctor"]).output
    assert examined.count(f"versioned v{rig.count}@") == 2
    assert "served with the settings of the last `argosy models reload`" in examined, "the file still says the old one"


def test_a_model_that_reads_its_weights_changes_with_it(rig: Rig) -> None:
    """Else it would go on with weights that nobody else has any more, until its worker starts again."""
    old, folder, expected = rig.serving(), rig.version(), texts(300)
    jobs, _ = under_load(rig.client, "read", expected, lambda: rig.reload(folder))
    answered = [{row.output["version"] for row in assert_each_once_by_one_version(job, expected)} for job in jobs]
    assert set().union(*answered) == {old, rig.count}
    assert answered[-1] == {rig.count}
    assert rig.serving() == rig.count


@pytest.mark.parametrize(
    ("fails", "why"),
    [
        ("raise", "this version cannot be loaded"),
        ("die", "ended 2 times"),
        ("reader", "model reader: .*its reader cannot be loaded"),
    ],
)
def test_a_version_that_cannot_be_loaded(rig: Rig, fails: str, why: str) -> None:
    """The old one goes on, everywhere, and whoever asked is told why. Meanwhile nobody waits."""
    before = rig.serving()
    expected = texts(600)
    job = rig.client.submit_many("echo", expected)
    with pytest.raises(NotTaken, match=why):
        rig.reload(rig.version(fails=fails))
    rows = assert_each_once_by_one_version(job, expected)
    assert {row.output["version"] for row in rows} == {before}
    until(lambda: all(state.state == "serving" for state in rig.states().values()))
    assert rig.serving() == before


@pytest.mark.long
@pytest.mark.parametrize("victim", ["device", "worker"])
def test_a_process_dies_in_the_midst_of_it(rig: Rig, victim: str) -> None:
    """SIGKILL while the new version is loaded: the change is made nevertheless, also by the worker that comes back."""
    expected = texts(1500)
    job = rig.client.submit_many("echo", expected)
    folder = rig.version()
    (folder / "hold").touch()
    reloading = threading.Thread(target=rig.reload, args=(folder,))
    reloading.start()
    until((folder / "loading").exists)
    service = rig.fleet.workers[0]
    assert service.process is not None
    if victim == "device":
        device_process(service.process.pid).kill()
    else:
        service.process.kill()
        service.process.wait()
        service.start()
    (folder / "hold").unlink()
    assert_each_once_by_one_version(job, expected)
    reloading.join()
    until(lambda: [state.revision[:3] for state in rig.states().values()] == [f"v{rig.count}@"] * 2)
    assert rig.serving() == rig.count


def test_the_table_of_the_file_is_read_again(rig: Rig) -> None:
    """Tasks come and go with it; what is queued for one that is gone fails by its name."""
    served = rig.versions / f"v{rig.serving()}"
    again = ("models", "reload", "versioned", "--config", str(rig.file))
    rig.file.write_text(fleet_file(rig.versions, served) + SHOUT, encoding="utf-8")
    rig.argosy(*again)
    with Client(rig.fleet.broker_url, rig.fleet.store_url) as client:
        assert client.submit("shout", "now known").result(timeout_s=60)["task"] == "shout"
        rig.file.write_text(fleet_file(rig.versions, served), encoding="utf-8")
        jobs, _ = under_load(client, "shout", texts(200), lambda: rig.argosy(*again))
        for job in jobs:
            job.wait(timeout_s=60)
        ends = [row.error["kind"] if row.error else row.output["task"] for job in jobs for row in job.results()]
    assert len(ends) == 200 * len(jobs)
    assert set(ends[:200]) >= {"shout"}
    assert set(ends) == {"shout", "UnknownTask"}
    assert set(ends[-200:]) == {"UnknownTask"}
