"""Two versions of a fleet side by side: their workers, migrations and producers, and what is in the store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import NullPool, create_engine, text

from results_store.sql.database import parse_url
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
        until(lambda: ready.exists() or process.poll() is not None, timeout_s=240)  # a busy machine takes its time
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


def older(python: Path) -> Version:
    """Return the version of an installed wheel of `installed.COMMIT`."""
    return Version(str(python), "producers.cli", str(BOTH))


def newer() -> Version:
    """Return the version of this tree."""
    return Version(sys.executable, "producers.commands.main", f"{ROOT}:{BOTH}")


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
        goal = self.number() + by
        until(lambda: self.number() >= goal)

    def revisions(self) -> tuple[str, str]:
        oldest, found = (f"SELECT version_num FROM {name}" for name in ("alembic_version", "argosy_revision"))
        return str(self._value(oldest)), str(self._value(found))

    def number(self) -> int:
        """Return how many results are stored."""
        return int(self._value("SELECT count(*) FROM results"))

    def _value(self, statement: str) -> Any:
        with self._engine.connect() as connection:
            return connection.execute(text(statement)).scalar_one()
