"""The built-in task `entities`: a head for tokens on the text model, whose answers are those of its layers written
out plainly.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from random import Random
from typing import Any

import numpy as np
import pytest

from producers.wire.catalogue import Catalogue
from producers.wire.errors import InputTooLarge, InvalidInput
from tests.serving import DEVICE, answered
from workers.models.built_in.text.text_model import TextModel
from workers.models.built_in.text.token_labelling import shapes
from workers.models.interface.model import ModelSpec
from workers.models.sources.model_source import Pulled
from workers.shipped_heads.text import entity_scores

pytestmark = pytest.mark.usefixtures("two_threads")

CATALOGUE = Catalogue.builtin()
TASKS = {name: CATALOGUE.tasks[name] for name in ("entities", "topic", "embedding")}

#: What padding, and another order of sums, may change of a score.
TOLERANCE = 2e-5

NEWS = [
    "Angela Merkel flew to Washington on Monday to meet American officials.",
    "nobody at the office knew where the keys were",
    "Shares in Siemens rose 4% to 120 euros in Frankfurt, its best day since March 2019.",
    "\U0001f600 Tom went to \U0001f5fc Tokyo.",
]

#: Over the encoder's 512 tokens: the same names again and again, so that every window has some.
LONG = " ".join(f"On day {n}, Barack Obama spoke in Chicago about the economy." for n in range(120))


@pytest.fixture(scope="module")
def text(pulled_models: Mapping[str, Pulled]) -> TextModel:
    pulled = pulled_models["text"]
    model = TextModel(ModelSpec("text", pulled.folder, pulled.revision, TASKS))
    model.load(DEVICE)
    return model


def ask(task: str = "entities", **chosen: Any) -> dict[str, Any]:
    return {task: CATALOGUE.check_params(TASKS[task], chosen, field="params")}


def found(model: TextModel, texts: list[str], **chosen: Any) -> list[list[dict[str, Any]]]:
    return [one["entities"] for one in answered(model, [(content, ask(**chosen)) for content in texts])]


def spans(entities: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(one["start"], one["end"], one.get("entity_group") or one["entity"]) for one in entities]


def test_names_are_found_where_they_stand(text: TextModel) -> None:
    """Offsets count characters of the text as it was sent: behind emoji too."""
    merkel, nothing, _, emoji = found(text, NEWS)
    assert {(NEWS[0][one["start"] : one["end"]], one["entity_group"]) for one in merkel} >= {
        ("Angela Merkel", "PERSON"),
        ("Washington", "GPE"),
        ("Monday", "DATE"),
    }
    assert nothing == []
    assert "Tokyo" in {NEWS[3][one["start"] : one["end"]] for one in emoji}


def test_scores_are_those_of_the_layers_written_out(text: TextModel, pulled_models: Mapping[str, Pulled]) -> None:
    """Alone in plain transformers, without padding: hidden states, the head's layers, softmax."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = pulled_models["text"].folder
    tokenizer, backbone = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    module: Any = copy.deepcopy(text._heads["entities"]).cpu()
    encoded = tokenizer(NEWS[2], return_tensors="pt")
    with torch.inference_mode():
        layers = backbone(**encoded, output_hidden_states=True).hidden_states
        encoding = tokenizer.backend_tokenizer.encode(NEWS[2])
        written = torch.from_numpy(shapes(NEWS[2], encoding)).long()
        x = module.norm(torch.cat([layers[n] for n in module.layers], -1))
        x = torch.nn.functional.gelu(module.narrow(x) + module.written(written))
        around = torch.nn.functional.conv1d(x.transpose(1, 2), module.around.weight, module.around.bias, padding=2)
        plain = module.out(x + torch.nn.functional.gelu(around.transpose(1, 2))).softmax(-1)[0]
    labels = text.labels(TASKS["entities"])
    for one in found(text, [NEWS[2], LONG, NEWS[0]], aggregation_strategy="none", ignore_labels=[])[0]:
        best = plain[one["index"]]
        assert one["entity"] == labels[int(best.argmax())]
        assert one["score"] == pytest.approx(float(best.max()), abs=TOLERANCE)


