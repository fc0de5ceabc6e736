"""Whole fleets: Valkey, SQLite, real workers with a device process each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from producers import Client
from tests.end_to_end.processes import family, fleet_in
from workers import settings
from workers.fleet.local import LocalFleet

SCRIPTED = """
[worker]
models = ["scripted"]
grace_s = 2.0
lease_s = 3.0
reconcile_every_s = 0.3
publish_overdue_s = 2.0
[models.scripted]
class = "tests.scripted_model:ScriptedModel"
source = { path = "tests" }
batch_cost = 512
batch_rows = 32
[models.scripted.tasks.echo]
kind = "text-classification"
[models.scripted.tasks.shout]
kind = "text-classification"
""".replace('"tests"', f'"{Path(__file__).parents[1]}"')

Fleets = Callable[..., LocalFleet]


@pytest.fixture
def scripted_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> settings.Settings:
    """The settings of a fleet with the scripted model, which workers and clients find by ARGOSY_FLEET."""
    path = tmp_path / "fleet.toml"
    path.write_text(SCRIPTED, encoding="utf-8")
    monkeypatch.setenv("ARGOSY_FLEET", str(path))
    return settings.load()


@pytest.fixture
def fleets(tmp_path: Path) -> Iterator[Fleets]:
    """Starts fleets and stops them at the end; none may leave a process behind."""
    started: list[LocalFleet] = []

    def start(chosen: settings.Settings, **options: object) -> LocalFleet:
        fleet = LocalFleet(chosen, tmp_path / "home", **{"flower": False, **options})  # type: ignore[arg-type]
        started.append(fleet)
        fleet.start()
        return fleet

    yield start
    for fleet in started:
        processes = family(fleet)
        fleet.stop()
        _, alive = psutil.wait_procs(processes, timeout=30)
        assert not alive, f"left behind: {alive}"


@pytest.fixture
def fleet(fleets: Fleets, scripted_settings: settings.Settings) -> LocalFleet:
    """A fleet with one worker that serves the scripted model."""
    return fleets(scripted_settings)


@pytest.fixture(scope="module")
def shared_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    """A fleet with the scripted model for all tests of a module, none of which may break it."""
    with fleet_in(tmp_path_factory.mktemp("shared"), SCRIPTED) as fleet:
        yield fleet


@pytest.fixture
def client(fleet: LocalFleet) -> Iterator[Client]:
    with Client(fleet.broker_url, fleet.store_url) as client:
        yield client
