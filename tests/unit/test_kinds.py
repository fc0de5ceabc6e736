"""The kinds of tasks: what their parameters may be, which have to be given, and what their inputs look like."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest

from producers.client.request import NewItem, Request
from producers.wire.catalogue import KINDS, Catalogue
from producers.wire.errors import ConfigurationError, InputTooLarge, InvalidInput
from producers.wire.forms import FIELDS, Limits, check
from producers.wire.messages import (
    Envelope,
    Item,
    JsonInput,
    PathInput,
    Priority,
    QuestionInput,
    RowInput,
    SentencesInput,
    SeriesInput,
    UrlInput,
    decode,
    decode_bytes,
    encode,
)

OWN = {
    "about": "zero-shot-classification",
    "concern": {"kind": "zero-shot-classification", "params": {"candidate_labels": ["refund", "praise"]}},
    "answer": "question-answering",
    "alike": "sentence-similarity",
    "short": "summarization",
    "motion": "time-series-classification",
    "action": "video-classification",
}
CATALOGUE = Catalogue.builtin().with_models({"own": {"tasks": OWN}}, where="fleet.toml")


def request(task: str | list[str], **params: Any) -> Request:
    return Request.check(CATALOGUE, task, priority="bulk", params=params or None)


def test_every_kind_can_be_described() -> None:
    """Parameters are named structs with a line of help; what has no default is required."""
    required = {name: task.lacks({}) for name, task in CATALOGUE.tasks.items()}
    assert required.pop("about") == ("candidate_labels",)
    assert not any(required.values())
    for kind in KINDS.values():
        assert kind.params.__doc__
        assert kind.summary


@pytest.mark.parametrize(
    ("task", "params", "problem"),
    [
        ("about", {"candidate_labels": []}, "1 to 100 labels"),
        ("about", {"candidate_labels": ["a", " "]}, "1 to 200 characters"),
        ("about", {"candidate_labels": ["a", "a"]}, "name a label twice"),
        ("about", {"candidate_labels": [str(n) for n in range(101)]}, "1 to 100 labels"),
        ("about", {"candidate_labels": ["a"], "hypothesis_template": "no place"}, "{} once"),
        ("about", {"candidate_labels": "a, b"}, "candidate_labels"),
        ("answer", {"max_answer_len": 0}, "max_answer_len"),
        ("short", {"num_beams": 17}, "16 or less"),
        ("short", {"max_new_tokens": 0}, "max_new_tokens"),
        ("sentiment", {"top_k": 0}, "top_k"),
        ("action", {"num_frames": 129}, "128 or less"),
        ("action", {"frame_sampling_rate": 0}, "frame_sampling_rate"),
    ],
)
def test_wrong_parameters_are_named_before_anything_is_sent(task: str, params: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        request(task, **params)
    assert problem in str(raised.value)


def test_what_has_to_be_given_may_come_with_each_item() -> None:
    """Labels for the whole submission, or each text's own, or the task's; but some there must be."""
    asked = request("about")
    item = asked.item(0, NewItem("a text", params={"candidate_labels": ["a"]}), field="inputs[0]")
    assert item.params == {"about": {"candidate_labels": ["a"]}}
    with pytest.raises(InvalidInput, match=r"inputs\[1\]\.params.*candidate_labels"):
        asked.item(1, "a text", field="inputs[1]")
    assert request("about", candidate_labels=["b"]).item(0, "a text", field="i").params["about"] == {
        "candidate_labels": ["b"]
    }
    own = CATALOGUE.check_params(CATALOGUE.tasks["concern"], {"multi_label": True}, field="params")
    assert msgspec.structs.asdict(own)["candidate_labels"] == ("refund", "praise")


def test_a_part_of_the_parameters_is_checked_with_the_rest() -> None:
    """A template for all texts, labels for each."""
    asked = request("about", hypothesis_template="About {}.")
    item = asked.item(0, NewItem("a text", params={"candidate_labels": ["a"]}), field="i")
    assert item.params["about"] == {"hypothesis_template": "About {}.", "candidate_labels": ["a"]}
    with pytest.raises(InvalidInput, match="1 to 100 labels"):
        asked.item(0, NewItem("a text", params={"candidate_labels": []}), field="i")


@pytest.mark.parametrize(
    ("task", "problem"),
    [
        ({"kind": "no-such-kind"}, r"tasks\.own\.kind: no kind 'no-such-kind'; there are text-classification"),
        ({"kind": "fil-mask"}, r"tasks\.own\.kind: no kind 'fil-mask'; did you mean 'fill-mask'\?"),
        ({"kind": "fill-mask", "labels": []}, r"tasks\.own\.labels: not a key of a task"),
        ({"kind": "fill-mask", "params": 3}, r"tasks\.own\.params: must be a table"),
        (
            {"kind": "fill-mask", "params": {"topk": 3}},
            r"params\.topk: not a parameter of fill-mask; did you mean 'top_k'",
        ),
        ({"kind": "fill-mask", "params": {"top_k": 0}}, r"tasks\.own\.params: .*top_k"),
    ],
)
def test_a_wrong_task_in_the_settings_is_named(task: Any, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        Catalogue({}).with_models({"m": {"tasks": {"own": task}}}, where="fleet.toml")


@pytest.mark.parametrize(
    ("task", "value", "field"),
    [
        ("answer", "who?", "input"),
        ("answer", {"question": "who?"}, "input"),
        ("answer", {"question": "who?", "context": " "}, "input.context"),
        ("answer", {"question": "\ud800", "context": "she"}, "input.question"),
        ("answer", {"question": 3, "context": "she"}, "input"),
        ("alike", {"source_sentence": "a", "sentences": []}, "input.sentences"),
        ("alike", {"source_sentence": "a", "sentences": ["b", ""]}, "input.sentences[1]"),
        ("alike", {"source_sentence": "a", "sentences": ["b" * 60, "c" * 60]}, "input"),
        ("motion", [], "input"),
        ("motion", "0.1, 0.2", "input"),
        ("motion", [[]], "input.0"),
        ("motion", [[1, 2], [1]], "input.1"),
        ("motion", {"x": [1, 2], "y": 3}, "input.y"),
        ("motion", {"x": [1, "2"]}, "input.x[1]"),
        ("motion", [[1, float("inf")]], "input.0[1]"),
        ("motion", [[True]], "input.0[0]"),
        ("motion", [[1, 10**400]], "input.0[1]"),
        ("action", "data:video/mp4;base64,AA==", "input"),
        ("action", "s3://bucket/clip.mp4", "input"),
        ("action", UrlInput("clip.mp4"), "input"),
        ("motion", [[0.5] * 60, [0.5] * 60], "input"),
        ("action", b"", "input"),
        ("action", ["frame"], "input"),
    ],
)
def test_what_is_wrong_in_an_object_is_named(task: str, value: object, field: str) -> None:
    small = Catalogue(CATALOGUE.tasks, Limits(max_text_chars=100))
    with pytest.raises(InvalidInput) as raised:
        small.check_input(small.tasks[task], value, field="input")
    assert raised.value.field == field
    if field == "input" and "has over" in str(raised.value):
        assert isinstance(raised.value, InputTooLarge)


@pytest.mark.parametrize(
    ("value", "channels", "names"),
    [
        ([[1, 2.5], [None, float("nan")]], ((1.0, 2.5), (None, None)), ()),
        ([1, 2], ((1.0, 2.0),), ()),
        (((1, 2), (3, 4)), ((1.0, 2.0), (3.0, 4.0)), ()),
        ({"x": [1], "y": [None]}, ((1.0,), (None,)), ("x", "y")),
        (array("d", [1, 2]), ((1.0, 2.0),), ()),
        ([np.float32(1), np.int8(2)], ((1.0, 2.0),), ()),
    ],
)
def test_a_series_may_come_in_several_forms(value: object, channels: Any, names: tuple[str, ...]) -> None:
    """Channels as lists or by name; one channel as a plain list; an array as what it holds. Not a number is missing."""
    found = CATALOGUE.check_input(CATALOGUE.tasks["motion"], value, field="input")
    assert found == SeriesInput(channels, names)
    assert CATALOGUE.check_input(CATALOGUE.tasks["motion"], found, field="input") == found  # as the worker does


class Patient(NamedTuple):
    age: int
    smoker: str


class Labelled:
    """A row as pandas has it: values with the names of their columns, or with numbers if they have none."""

    def __init__(self, names: Sequence[object]) -> None:
        self._names = names

    def to_dict(self) -> dict[object, object]:
        return dict(zip(self._names, self.tolist(), strict=True))

    def tolist(self) -> list[object]:
        return [44, "no"]


@pytest.mark.parametrize(
    ("value", "columns"),
    [
        (Patient(44, "no"), ("age", "smoker")),
        (Labelled(("age", "smoker")), ("age", "smoker")),
        (Labelled((0, 1)), ("0", "1")),
        (np.array([(44, "no")], dtype=[("age", "i4"), ("smoker", "U2")])[0], ("age", "smoker")),
        ([44, "no"], ("0", "1")),
    ],
)
def test_a_row_keeps_the_names_of_its_columns(value: object, columns: tuple[str, str]) -> None:
    """They were replaced by the places of their values."""
    assert check("row", value, Limits(), "input") == RowInput(dict(zip(columns, (44, "no"), strict=True)))


def test_json_may_hold_what_numpy_has() -> None:
    value = {"a": np.array([1, 2]), "b": [np.float64(0.5), np.int64(3)], "c": np.str_("x"), "d": np.True_}
    assert check("json", value, Limits(), "input") == JsonInput({"a": [1, 2], "b": [0.5, 3], "c": "x", "d": True})
    for wrong in (np.float32("nan"), np.array([np.inf]), object()):
        with pytest.raises(InvalidInput, match=r"^input"):
            check("json", {"a": wrong}, Limits(), "input")


def test_the_scheme_of_a_url_may_be_written_in_any_way() -> None:
    """It was taken for the path of a file."""
    assert check("image", " HTTPS://x.example/a.png\n", Limits(), "input") == UrlInput("HTTPS://x.example/a.png")
    for path in ("a:b.png", "C://a.png", "data/a.png"):
        assert check("image", path, Limits(), "input") == PathInput(path)


def test_objects_travel_as_they_are() -> None:
    """Through the wire's JSON and back, to the same typed input."""
    inputs = [
        QuestionInput("who?", "she"),
        SentencesInput("a", ("b", "c")),
        SeriesInput(((1.0, None), (0.5, -2.0)), ("x", "y")),
    ]
    items = tuple(Item(seq, value, ("answer",)) for seq, value in enumerate(inputs))
    sent = Envelope(version=1, id="e", job="j", model="own", priority=Priority.BULK, queued_at=0.0, items=items)
    came, bad = decode(decode_bytes(*encode(sent)))
    assert not bad
    assert [item.input for item in came.items] == inputs
    assert FIELDS["question"] == ("question", "context")


def test_a_long_role_counts() -> None:
    """A role is written into the prompt like a message's content."""
    catalogue = Catalogue.builtin().with_models({"own": {"tasks": {"talk": "text-generation"}}}, where="fleet.toml")
    for message in ({"role": "x" * 100_001, "content": "y"}, {"role": "user", "content": "y" * 100_000}):
        with pytest.raises(InputTooLarge, match="characters in all"):
            catalogue.check_input(catalogue.tasks["talk"], [message], field="input")