@pytest.mark.long
def test_neighbours_change_nothing(text: TextModel) -> None:
    """Alone, and in batches with random others of random lengths."""
    random = Random(0)
    alone = [found(text, [content])[0] for content in NEWS]
    for _ in range(3):
        company = [*NEWS, LONG[: random.randint(30, 6000)], LONG[: random.randint(3, 300)]]
        order = random.sample(range(len(company)), len(company))
        together = found(text, [company[place] for place in order])
        for place, own in zip(order, together, strict=True):
            if place < len(NEWS):
                assert spans(own) == spans(alone[place])
                np.testing.assert_allclose(
                    [one["score"] for one in own], [one["score"] for one in alone[place]], atol=TOLERANCE
                )


def test_a_long_text_is_read_in_windows_to_its_end(text: TextModel) -> None:
    """Every sentence has the same person and place; the last window's are found as the first one's are."""
    [own] = found(text, [LONG])
    people = [one for one in own if one["entity_group"] == "PERSON"]
    assert all(LONG[one["start"] : one["end"]] == "Barack Obama" for one in people)
    assert len(people) >= 115  # of 120, some at a window's edge
    assert people[-1]["start"] > len(LONG) - 100
    assert [one["start"] for one in own] == sorted(one["start"] for one in own)


def test_only_the_other_tasks_refuse_a_long_text(text: TextModel) -> None:
    prepared = text.prepare(LONG, ask() | ask("topic"))
    assert set(prepared.refused) == {"topic"}
    assert isinstance(prepared.refused["topic"], InputTooLarge)
    with pytest.raises(InputTooLarge):
        text.prepare(LONG, ask("topic"))


def test_tasks_beside_it_get_what_they_get_alone(text: TextModel) -> None:
    """One pass for all: a batch with windows, words and vectors."""
    items = [
        (NEWS[0], ask() | ask("topic")),
        (LONG, ask() | ask("topic", truncation=True)),
        (NEWS[2], ask("embedding")),
    ]
    together = answered(text, items)
    [topic] = answered(text, [(NEWS[0], ask("topic"))])
    assert together[0]["topic"][0]["label"] == topic["topic"][0]["label"]
    assert together[0]["topic"][0]["score"] == pytest.approx(topic["topic"][0]["score"], abs=TOLERANCE)
    [vector] = answered(text, [(NEWS[2], ask("embedding"))])
    np.testing.assert_allclose(together[2]["embedding"], vector["embedding"], atol=TOLERANCE)


def test_a_stride_as_long_as_a_window_is_refused(text: TextModel) -> None:
    with pytest.raises(InvalidInput, match=r"params\.stride: must be under 510"):
        text.prepare(LONG, ask(stride=510))
    with pytest.raises(InvalidInput, match=r"params\.stride: must be 382 or less"):
        text.prepare(LONG, ask(stride=383))


def test_features_that_are_known_label_tokens_too(pulled_models: Mapping[str, Pulled], text: TextModel) -> None:
    """With the feature cache the second time is without a pass, and the same."""
    pulled = pulled_models["text"]
    remembering = TextModel(ModelSpec("text", pulled.folder, pulled.revision, TASKS, {"feature_cache_mib": 8}))
    remembering.load(DEVICE)
    rows = [remembering.prepare(content, ask()) for content in NEWS]
    for _ in range(2):
        batch = remembering.collate(rows)
        batch["contents"] = np.array([list(row.content) for row in rows], dtype=np.uint8)
        outputs = remembering.forward(batch, {"entities": np.arange(len(rows))})["entities"]
        own = [
            remembering.finish(TASKS["entities"], output, ask()["entities"], row)
            for output, row in zip(outputs, rows, strict=True)
        ]
        assert [spans(one) for one in own] == [spans(one) for one in found(text, NEWS)]
    assert remembering.cached_rows == len(rows)
    assert remembering.passes == 1


def test_the_head_does_what_its_card_says_on_the_marked_sentences(text: TextModel) -> None:
    """The sentences that a person marked: well over the baseline of capitalised words."""
    gold = entity_scores.gold()
    texts = [one.text for one in gold]
    assert len(gold) >= 40
    assert all(one.text[entity.start : entity.end].strip() for one in gold for entity in one.entities)
    [own] = entity_scores.found_by(text, texts, [ask()["entities"]])
    score = entity_scores.f1(own, gold)
    assert score > 0.6
    assert score > entity_scores.f1(entity_scores.capitalised(texts), gold) + 0.3
