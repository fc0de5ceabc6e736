"""What a submission may ask for: every wrong argument is refused by name before anything is sent."""

from __future__ import annotations

import enum
import os
from collections.abc import Iterable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from producers import Client
from producers.client.fleet_link import FleetLink
from producers.client.group_commit import Promise
from producers.client.request import NewItem, Request, parse_priority
from producers.client.runtimes import timeout_of
from producers.client.sending.full_fleet import checked
from producers.client.sending.orders import shared_deadline
from producers.client.sending.submission import check_many, lone_order, new_job
from producers.wire import forms
from producers.wire.catalogue import Catalogue
from producers.wire.connection import checked_tenant
from producers.wire.errors import InputTooLarge, InvalidInput, UnknownTask
from producers.wire.messages import Envelope, PathInput, Priority, QuestionInput, RowInput, encode

#: Half of a character, as JSON can spell it and file names can hold it: nothing that can be sent.
HALF = "\ud800"


def check(task: Any = "topic", **arguments: Any) -> Request:
    return Request.check(Catalogue.builtin(), task, **{"priority": "standard", **arguments})


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        ("sentimnt", {}, "task: no task 'sentimnt'; did you mean 'sentiment'?"),
        (["topic", "sentimnt"], {}, "task[1]: no task 'sentimnt'; did you mean 'sentiment'?"),
        ("x" * 10**7, {}, f"task: no task '{'x' * 200}…'; known tasks: "),
        ([], {}, "task: names no task"),
        (7, {}, "task: must be a task's name or several, not int"),
        (["topic", 7], {}, "task[1]: must be a task's name, not int"),
        (["topic", "topic"], {}, "task: names a task twice"),
        (["topic", "image-embedding"], {}, "task: mixes tasks for image and text; "),
        ("topic", {"priority": "urgent"}, "priority: must be a Priority or its name, not 'urgent'; one of interactive"),
        ("topic", {"priority": 3}, "priority: must be a Priority or its name, not 3"),
        ("topic", {"deadline_s": 0}, "deadline_s: must be more than 0 and finite, not 0"),
        ("topic", {"deadline_s": float("nan")}, "deadline_s: must be more than 0 and finite, not nan"),
        ("topic", {"deadline_s": 10**400}, "deadline_s: must be more than 0 and finite, not inf"),
        ("topic", {"deadline_s": True}, "deadline_s: must be a number of seconds, not bool"),
        ("topic", {"deadline_s": "soon"}, "deadline_s: must be a number of seconds, not str"),
        ("topic", {"params": {"topk": 2}}, "params: "),
        ("topic", {"params": {"top_k": 0}}, "params: `top_k` must be 1 or more"),
        ("topic", {"params": ["top_k"]}, "params: must be a mapping, not list"),
        (["topic"], {"params": {"top_k": 2}}, "params.top_k: is not a requested task; requested: topic"),
        (["topic"], {"params": {"topic": 2}}, "params.topic: must be a mapping of parameters, not int"),
        (["topic"], {"params": {"topic": {"top_k": "2"}}}, "params.topic: "),
        ("topic", {"params": {"top_k": float("nan")}}, "params.top_k: is nan, not a finite number"),
        (["topic"], {"params": {"topic": {"x": [float("inf")]}}}, "params.topic.x[0]: is inf, not a finite number"),
        (["topic"], {"params": {"topic": {"x": {float("nan")}}}}, "params.topic.x[0]: is nan, not a finite number"),
        ("topic", {"params": {"top_k": 2**70}}, "params: cannot be sent: "),
        ("topic", {"params": {"explain_label": HALF}}, "params: cannot be sent: "),
    ],
)
def test_a_wrong_argument_is_named_with_its_remedy(task: Any, arguments: dict[str, Any], message: str) -> None:
    """Nothing has been sent when the caller learns of a mistake, and the message is enough to correct it."""
    with pytest.raises(InvalidInput) as caught:
        check(task, **arguments)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("value", "kind", "field"),
    [
        ("  ", InvalidInput, "input"),
        (b"bytes", InvalidInput, "input"),
        (None, InvalidInput, "input"),
        ("\ud800", InvalidInput, "input"),
        ("x" * 100_001, InputTooLarge, "input"),
        (NewItem("x", key=7), InvalidInput, "input.key"),  # type: ignore[arg-type]
        (NewItem("x", key=HALF), InvalidInput, "input.key"),
        (NewItem("x", params={"top_k": "many"}), InvalidInput, "input.params"),
        (NewItem("x", params={"explain_label": HALF}), InvalidInput, "input.params"),
    ],
)
def test_a_wrong_input_is_named(value: object, kind: type[InvalidInput], field: str) -> None:
    """Each input is checked at the producer already, so that a typing error costs no round trip."""
    with pytest.raises(kind) as caught:
        check().item(0, value, field="input")
    assert caught.value.field == field


