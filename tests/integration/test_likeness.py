"""Zero-shot classification on the shared text model: labels of anybody's choice, by likeness, in the same pass as
other tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import pytest

from producers.wire.catalogue import Catalogue
from tests.serving import DEVICE, answered, assert_alike
from workers.models.built_in.text.text_model import TextModel
from workers.models.huggingface.text import likeness
from workers.models.interface.model import ModelSpec
from workers.models.sources.model_source import Pulled

TASKS = {"about": "zero-shot-classification", "tone": "zero-shot-classification"}
CATALOGUE = Catalogue.builtin().with_models({"text": {"tasks": TASKS}}, where="fleet.toml")

TEXTS = [
    "The striker scored twice in the second half as the champions won the cup final against Arsenal.",
    "Shares fell after the bank warned that its quarterly profits would miss forecasts.",
    "The minister lost the vote in parliament and called an election.",
]
LABELS = ["sports", "business", "politics"]


@pytest.fixture(scope="module")
def model(pulled_models: Mapping[str, Pulled]) -> TextModel:
    pulled = pulled_models["text"]
    tasks = {name: CATALOGUE.tasks[name] for name in ("sentiment", "embedding", *TASKS)}
    model = TextModel(ModelSpec("text", pulled.folder, pulled.revision, tasks))
    model.load(DEVICE)
    return model


def params(task: str, **chosen: Any) -> msgspec.Struct:
    return CATALOGUE.check_params(CATALOGUE.tasks[task], chosen, field="params")


def about(**chosen: Any) -> dict[str, msgspec.Struct]:
    return {"about": params("about", **{"candidate_labels": LABELS} | chosen)}


def test_the_label_that_fits_comes_first(model: TextModel) -> None:
    """With the usual template and a template of one's own; scores of one text add up to 1."""
    for template in ("This example is {}.", "A news article about {}"):
        items = [(text, about(hypothesis_template=template)) for text in TEXTS]
        found = [answer["about"] for answer in answered(model, items)]
        assert [answer[0]["label"] for answer in found] == LABELS
        assert all(sum(one["score"] for one in answer) == pytest.approx(1, abs=1e-5) for answer in found)


def test_with_several_labels_each_score_is_the_cosine(model: TextModel) -> None:
    """The vectors are those that `embedding` gives."""
    embedding = {"embedding": params("embedding")}
    hypotheses = [f"This example is {label}." for label in LABELS]
    vectors = [
        answer["embedding"] for answer in answered(model, [(text, embedding) for text in (TEXTS[0], *hypotheses)])
    ]
    expected = np.maximum(np.array(vectors[1:]) @ vectors[0], 0)
    [answer] = answered(model, [(TEXTS[0], about(multi_label=True))])
    scores = {one["label"]: one["score"] for one in answer["about"]}
    np.testing.assert_allclose([scores[label] for label in LABELS], expected, atol=2e-5)


def test_every_item_has_its_own_labels_and_neighbours_change_nothing(model: TextModel) -> None:
    """Two zero-shot tasks, one of them with other labels, and sentiment, in one pass."""
    items: list[tuple[str, dict[str, msgspec.Struct]]] = [
        (TEXTS[0], about()),
        (
            TEXTS[1],
            about(candidate_labels=["money", "animals"]) | {"tone": params("tone", candidate_labels=["bad news"])},
        ),
        (TEXTS[2], {"sentiment": params("sentiment")}),
        (TEXTS[2], {"tone": params("tone", candidate_labels=LABELS)}),
    ]
    passes = model.passes
    together = answered(model, items)
    assert model.passes == passes + 1
    assert_alike(together, [answered(model, [item])[0] for item in items])
    assert together[1]["about"][0]["label"] == "money"
    assert together[3]["tone"][0]["label"] == "politics"


def test_common_labels_are_computed_once(model: TextModel) -> None:
    """Once in a batch, and once for all batches; not padded to the length of the texts."""
    rows = [model.prepare(text, about()) for text in TEXTS]
    batch = model.collate(rows)
    assert len(batch["label_ids"]) == len(LABELS)
    assert batch["label_ids"].shape[1] < batch["ids"].shape[1] / 2
    asked: list[int] = []
    remembered = likeness.Remembered(lambda ids, _: asked.append(len(ids)) or ids[:, :1].float(), most=3)
    import torch

    one, other = torch.tensor([[1, 2], [3, 0]]), torch.tensor([[4, 5], [6, 7]])
    mask = torch.ones(2, 2, dtype=torch.bool)
    assert remembered.vectors(one, mask).tolist() == [[1.0], [3.0]]
    assert remembered.vectors(one.flip(0), mask).tolist() == [[3.0], [1.0]]
    assert remembered.vectors(torch.cat([one, other]), torch.ones(4, 2, dtype=torch.bool)).tolist() == [
        [1],
        [3],
        [4],
        [6],
    ]
    assert remembered.vectors(one[:1], mask[:1]).tolist() == [[1.0]]
    assert asked == [2, 2, 1], "the oldest was forgotten"


def test_equal_items_are_one_row(model: TextModel) -> None:
    row, same = model.prepare(TEXTS[0], about()), model.prepare(TEXTS[0], about())
    other = model.prepare(TEXTS[0], {"tone": about()["about"]})
    assert row.content == same.content
    assert row.content != other.content
