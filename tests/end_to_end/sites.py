"""A site and its centre on one machine: two fleets, a gateway at the centre, and a link between them that can be cut."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from producers import AsyncClient, Client
from producers.gateway.app import create_app
from producers.gateway.keys import new_key
from producers.wire.catalogue import Catalogue
from producers.wire.edge.cascade_tasks import programs_catalogue
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
options = {{ {options} }}
[models.sure.tasks.animal]
kind = "text-classification"
{more}
"""

EDGE = """
[edge]
site = "harbour"
centre = "http://127.0.0.1:{port}"
key_file = "centre.key"
{more}
[edge.tasks.animal]
threshold = 0.8
[edge.tasks.secret]
site = "animal"
stay_on_site = true
[edge.tasks.plant]
only_at_centre = true
kind = "text-classification"
"""

CENTRE_TASKS = '[models.sure.tasks.plant]\nkind = "text-classification"\n'


def models(options: str, more: str = "") -> str:
    return MODELS.format(tests=Path(__file__).parents[1], options=options, more=more)


@dataclass
class Sites:
    """The two fleets, the link, and a client as a program at the site has it."""

    folder: Path
    site: LocalFleet
    centre: LocalFleet
    link: SilentLink
    client: Client

    @property
    def spool(self) -> dict[str, int]:
        """The number of items at the site whose results are not final, by state."""
        counts = self.client.ask(lambda store: store.edge.counts())
        return {state.value: count for state, (count, _) in counts.items()}

    def rows(self, job: str) -> list[Result]:
        return self.client.ask(lambda store: store.results(job))

    def at_centre(self) -> list[Result]:
        """All results that the centre has."""
        with Store(self.centre.store_url) as store:
            return [row for job in store.jobs(limit=1000) for row in store.results(job.id)]

    def empty(self) -> None:
        """Wait until every result of the site is final."""
        until(lambda: not self.spool)


def key_for(store_url: str) -> str:
    text, row = new_key("harbour", "harbour", created_at=0.0)
    with Store(store_url) as store:
        store.keys.add(row)
    return text


def fleet(folder: Path, text: str, *, forwarder: bool = False) -> LocalFleet:
    folder.mkdir(exist_ok=True)
    file = folder / "fleet.toml"
    file.write_text(text, encoding="utf-8")
    return LocalFleet(settings.load(file), folder / "home", config=file, flower=False, forwarder=forwarder)


@contextmanager
def sites_in(folder: Path, more: str = "", *, options: str = 'says = ""') -> Iterator[Sites]:
    """A running site and centre; `more` are settings of ``[edge]``."""
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name in ("ARGOSY_FLEET", "ARGOSY_BROKER_URL", "ARGOSY_STORE_URL"):
            patch.delenv(name, raising=False)
        centre = stack.enter_context(fleet(folder / "centre", models('says = "the "', CENTRE_TASKS)))
        own = Catalogue.from_toml(folder / "centre" / "fleet.toml")
        app = create_app(SETTINGS, lambda: AsyncClient(centre.broker_url, centre.store_url, catalogue=own))
        address = stack.enter_context(served(app))
        link = stack.enter_context(SilentLink(to_port(int(address.rpartition(":")[2]))))
        (folder / "site").mkdir()
        (folder / "site" / "centre.key").write_text(key_for(centre.store_url), encoding="utf-8")
        text = models(options) + EDGE.format(port=link.port, more=more)
        site = stack.enter_context(fleet(folder / "site", text, forwarder=True))
        catalogue = programs_catalogue(folder / "site" / "fleet.toml")
        client = stack.enter_context(Client(site.broker_url, site.store_url, catalogue=catalogue))
        yield Sites(folder, site, centre, link, client)
