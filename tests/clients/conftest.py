"""A fleet that embeds, talks and listens, with a gateway; only when asked for, as the clients are installed apart."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests import tiny_checkpoints
from tests.end_to_end.gateway_server import Served, serving
from tests.end_to_end.processes import fleet_in

FLEET = """
[worker]
models = ["text", "chat", "speech", "ears"]

[models.chat.tasks]
chat = "text-generation"

[models.speech.tasks]
transcript = "automatic-speech-recognition"

[models.ears]
source = {{ path = "{folder}" }}
tasks = {{ noted = "automatic-speech-recognition" }}
options = {{ max_new_tokens = 20 }}
"""

_PYTHON = os.environ.get("ARGOSY_TEST_CLIENTS")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "clients":
            item.add_marker(pytest.mark.timeout(1200))
            if _PYTHON is None:
                item.add_marker(
                    pytest.mark.skip(reason="clients of others, installed apart: `make test-clients` runs it")
                )


@pytest.fixture(scope="session")
def clients_python() -> str:
    """The Python of the environment in which the clients are installed."""
    assert _PYTHON is not None, "skipped without it"
    return _PYTHON


@pytest.fixture(scope="session")
def served(
    tmp_path_factory: pytest.TempPathFactory, pulled_models: object, pulled_chat: object, pulled_speech: object
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("clients")
    tiny_checkpoints.whisper(folder / "ears")
    with (
        fleet_in(folder, FLEET.format(folder=folder / "ears")) as fleet,
        serving(fleet.broker_url, fleet.store_url) as found,
    ):
        yield found
