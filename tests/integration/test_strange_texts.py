"""Texts that nobody means to send, for every kind that reads text: each is answered, or refused by name; never an error
of a batch.

What reads them is checked as in a fleet: at the producer's door first, then by the model, in one batch with an ordinary
text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from producers.wire.catalogue import Limits
from producers.wire.errors import InputTooLarge, InvalidInput
from tests import tiny_checkpoints as tiny
from tests.serving import Served, answered

pytestmark = pytest.mark.usefixtures("two_threads")

Made = Callable[..., Path]

ORDINARY = "the team won the cup final"
NER = {"num_labels": 3, "id2label": {0: "O", 1: "B-PER", 2: "I-PER"}}

#: What there is nothing to read in: refused at the door.
EMPTY = {"nothing": "", "spaces": " \t\n", "other spaces": "\u00a0\u2003\u3000\u2028"}
NO_UNICODE = {"half a pair": "\ud800", "half a pair in a text": f"{ORDINARY} \udfff"}

#: What is Unicode, and odd.
ODD = {
    "emoji": "\U0001f600\U0001f44d\U0001f3fd\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "zero width": "\u200b\u200d\ufeff",
    "zero width within": "the te\u200bam w\u00adon",
    "null": "\x00",
    "null within": "the team\x00won",
    "controls": "\x01\x02\x1b[31m",
    "right to left": "\u202b\u05e9\u05dc\u05d5\u05dd \u0639\u0644\u064a\u0643\u0645\u202c",
    "combining": "e" + "\u0301" * 200,
    "figures": "12 345,67 - 2026",
    "private and unassigned": "\ue000\U0010fffd\u0378",
    "one word": "a" * 5_000,
}


#: How each kind's tiny checkpoint is made, and what else an item of it needs.
KINDS: dict[str, tuple[Callable[[Made], Path], dict[str, Any]]] = {
    "text-classification": (lambda made: made(tiny.bert, "BertForSequenceClassification", num_labels=3), {}),
    "token-classification": (lambda made: made(tiny.distilbert, "DistilBertForTokenClassification", **NER), {}),
    "zero-shot-classification": (lambda made: made(tiny.bert, "BertModel"), {"candidate_labels": ["sport", "film"]}),
    "feature-extraction": (lambda made: made(tiny.roberta, "RobertaModel"), {}),
    "summarization": (lambda made: made(tiny.bart, "BartForConditionalGeneration"), {"max_new_tokens": 4}),
    "translation": (lambda made: made(tiny.t5), {"max_new_tokens": 4}),
    "text-generation": (lambda made: made(tiny.llama), {"max_new_tokens": 4}),
    "question-answering": (lambda made: made(tiny.bert, "BertForQuestionAnswering"), {}),
    "sentence-similarity": (lambda made: made(tiny.bert, "BertModel"), {}),
    "fill-mask": (lambda made: made(tiny.bert, "BertForMaskedLM"), {}),
}

ONE_PASS = [kind for kind in KINDS if kind != "text-generation"]


def input_of(kind: str, text: str) -> Any:
    """Return an input of a kind that has a text where a user's would be."""
    if kind == "question-answering":
        return {"question": "who won ?", "context": text}
    if kind == "sentence-similarity":
        return {"source_sentence": ORDINARY, "sentences": [text]}
    return f"{text} [MASK]" if kind == "fill-mask" and not text.isspace() and text else text


@pytest.fixture(scope="module")
def served(made: Made) -> Callable[[str], Served]:
    """Return the model of a kind, loaded at its first use."""
    loaded: dict[str, Served] = {}

    def of(kind: str) -> Served:
        if kind not in loaded:
            loaded[kind] = Served(KINDS[kind][0](made), {"task": kind}).load()
        return loaded[kind]

    return of


@pytest.mark.parametrize("kind", KINDS)
def test_what_has_nothing_to_read_is_refused_at_the_door(served: Callable[[str], Served], kind: str) -> None:
    """By the same words for every kind, before anything is sent."""
    model = served(kind)
    for texts, problem in ((EMPTY, "is empty"), (NO_UNICODE, "is not valid Unicode")):
        for text in texts.values():
            with pytest.raises(InvalidInput, match=problem):
                model.catalogue.check_input(model.task("task"), input_of(kind, text), field="input")


@pytest.mark.parametrize("kind", KINDS)
def test_texts_over_100_000_characters_are_refused_at_the_door(served: Callable[[str], Served], kind: str) -> None:
    model, most = served(kind), Limits().max_text_chars
    value = input_of(kind, "to " * (most // 3 + 1))
    with pytest.raises(InputTooLarge, match="characters"):
        model.catalogue.check_input(model.task("task"), value, field="input")


@pytest.mark.parametrize("kind", ONE_PASS)
def test_odd_texts_are_answered_or_refused_and_harm_nobody(served: Callable[[str], Served], kind: str) -> None:
    """All that can be read goes through in one batch, beside an ordinary text whose answer stays what it is alone."""
    model, more = served(kind), KINDS[kind][1]
    [alone] = model.ask("task", [input_of(kind, ORDINARY)], **more)
    own = {"task": model.catalogue.check_params(model.task("task"), more, field="params")}
    readable, refused = [], {}
    for name, text in ODD.items():
        content = model.content("task", input_of(kind, text))
        try:
            model.model.prepare(content, own)
            readable.append(content)
        except InvalidInput as error:
            refused[name] = error
    items = [(model.content("task", input_of(kind, ORDINARY)), own), *((content, own) for content in readable)]
    answers = [one["task"] for one in answered(model.model, items)]
    assert len(answers) == 1 + len(readable)
    assert _close(answers[0], alone)
    assert all(error.field and error.problem for error in refused.values())
    assert {"emoji", "right to left", "figures", "null within"}.isdisjoint(refused)


@pytest.mark.parametrize("kind", ONE_PASS)
def test_the_longest_text_is_read_in_windows_or_refused_by_its_tokens(
    served: Callable[[str], Served], kind: str
) -> None:
    """100,000 characters pass the door; what cannot read so many tokens says how many there are."""
    model, more = served(kind), KINDS[kind][1]
    value = input_of(kind, "to " * 33_000)
    if kind in {"token-classification", "question-answering"}:
        assert model.ask("task", [value], **more)
        return
    error = model.refusal("task", value, **more)
    assert isinstance(error, InputTooLarge)
    assert re.search(r"has [3-9]\d,\d{3} tokens, over \d+", str(error))
    assert "truncation" in str(error)


def _close(one: Any, other: Any) -> bool:
    """Whether two answers are the same but for what padding may change of their numbers."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_close(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_close, one, other))
    return bool(one == pytest.approx(other, abs=2e-5))