def test_only_what_writes_can_be_read_in_pieces() -> None:
    """And the caller did not write the parameter that the others lack."""
    catalogue = Catalogue.builtin().with_models({"m": {"tasks": {"chat": "text-generation"}}}, where="fleet.toml")
    asked = Request.check(catalogue, "chat", priority="standard", params={"seed": 1})
    assert asked.streamed().params == {"chat": {"seed": 1, "stream": True}}
    with pytest.raises(InvalidInput, match=r"^task: 'topic' writes no text"):
        check("topic").streamed()


@pytest.mark.parametrize("own", [{"temperature": 1}, {}])
def test_a_text_that_is_read_in_pieces_has_a_seed(own: dict[str, Any]) -> None:
    """Another worker that begins it anew writes the same text. The likeliest tokens need none."""
    tasks = {"chat": {"kind": "text-generation", "params": {} if own else {"temperature": 1}}}
    catalogue = Catalogue.builtin().with_models({"m": {"tasks": tasks}}, where="fleet.toml")
    first, second = (
        Request.check(catalogue, "chat", priority="standard", params=own).streamed().params["chat"] for _ in range(2)
    )
    assert 0 <= first["seed"] < 2**63
    assert first["seed"] != second["seed"]
    likeliest = Request.check(catalogue, "chat", priority="standard", params={"temperature": 0}).streamed()
    assert likeliest.params == {"chat": {"temperature": 0, "stream": True}}


def test_an_unknown_task_is_its_own_error() -> None:
    """A caller can tell a wrong name from a wrong input."""
    with pytest.raises(UnknownTask):
        check("sentimnt")


def test_a_relative_path_is_made_absolute() -> None:
    """The worker runs in another folder, perhaps on another machine with the same share."""
    item = check("image-embedding").item(0, Path("photos/cat.jpg"), field="input")
    assert item.input == PathInput(f"{Path.cwd()}{os.sep}photos{os.sep}cat.jpg")


def test_priorities_are_given_by_name_in_any_case() -> None:
    """People write names; the numbers are Redis's business, and their order surprises."""
    assert parse_priority("Bulk") is Priority.BULK
    assert parse_priority(Priority.INTERACTIVE) is Priority.INTERACTIVE


def test_the_shape_of_task_decides_the_shape_of_the_result() -> None:
    """A sequence of one is still a sequence: code that builds the list gets one shape for every length."""
    assert check("topic").single
    assert not check(["topic"]).single


def test_a_deadline_counts_from_the_submission() -> None:
    """It travels as a point in time, since an envelope may wait for hours."""
    assert check(deadline_s=30).deadline_at(100.0) == 130.0
    assert check().deadline_at(100.0) is None


class Colour(str, enum.Enum):  # noqa: UP042 - as many programs have it, and its `str` is another
    RED = "red"


class Own(str):
    __slots__ = ()


@pytest.mark.parametrize("text", [np.str_("red"), Colour.RED, Own("red"), np.array(["red"])[0]])
def test_texts_of_other_types_are_sent_as_texts(text: str) -> None:
    """As they come from arrays, enumerations and template engines; also in keys, names and objects."""
    item = check(np.str_("topic")).item(0, NewItem(text, key=text), field="input")
    assert (type(item.input), item.input, type(item.key), item.key) == (str, "red", str, "red")
    asked = forms.check("question", {"question": text, "context": text}, forms.Limits(), "input")
    assert asked == QuestionInput("red", "red")
    row = forms.check("row", {text: text, "n": np.int64(3), "x": np.float32(0.5)}, forms.Limits(), "input")
    assert row == RowInput({"red": "red", "n": 3, "x": 0.5})
    path = check("image-classification").item(0, text, field="input").input
    assert path == PathInput("red")
    assert checked_tenant(text) == "red"
    made = new_job(Priority.BULK, text, text)
    assert (type(made.name), type(made.idempotency_key)) == (str, str)
    encode(Envelope(version=1, id="e", job="j", model="m", priority=Priority.BULK, queued_at=0.0, items=(item,)))


def test_numbers_of_numpy_are_numbers() -> None:
    request = check(params={"top_k": np.int64(2)}, deadline_s=np.float32(2))
    assert (request.params, request.deadline_s) == ({"topic": {"top_k": 2}}, 2.0)
    assert new_job(Priority.BULK, None, ttl_s=np.int64(3600)).ttl_s == 3600
    assert check(deadline_s=Decimal("2.5"), params={"top_k": np.int64(2)}).deadline_s == 2.5
    assert forms.check("row", {"price": Decimal("1.5")}, forms.Limits(), "input") == RowInput({"price": 1.5})
    assert checked(np.int64(3)) == 3.0


