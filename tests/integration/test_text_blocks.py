"""The text model's blocks: the tokens and the answers are those of single texts."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from producers.wire.errors import InvalidInput
from tests import tiny_checkpoints as tiny
from tests.integration.test_models import TEXTS, params, spec, text
from tests.serving import Served, answered
from workers.models.built_in.text.text_model import TextModel
from workers.models.interface.model import Array, tried
from workers.models.interface.text_block import ALONE, LabelColumns, TextBlock
from workers.models.sources.model_source import Pulled

__all__ = ["text"]

pytestmark = pytest.mark.usefixtures("two_threads")

LONG = "word " * 600
ODD = ["[SEP]", "[CLS] [SEP]", "…", "\u200b", "a", "東京 Привет \U0001f600", "[MASK] a", LONG]
MANY = [*TEXTS, *ODD, TEXTS[1], *(f"{content} {number}" for number, content in enumerate(TEXTS))]


def block(model: TextModel, texts: list[str], **chosen: Any) -> TextBlock:
    made = model.prepare_block(texts, {"sentiment": params("sentiment", **chosen)})
    assert made is not None
    return made


@pytest.mark.parametrize("truncation", [True, False])
def test_a_block_has_the_tokens_of_single_texts(text: TextModel, truncation: bool) -> None:
    """Texts that are refused are left alone; equal texts share a row."""
    made = block(text, MANY, truncation=truncation)
    own = {"sentiment": params("sentiment", truncation=truncation)}
    for content, row in zip(MANY, made.row_of.tolist(), strict=True):
        single = tried(text.prepare, content, own)
        if row == ALONE:
            assert isinstance(single, InvalidInput) or content in ODD
            continue
        assert made.sizes[row] == single.size
        arrays = text.collate_blocks([(made, np.array([row]))])
        np.testing.assert_array_equal(arrays["ids"][0], single.arrays["ids"])
        assert arrays["mask"].all()
    assert (made.row_of[MANY.index(LONG)] == ALONE) == (not truncation)
    assert made.row_of[1] == made.row_of[len(TEXTS) + len(ODD)]
    assert (made.row_of != ALONE).sum() >= len(MANY) - len(ODD)


def test_rows_are_padded_like_single_texts(text: TextModel) -> None:
    made = block(text, TEXTS)
    own = {"sentiment": params("sentiment")}
    arrays = text.collate_blocks([(made, made.row_of[:2]), (block(text, TEXTS[2:]), np.arange(3))])
    wanted = text.collate([text.prepare(content, own) for content in TEXTS])
    assert arrays.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(arrays[name], array)
        assert arrays[name].dtype == array.dtype


def outputs(model: TextModel, task: str) -> Array:
    made = block(model, TEXTS)
    return model.forward(model.collate_blocks([(made, made.row_of)]), {task: np.arange(len(TEXTS))})[task]


@pytest.mark.parametrize(
    ("task", "chosen"), [("sentiment", {}), ("topic", {"top_k": 3}), ("topic", {"top_k": None}), ("spam", {"top_k": 9})]
)
def test_labels_are_those_of_single_texts(text: TextModel, task: str, chosen: Mapping[str, Any]) -> None:
    own, named = params(task, **chosen), text.spec.tasks[task]
    found, raw = text.finish_block(named, outputs(text, task), own), outputs(text, task)
    assert isinstance(found, LabelColumns)
    pairs = [
        {"label": found.labels[code], "score": score} for code, score in zip(found.codes, found.scores, strict=True)
    ]
    prepared = text.prepare("a", {task: own})
    wanted = [text.finish(named, row, own, prepared) for row in raw]
    assert [pairs[at : at + found.width] for at in range(0, len(pairs), found.width)] == wanted


@pytest.mark.parametrize("normalize", [True, False])
def test_vectors_are_those_of_single_texts(text: TextModel, normalize: bool) -> None:
    own, named = params("embedding", normalize=normalize), text.spec.tasks["embedding"]
    raw = outputs(text, "embedding")
    found = text.finish_block(named, raw, own)
    prepared = text.prepare("a", {"embedding": own})
    np.testing.assert_array_equal(found, np.stack([text.finish(named, row, own, prepared) for row in raw]))


def test_what_is_not_simple_has_no_block(text: TextModel, pulled_models: Mapping[str, Pulled]) -> None:
    """Tokens' labels, explanations, a feature cache, and a class of one's own that changes what single texts get."""

    class Own(TextModel):
        def finish(self, *given: Any) -> Any:
            return super().finish(*given)

    simple = {"sentiment": params("sentiment")}
    assert text.prepare_block(TEXTS, {**simple, "entities": params("entities")}) is None
    assert text.prepare_block(TEXTS, {"sentiment": params("sentiment", explain=True)}) is None
    assert Own(text.spec).prepare_block(TEXTS, simple) is None
    assert TextModel(spec("text", pulled_models["text"], feature_cache_mib=16)).prepare_block(TEXTS, simple) is None


# --- models from Hugging Face folders -------------------------------------------------------------

WORDS = ["the team won the cup final", "it was a dull film", "angela merkel lives in berlin", "it was a dull film"]
FEW = [*WORDS, "[SEP]", "angela merkel lives in berlin. " * 12]


def of_block(served: Served, texts: list[str], **params: Mapping[str, Any]) -> tuple[TextBlock, list[dict[str, Any]]]:
    """Return the block of texts and, of the texts that it has, the answers by task."""
    model = served.model
    own = {task: served.catalogue.check_params(served.task(task), chosen, field="p") for task, chosen in params.items()}
    made = model.prepare_block(texts, own)
    assert made is not None
    rows = np.arange(len(made.sizes))
    outputs = model.forward(model.collate_blocks([(made, rows[:1]), (made, rows[1:])]), dict.fromkeys(own, rows))
    found: list[dict[str, Any]] = [{} for _ in texts]
    inside = np.flatnonzero(made.row_of != ALONE)
    for task, chosen in own.items():
        answers = model.finish_block(served.task(task), outputs[task][made.row_of[inside]], chosen)
        for n, place in enumerate(inside.tolist()):
            found[place][task] = answers[n] if isinstance(answers, np.ndarray) else labels_of(answers, n)
    return made, found


def labels_of(columns: LabelColumns, n: int) -> list[dict[str, Any]]:
    own = slice(n * columns.width, (n + 1) * columns.width)
    pairs = zip(columns.codes[own], columns.scores[own], strict=True)
    return [{"label": columns.labels[code], "score": score} for code, score in pairs]


@pytest.mark.parametrize(
    ("maker", "head", "config", "chosen"),
    [
        (tiny.bert, "BertForSequenceClassification", {"num_labels": 3}, {"top_k": None}),
        (
            tiny.bert,
            "BertForSequenceClassification",
            {"num_labels": 4, "problem_type": "multi_label_classification"},
            {},
        ),
        (tiny.roberta, "RobertaForSequenceClassification", {"num_labels": 3}, {"top_k": 2}),
        (tiny.bart, "BartForSequenceClassification", {"num_labels": 3}, {}),
    ],
    ids=["bert", "several-labels", "roberta", "bart"],
)
def test_a_folder_s_labels_are_those_of_single_texts(
    made: Callable[..., Path], maker: Callable[..., Path], head: str, config: dict[str, Any], chosen: dict[str, Any]
) -> None:
    served = Served(made(maker, head, **config), {"mood": "text-classification"}).load()
    block_, found = of_block(served, FEW, mood=chosen)
    own = {"mood": served.catalogue.check_params(served.task("mood"), chosen, field="p")}
    wanted = answered(served.model, [(text_, own) for text_ in WORDS])
    for place, single in enumerate(wanted):
        assert [pair["label"] for pair in found[place]["mood"]] == [pair["label"] for pair in single["mood"]]
        assert [pair["score"] for pair in found[place]["mood"]] == pytest.approx(
            [pair["score"] for pair in single["mood"]], abs=2e-6
        )
    sizes = [served.model.prepare(text_, own).size for text_ in WORDS]
    assert block_.sizes[block_.row_of[: len(WORDS)]].tolist() == sizes
    assert block_.row_of[-1] == ALONE, "too long without `truncation`"
    assert block_.row_of[1] == block_.row_of[3]


@pytest.mark.parametrize("normalize", [True, False])
def test_a_folder_s_vectors_and_labels_share_a_block(made: Callable[..., Path], normalize: bool) -> None:
    kinds = {"mood": "text-classification", "vector": "feature-extraction"}
    served = Served(made(tiny.bert, "BertForSequenceClassification", num_labels=3), kinds).load()
    chosen = {"mood": {"truncation": True}, "vector": {"normalize": normalize, "truncation": True}}
    own = {task: served.catalogue.check_params(served.task(task), one, field="p") for task, one in chosen.items()}
    texts = [*WORDS, FEW[-1]]
    _, found = of_block(served, texts, **chosen)
    for place, single in enumerate(answered(served.model, [(text_, own) for text_ in texts])):
        np.testing.assert_allclose(found[place]["vector"], single["vector"], atol=1e-5)
        assert found[place]["mood"][0]["label"] == single["mood"][0]["label"]


def test_a_prompt_or_another_kind_has_no_block(made: Callable[..., Path], tmp_path: Path) -> None:
    """Their texts are other sequences for each task, or several."""
    folder = made(tiny.bert, "BertModel")
    served = Served(folder, {"about": "zero-shot-classification"})
    asked = {"candidate_labels": ["a", "b"]}
    own = {"about": served.catalogue.check_params(served.task("about"), asked, field="p")}
    assert served.model.prepare_block(WORDS, own) is None
    prompting = shutil.copytree(folder, tmp_path / "prompting")
    (prompting / "config_sentence_transformers.json").write_text('{"prompts": {"q": "query: "}}', encoding="utf-8")
    served = Served(prompting, {"vector": "feature-extraction"}, prompt="q")
    own = {"vector": served.catalogue.check_params(served.task("vector"), {}, field="p")}
    assert served.model.prepare_block(WORDS, own) is None
