"""Passages of one's own documents, found by the shared text model in the pass that answers its other tasks."""

from __future__ import annotations

import os
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from producers.documents import Document, passages
from producers.documents.index_file import Contents, write
from producers.wire.catalogue import Catalogue
from producers.wire.errors import ConfigurationError, InputUnavailable, InvalidInput
from producers.wire.kinds.retrieval import Passage
from tests.serving import DEVICE, answered, assert_alike
from workers.models.built_in.text.text_model import TextModel
from workers.models.interface.model import ModelSpec
from workers.models.sources.model_source import Pulled

CATALOGUE = Catalogue.builtin().with_models({"text": {"tasks": {"handbook": "passage-retrieval"}}}, where="fleet.toml")
TEXTS = {
    "returns.md": "Goods may be returned within 30 days of delivery, if they are unused.",
    "delivery.md": "Parcels take three working days. Abroad it takes a week.",
    "warranty.md": "A broken device is repaired at no charge for two years.",
    "jobs.md": "We are looking for a cook and two waiters.",
}
QUESTIONS = ["How long does shipping take?", "Can I send it back?", "My phone does not work any more."]
EXPECTED = ["delivery.md", "returns.md", "warranty.md"]


def spec(pulled: Pulled, index: Path, **tasks: Any) -> ModelSpec:
    own = {name: CATALOGUE.tasks[name] for name in ("sentiment", "embedding", "handbook")}
    return ModelSpec("text", pulled.folder, pulled.revision, own, {"indexes": {"handbook": str(index)}} | tasks)


def ask(task: str = "handbook", **chosen: Any) -> dict[str, msgspec.Struct]:
    return {task: CATALOGUE.check_params(CATALOGUE.tasks[task], chosen, field="params")}


def vectors(model: TextModel, texts: Sequence[str]) -> np.ndarray[Any, Any]:
    return np.array([answer["embedding"] for answer in answered(model, [(text, ask("embedding")) for text in texts])])


def index(model: TextModel, texts: Mapping[str, str], out: Path, encoder: str = "") -> None:
    """Write what `producers.documents.write_index` would, with vectors from this very process."""
    found = [passage for name, text in texts.items() for passage in passages(Document(name, text))]
    encoded = [msgspec.json.encode(passage) for passage in found]
    out.mkdir(exist_ok=True)
    (out / "texts").write_bytes(b"".join(encoded))
    (out / "vectors").write_bytes(vectors(model, [one.text for one in found]).astype("<f4").tobytes())
    bounds = array("q", np.cumsum([0, *map(len, encoded)]).tolist())
    write(Contents(out / "texts", bounds, out / "vectors", 384, encoder or model.revision, f"of {len(texts)}"), out)


@pytest.fixture(scope="module")
def model(pulled_models: Mapping[str, Pulled], tmp_path_factory: pytest.TempPathFactory) -> TextModel:
    folder = tmp_path_factory.mktemp("handbook")
    model = TextModel(spec(pulled_models["text"], folder))
    model.load(DEVICE)
    index(model, TEXTS, folder)
    return model


def test_the_passage_that_answers_comes_first(model: TextModel) -> None:
    """In one pass with another task; each says where it stands, and how near it is."""
    passes = model.passes
    found = answered(model, [(text, ask(top_k=2) | ask("sentiment")) for text in QUESTIONS])
    assert model.passes == passes + 1
    assert [answer["handbook"][0]["document"] for answer in found] == EXPECTED
    for answer in found:
        assert [type(one).__name__ for one in msgspec.convert(answer["handbook"], list[Passage])] == ["Passage"] * 2
        for one in answer["handbook"]:
            assert one["text"] == TEXTS[one["document"]][one["start"] : one["end"]]
            assert one["edition"] == "of 4"


def test_it_is_the_cosine_and_neighbours_change_nothing(model: TextModel) -> None:
    """Each text has as many passages as it asked for, the nearest of all by plain arithmetic; alone as in company."""
    asked: list[tuple[str, Mapping[str, msgspec.Struct]]] = [
        (QUESTIONS[0], ask(top_k=1)),
        (QUESTIONS[1], ask("sentiment")),
        (QUESTIONS[2] * 5, ask(top_k=100)),
    ]
    together = answered(model, asked)
    assert_alike(together, [answered(model, [one])[0] for one in asked])
    assert [len(answer.get("handbook", [])) for answer in together] == [1, 0, 4]
    cosines = vectors(model, list(TEXTS.values())) @ vectors(model, [QUESTIONS[2] * 5])[0]
    assert [one["score"] for one in together[2]["handbook"]] == pytest.approx(sorted(cosines, reverse=True), abs=2e-5)


def test_what_is_not_near_enough_is_not_there(model: TextModel) -> None:
    answer = answered(model, [("The striker scored twice.", ask(min_score=0.3))])[0]
    assert answer["handbook"] == []


def test_a_new_index_is_taken_with_the_next_batch(
    model: TextModel, pulled_models: Mapping[str, Pulled], tmp_path: Path
) -> None:
    """Before there is one, the task is refused and the others go on; and so are vectors of another encoder."""
    own = TextModel(spec(pulled_models["text"], tmp_path / "later"))
    own.load(DEVICE)
    both = ask() | ask("sentiment")
    row = own.prepare("Is it late?", both)
    assert isinstance(row.refused["handbook"], InputUnavailable)
    assert "argosy index" in str(row.refused["handbook"])
    with pytest.raises(InputUnavailable, match=r"later.* does not exist"):
        own.prepare("Is it late?", ask())

    index(model, {"jobs.md": TEXTS["jobs.md"]}, tmp_path / "later")
    assert [one["edition"] for one in answered(own, [("Is it late?", ask())])[0]["handbook"]] == ["of 1"]
    index(model, TEXTS, tmp_path / "later")
    assert [one["edition"] for one in answered(own, [("Is it late?", ask(top_k=1))])[0]["handbook"]] == ["of 4"]
    index(model, TEXTS, tmp_path / "later", encoder="another==1.0")
    with pytest.raises(InputUnavailable, match=r"made with another==1\.0"):
        own.prepare("Is it late?", ask())
    (tmp_path / "later" / "index.safetensors").write_bytes(os.urandom(200))
    with pytest.raises(ConfigurationError, match="make it again"):
        own.prepare("Is it late?", ask())


def test_a_task_without_an_index_is_found_at_the_start(pulled_models: Mapping[str, Pulled], tmp_path: Path) -> None:
    own = TextModel(spec(pulled_models["text"], tmp_path, indexes={}))
    with pytest.raises(ConfigurationError, match=r"models\.text\.options\.indexes\.handbook: is missing"):
        _ = own.revision


@pytest.mark.parametrize("chosen", [{"top_k": 0}, {"top_k": 101}, {"min_score": 2}, {"top": 3}])
def test_wrong_parameters_are_named(chosen: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(chosen))):
        ask(**chosen)
