"""A whole fleet whose models do not fit into its memory together."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from producers import Client
from producers.commands.main import main
from producers.wire.publisher import Publisher
from tests.end_to_end.processes import fleet_in, until
from tests.versioned_model import write_version
from workers.fleet.local import LocalFleet
from workers.node import presence

MODEL = """
[models.{name}]
class = "tests.versioned_model:VersionedModel"
source = {{ path = "{folder}" }}
batch_cost = 512
[models.{name}.tasks.of_{name}]
kind = "text-classification"
"""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, device_bytes: int) -> Iterator[LocalFleet]:
    """One worker, three models of 80 MB, and room for two."""
    folder = tmp_path_factory.mktemp("budget")
    text = f'[worker]\nmodels = ["a", "b", "c"]\nmemory_budget = "{device_bytes // 10**6 + 200} MB"\n'
    for number, name in enumerate("abc", start=1):
        text += MODEL.format(name=name, folder=write_version(folder / name, number, megabytes=80))
    with fleet_in(folder, text) as started:
        yield started


def argosy(*words: str) -> str:
    ran = CliRunner().invoke(main, words, catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    return ran.output


def node(fleet: LocalFleet) -> presence.NodeState:
    publisher = Publisher(fleet.broker_url)
    try:
        [found] = until(lambda: presence.nodes(publisher))
        return found
    finally:
        publisher.close()


def ask_all(fleet: LocalFleet) -> list[int]:
    with Client(fleet.broker_url, fleet.store_url) as client:
        jobs = [client.submit_many(f"of_{name}", [f"{n} for {name}" for n in range(50)]) for name in "abc"]
        for job in jobs:
            assert job.wait(timeout_s=90).succeeded == 50
        return [row.output["version"] for job in jobs for row in job.results()]


@pytest.mark.long
def test_all_are_served_though_not_all_are_loaded(fleet: LocalFleet, tmp_path: Path) -> None:
    """Each answers for itself; operators see which are in memory and how often they came; a new version comes within
    the budget, too.
    """
    before = node(fleet).loads
    assert ask_all(fleet) == [1] * 50 + [2] * 50 + [3] * 50
    until(lambda: argosy("models", "list").count("not loaded") == 1)  # nodes tell what they hold every few seconds
    assert json.loads(argosy("batches", "--json"))["loads"] >= 1
    found = node(fleet)
    assert found.loads > before
    assert found.loads - found.unloads == len(found.loaded) == 2
    assert found.resident_bytes < found.budget_bytes

    newer = write_version(tmp_path / "newer", 4, megabytes=80)
    assert "newer@" in argosy("models", "reload", "a", "--source", str(newer))
    assert ask_all(fleet) == [4] * 50 + [2] * 50 + [3] * 50

    larger = write_version(tmp_path / "larger", 5, megabytes=300)
    said = CliRunner().invoke(main, ["models", "reload", "a", "--source", str(larger)])
    assert said.exit_code != 0
    assert "over worker.memory_budget" in str(said.exception) + said.output
    assert ask_all(fleet) == [4] * 50 + [2] * 50 + [3] * 50


@pytest.mark.long
def test_what_was_measured_is_known_at_the_next_start(fleet: LocalFleet) -> None:
    """Nothing is loaded before it is needed."""
    service = fleet.workers[0]
    service.stop()
    service.start()
    found = until(lambda: node(fleet))
    assert (found.loads, found.loaded) == (0, [])
