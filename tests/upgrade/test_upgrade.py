"""A fleet of an older version is upgraded under load: the schema, then the workers one by one, then the producers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import NullPool, create_engine, text

from results_store.records import ResultState
from results_store.sql.database import parse_url
from results_store.sql.schema import REVISION
from results_store.store import Store
from tests.end_to_end.processes import until
from tests.upgrade.installed import ROOT

Process = subprocess.Popen[bytes]

BOTH = Path(__file__).parent / "both"

FLEET = """
[worker]
models = ["checksum"]
concurrency = 16
grace_s = 5.0
lease_s = 3.0
reconcile_every_s = 0.5
publish_overdue_s = 5.0
[models.checksum]
class = "checksum_model:ChecksumModel"
source = { path = "." }
batch_cost = 64
[models.checksum.tasks.checksum]
kind = "text-classification"
"""


@dataclass(frozen=True)
class Version:
    """An installed version: its Python, and the module of its command line."""

    python: str
    cli: str
    path: str

    def start(self, folder: Path, log: str, *arguments: str) -> Process:
        own = {"PYTHONPATH": self.path, "ARGOSY_FLEET": str(folder / "fleet.toml")}
        with (folder / log).open("ab") as out:
            command = [self.python, *arguments]
            return subprocess.Popen(command, env=os.environ | own, cwd=folder, stdout=out, stderr=subprocess.STDOUT)

    def worker(self, folder: Path, name: str) -> Process:
        """Start a worker and return once it takes envelopes."""
        ready = folder / f"{name}.ready"
        ready.unlink(missing_ok=True)
        options = ("worker", "--device", "cpu", "--ready-file", str(ready))
        process = self.start(folder, f"{name}.log", "-m", self.cli, *options)
        until(lambda: ready.exists() or process.poll() is not None)
        assert process.poll() is None, (folder / f"{name}.log").read_text(encoding="utf-8")[-4000:]
        return process

    def migrate(self, folder: Path) -> None:
        process = self.start(folder, "migrate.log", "-m", self.cli, "migrate")
        assert process.wait() == 0, (folder / "migrate.log").read_text(encoding="utf-8")

    def producer(self, folder: Path, name: str) -> Producer:
        ledger, stop = folder / f"{name}.jsonl", folder / f"{name}.stop"
        process = self.start(folder, f"{name}.log", str(BOTH / "load.py"), str(ledger), str(stop))
        return Producer(process, ledger, stop, folder / f"{name}.log")


@dataclass(frozen=True)
class Producer:
    process: Process
    ledger: Path
    stop_file: Path
    log: Path

    def stop(self) -> dict[str, list[str]]:
        """End it after its present job; return the texts of its accepted jobs."""
        self.stop_file.touch()
        assert self.process.wait() == 0, self.log.read_text(encoding="utf-8")[-4000:]
        lines = self.ledger.read_text(encoding="utf-8").splitlines()
        return dict(map(json.loads, lines))


def test_a_fleet_is_upgraded_under_load(
    before: Path, store_url: str, broker_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is lost, doubled or wrong, and each job ends, though a worker of either version is killed on the way."""
    monkeypatch.setenv("ARGOSY_STORE_URL", store_url)
    monkeypatch.setenv("ARGOSY_BROKER_URL", broker_url)
    (tmp_path / "fleet.toml").write_text(FLEET, encoding="utf-8")
    old = Version(str(before), "producers.cli", str(BOTH))
    new = Version(sys.executable, "producers.commands.main", f"{ROOT}:{BOTH}")
    stored = Stored(store_url)
    with ended_at_last() as started:
        old.migrate(tmp_path)
        first, second = started(old.worker(tmp_path, "first")), started(old.worker(tmp_path, "second"))
        earlier = old.producer(tmp_path, "earlier")
        started(earlier.process)
        stored.grows(by=500)

        new.migrate(tmp_path)
        assert stored.revisions() == ("0009", REVISION)
        stored.grows(by=500)
        kill(first)
        first = started(old.worker(tmp_path, "first"))  # by its supervisor, which knows the old version alone
        stored.grows(by=500)

        first.terminate()
        assert first.wait() == 0
        first = started(new.worker(tmp_path, "first"))
        stored.grows(by=500)
        kill(second)  # with leases by its own clock
        stored.grows(by=500)
        second = started(new.worker(tmp_path, "second"))
        stored.grows(by=500)

        later = new.producer(tmp_path, "later")
        started(later.process)
        stored.grows(by=500)
        owed = earlier.stop()
        stored.grows(by=500)
        kill(first)
        first = started(new.worker(tmp_path, "first"))
        owed |= later.stop()
        check(store_url, owed)
        for worker in (first, second):
            worker.terminate()
            worker.wait()


def check(store_url: str, owed: dict[str, list[str]]) -> None:
    """Compare every row of every job with its text."""
    with Store(store_url) as store:
        until(lambda: all(store.job(job).finished for job in owed), timeout_s=120)
        until(lambda: store.depth() == [])
        for job, texts in owed.items():
            rows = store.results(job, limit=len(texts) + 1)
            assert [row.seq for row in rows] == list(range(len(texts)))
            assert {row.state for row in rows} == {ResultState.SUCCEEDED}
            assert [row.output for row in rows] == [{"crc": zlib.crc32(text.encode())} for text in texts]
            assert (store.job(job).total, store.job(job).succeeded) == (len(texts), len(texts))
        assert store.dead_letters.newest() == []


@contextmanager
def ended_at_last() -> Iterator[Callable[[Process], Process]]:
    """Kill the processes that a failed test leaves."""
    with ExitStack() as stack:

        def started(process: Process) -> Process:
            stack.callback(lambda: process.poll() is None and kill(process))
            return process

        yield started


def kill(process: Process) -> None:
    """End a process, and its device process, which notices by itself."""
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    psutil.wait_procs(children, timeout=30)


class Stored:
    """Looks into the store by SQL, whatever its schema."""

    def __init__(self, store_url: str) -> None:
        self._engine = create_engine(parse_url(store_url), poolclass=NullPool)

    def grows(self, *, by: int) -> None:
        """Return once so many more results are stored."""
        goal = self._number() + by
        until(lambda: self._number() >= goal)

    def revisions(self) -> tuple[str, str]:
        oldest, found = (f"SELECT version_num FROM {name}" for name in ("alembic_version", "argosy_revision"))
        return str(self._value(oldest)), str(self._value(found))

    def _number(self) -> int:
        return int(self._value("SELECT count(*) FROM results"))

    def _value(self, statement: str) -> Any:
        with self._engine.connect() as connection:
            return connection.execute(text(statement)).scalar_one()