@pytest.mark.parametrize("ttl_s", [True, np.True_, 0, float("nan"), Decimal("sNaN"), 10**400, Fraction(10**400), "60"])
def test_a_time_to_live_that_is_no_number_of_seconds_is_refused(ttl_s: Any) -> None:
    """True would be a second, after which the job with all its results is deleted."""
    with pytest.raises(InvalidInput, match=r"^ttl_s: must be a number of seconds over 0"):
        new_job(Priority.BULK, None, ttl_s=ttl_s)


@pytest.mark.parametrize("field", ["name", "idempotency_key"])
def test_a_name_has_a_bound(field: str) -> None:
    """A name of a megabyte would be in every list of jobs; PostgreSQL indexes no such key."""
    assert new_job(Priority.BULK, **{"name": None, field: "x" * 500})  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match=f"^{field}: has 501 characters, over 500"):
        new_job(Priority.BULK, **{"name": None, field: "x" * 501})  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["k\udcff", "k\0", "acme\x1fnightly"])
def test_a_key_that_would_be_kept_as_another_is_refused(key: str) -> None:
    """The first two would be k and U+FFFD; without a tenant of its own, the third would be the key of acme."""
    with pytest.raises(InvalidInput, match=r"^idempotency_key: (has NUL|cannot be sent)"):
        new_job(Priority.BULK, None, key)


def test_a_wait_may_be_of_any_length_but_not_of_none() -> None:
    """NaN would break the order of an event loop's timers, those of others too."""
    assert [timeout_of(given) for given in (None, 10**400, -1, np.float32(2))] == [None, float("inf"), -1.0, 2.0]
    assert checked(10**400) == float("inf")
    for given in (float("nan"), "5", True, Decimal("nan")):
        with pytest.raises(InvalidInput, match=r"^timeout_s: must be a number of seconds or None"):
            timeout_of(given)


@pytest.mark.parametrize("store_timeout_s", [float("nan"), float("inf"), 10**400, 0, -1, "5", True, None])
def test_a_client_waits_for_the_store_for_some_time(store_timeout_s: Any) -> None:
    """Anything else was an exception of a library, at the first use."""
    with pytest.raises(InvalidInput, match=r"^store_timeout_s: must be a number of seconds over 0"):
        Client("redis://host", "sqlite:////x.db", store_timeout_s=store_timeout_s)


@pytest.mark.parametrize("durable", [None, "no", 0, 1, np.True_])
def test_durable_is_true_or_false(durable: Any) -> None:
    """No worker reads an envelope that is anything else, and its caller would wait for ever."""
    link, promise = cast(FleetLink, None), cast(Promise, None)  # nothing is sent
    with pytest.raises(InvalidInput, match=r"^durable: must be True or False"):
        lone_order(check(), "a text", link, promise, key=None, durable=durable, tenant="")


class Table(list[str]):
    """A table as pandas has it: whoever iterates over it gets the names of its columns."""

    ndim = 2

    @property
    def columns(self) -> list[str]:
        return list(self)


def test_a_table_is_no_series_of_inputs() -> None:
    with pytest.raises(InvalidInput, match=r"^inputs: is a table \(Table\), .* table\['text'\]"):
        check_many(Table(["text", "id"]), "raise", Iterable)
    check_many(np.zeros((2, 3)), "raise", Iterable)  # rows


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "input: is null, a missing text; leave the item out, or give it a text"),
        (float("nan"), "input: is NaN, a missing text; leave the item out"),
        (np.float64("nan"), "input: is NaN, a missing text"),
        (7, "input: must be text, not int; make it a text, in Python with str()"),
        (np.array(["a", "b"]), "input: must be text, not ndarray; make it a text"),
        (b"text", "input: must be text, not bytes; decode it to str first"),
        (type("NAType", (), {})(), "input: is NaN, a missing text"),
    ],
)
def test_a_value_that_is_no_text_is_named_with_a_remedy_that_fits(value: object, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check().item(0, value, field="input")
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize("deadline_s", [5e-324, 1e-300, 1e-9, 1e9, 1e300])
def test_any_positive_deadline_can_be_sent(deadline_s: float) -> None:
    deadline_at = shared_deadline(check(deadline_s=deadline_s), 1000.0)
    assert deadline_at is not None
    assert deadline_at >= 1000.0 + deadline_s
