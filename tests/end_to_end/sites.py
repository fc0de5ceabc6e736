"""A site and its centre on one machine: `argosy edge`, a fleet, a gateway, and a link between them that can be cut."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil
import pytest

from producers import AsyncClient, Client
from producers.gateway.app import create_app
from producers.gateway.keys import new_key
from producers.wire.catalogue import Catalogue
from producers.wire.connection import Connection
from results_store.records import Result
from results_store.store import Store
from tests.end_to_end.gateway_server import SETTINGS, served
from tests.end_to_end.processes import until
from tests.silent_link import SilentLink, to_port
from workers import settings
from workers.fleet.local import LocalFleet

MODELS = """
[worker]
models = ["sure"]
grace_s = 2.0
lease_s = 3.0
reconcile_every_s = 0.3
publish_overdue_s = 2.0
[models.sure]
class = "tests.sure_model:SureModel"
source = {{ path = "{tests}" }}
batch_cost = 512
options = {{ says = "{says}", row_s = {row_s} }}
[models.sure.tasks.animal]
kind = "text-classification"
"""

EDGE = """
[edge]
share_load = {sharing}
site = "harbour"
centre = "http://127.0.0.1:{port}"
key_file = "centre.key"
answer_s = 2.0
[edge.tasks.animal]
threshold = 0.8
[edge.tasks.plant]
only_at_centre = true
kind = "text-classification"
"""

CENTRE = """
[models.sure.tasks.plant]
kind = "text-classification"
"""


def models(says: str, row_s: float = 0.0) -> str:
    return MODELS.format(tests=Path(__file__).parents[1], says=says, row_s=row_s)


def key_for(store_url: str) -> str:
    """Make the site's key at the centre."""
    text, row = new_key("harbour", "harbour", created_at=0.0)
    with Store(store_url) as store:
        store.keys.add(row)
    return text


@dataclass
class Sites:
    """Both fleets in a folder, the link between them, and a client as a program at the site has it."""

    folder: Path
    edge: Edge
    centre: LocalFleet
    link: SilentLink
    client: Client
    environment: dict[str, str]

    @property
    def spool(self) -> dict[str, int]:
        """The number of items at the site whose results are not final, by state."""
        counts = self.client.ask(lambda store: store.edge.counts())
        return {state.value: count for state, (count, _) in counts.items()}

    @property
    def forwarder(self) -> psutil.Process:
        """The process that forwards; it is there again some time after it was killed."""
        return until(lambda: [one for one in self._children() if _runs(one, "producers.edge.forwarder")])[0]

    def _children(self) -> list[psutil.Process]:
        assert self.edge.process
        return psutil.Process(self.edge.process.pid).children()

    def rows(self, job: str) -> list[Result]:
        return self.client.ask(lambda store: store.results(job))

    def at_centre(self, word: str) -> list[Result]:
        """The results that the centre has with this word in their output."""
        with Store(self.centre.store_url) as store:
            rows = [row for job in store.jobs(limit=1000) for row in store.results(job.id)]
        return [row for row in rows if word in str(row.output)]

    def argosy(self, *words: str) -> str:
        """Run a command at the site; return what it prints."""
        command = [sys.executable, "-m", "producers.commands.main", *words]
        return subprocess.run(command, env=self.environment, check=True, capture_output=True, text=True).stdout

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.argosy("edge", "status", "--json"))
        return found


def _runs(process: psutil.Process, word: str) -> bool:
    try:
        return word in process.cmdline()
    except psutil.NoSuchProcess:
        return False


@contextmanager
def sites_in(
    folder: Path, *, row_s: float = 0.0, share_load: bool = False, centre_row_s: float = 0.0, centre_nodes: int = 1
) -> Iterator[Sites]:
    """A running site and centre. An item takes `row_s` seconds at the site, and `centre_row_s` at a node of the centre."""
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name in ("ARGOSY_FLEET", "ARGOSY_BROKER_URL", "ARGOSY_STORE_URL"):
            patch.delenv(name, raising=False)
        site_file, centre_file = folder / "site.toml", folder / "centre.toml"
        centre_file.write_text(models("the ", centre_row_s) + CENTRE, encoding="utf-8")
        centre = LocalFleet(
            settings.load(centre_file),
            folder / "centre",
            config=centre_file,
            flower=False,
            workers_per_device=centre_nodes,
        )
        stack.enter_context(centre)
        own = Catalogue.from_toml(centre_file)
        app = create_app(SETTINGS, lambda: AsyncClient(centre.broker_url, centre.store_url, catalogue=own))
        address = stack.enter_context(served(app))
        link = stack.enter_context(SilentLink(to_port(int(address.rpartition(":")[2]))))
        (folder / "centre.key").write_text(key_for(centre.store_url), encoding="utf-8")
        site = models("", row_s) + EDGE.format(port=link.port, sharing=str(share_load).lower())
        site_file.write_text(site, encoding="utf-8")
        environment = {**os.environ, "ARGOSY_HOME": str(folder / "site")}
        edge = stack.enter_context(Edge(site_file, environment))
        where = Connection(environment=environment)
        catalogue = where.catalogue
        client = stack.enter_context(Client(where.broker_url, where.store_url, catalogue=catalogue))
        yield Sites(folder, edge, centre, link, client, environment)


class Edge:
    """`argosy edge` as a process, with its log beside its file."""

    def __init__(self, file: Path, environment: dict[str, str]) -> None:
        self._file = file
        self._environment = environment
        self._log = file.with_name("edge.log")
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def start(self) -> None:
        """Start it and wait until programs find it."""
        announced = Path(self._environment["ARGOSY_HOME"]) / "fleet.json"
        command = [sys.executable, "-m", "producers.commands.main", "edge", "--config", str(self._file)]
        with self._log.open("ab") as out:
            process = subprocess.Popen(command, env=self._environment, stdout=out, stderr=out)
        self.process = process

        def told() -> bool:  # a killed site leaves its file, by which the next one keeps its port
            return announced.exists() and json.loads(announced.read_bytes())["pid"] == process.pid

        until(lambda: told() or process.poll() is not None, 300)
        assert process.poll() is None, self._log.read_text(encoding="utf-8")

    def kill(self) -> None:
        """Kill all of it at once, as a power cut does."""
        assert self.process
        family = psutil.Process(self.process.pid).children(recursive=True)
        for one in [self.process, *family]:
            one.kill()
        self.process.wait()
        psutil.wait_procs(family, timeout=30)

    def __exit__(self, *_: object) -> None:
        """It stops cleanly, and leaves no process behind."""
        assert self.process
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(60) == 0, self._log.read_text(encoding="utf-8")
        _, alive = psutil.wait_procs(family, timeout=30)
        assert not alive
