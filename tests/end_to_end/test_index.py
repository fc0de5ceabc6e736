"""An index is made by a fleet as an ordinary job: each passage once, with the vector that is its own, whatever is
interrupted.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file

from producers import Client, InvalidInput, ItemFailed
from producers.commands.main import main
from producers.documents import Document, write_index
from producers.wire.catalogue import Catalogue
from tests.end_to_end.conftest import SCRIPTED
from tests.end_to_end.processes import fleet_in
from workers.fleet.local import LocalFleet

PLACING = SCRIPTED + '[models.scripted.tasks.place]\nkind = "feature-extraction"\n'
DOCUMENTS = [Document(f"page {n}", f"First of {n}. Second of {n}.\n\nThird of {n}.") for n in range(100)]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    """A fleet whose scripted model gives vectors."""
    with fleet_in(tmp_path_factory.mktemp("index"), PLACING) as fleet:
        yield fleet


@pytest.fixture
def client(fleet: LocalFleet) -> Iterator[Client]:
    catalogue = Catalogue.builtin().with_models(
        {"scripted": {"tasks": {"place": "feature-extraction", "echo": "text-classification"}}}, where="fleet.toml"
    )
    with Client(fleet.broker_url, fleet.store_url, catalogue=catalogue) as client:
        yield client


def index(client: Client, out: Path, documents: list[Document], **options: Any) -> Any:
    return write_index(client, documents, out, task="place", pieces=5, timeout_s=60, **options)


def test_every_passage_has_its_own_vector(client: Client, tmp_path: Path) -> None:
    built = index(client, tmp_path / "index", DOCUMENTS)
    assert (built.documents, built.passages) == (100, 300)
    tensors = load_file(built.file)
    bounds, texts = tensors["bounds"], tensors["passages"].tobytes()
    for place, vector in enumerate(tensors["vectors"]):
        passage = msgspec.json.decode(texts[bounds[place] : bounds[place + 1]])
        assert DOCUMENTS[place // 3].text[passage["start"] : passage["end"]] == passage["text"]
        assert vector.tolist() == [zlib.crc32(passage["text"].encode()) % 1000, 1]


def test_the_same_again_computes_nothing_and_another_document_makes_another_edition(
    client: Client, tmp_path: Path
) -> None:
    first = index(client, tmp_path / "index", DOCUMENTS[:5])
    jobs = len(client.jobs(100))
    assert index(client, tmp_path / "index", DOCUMENTS[:5]) == first
    assert len(client.jobs(100)) == jobs
    changed = index(client, tmp_path / "index", [*DOCUMENTS[:4], Document("page 4", "Rewritten.")])
    assert changed.edition != first.edition
    assert len(client.jobs(100)) == jobs + 1
    index(client, tmp_path / "index", DOCUMENTS[:5], again=True)
    assert len(client.jobs(100)) == jobs + 2


def test_a_passage_without_a_vector_is_named_and_the_index_before_stays(client: Client, tmp_path: Path) -> None:
    before = index(client, tmp_path / "index", DOCUMENTS[:2]).file.read_bytes()
    with pytest.raises(ItemFailed, match="refused by the script") as raised:
        index(
            client, tmp_path / "index", [*DOCUMENTS[:2], Document("bad page", "Good. \n\nrefuse this one now please")]
        )
    assert raised.value.__notes__ == ["bad page, characters 8 to 34; try fewer pieces per passage"]
    assert (tmp_path / "index" / "index.safetensors").read_bytes() == before


def test_what_cannot_become_an_index_is_refused(client: Client, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="contain no text"):
        index(client, tmp_path, [Document("blank", " \n")])
    with pytest.raises(InvalidInput, match="gives no vector"):
        write_index(client, DOCUMENTS, tmp_path, task="echo")
    with pytest.raises(InvalidInput, match="pieces"):
        write_index(client, DOCUMENTS, tmp_path, task="place", pieces=0)


def test_the_command_makes_one_out_of_files(fleet: LocalFleet, tmp_path: Path) -> None:
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "a.md").write_text("# Title\n\nSomething to read.", encoding="utf-8")
    command = ["index", str(tmp_path / "pages"), "--out", str(tmp_path / "out"), "--task", "place"]
    ran = CliRunner().invoke(main, command, catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    assert "1 passages of 1 documents, edition" in ran.output
    assert (tmp_path / "out" / "index.safetensors").is_file()
