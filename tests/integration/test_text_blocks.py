"""The text model's blocks: the tokens and the answers are those of single texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from producers.wire.errors import InvalidInput
from tests.integration.test_models import TEXTS, params, spec, text
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
