"""Packing: what goes into an envelope and into a chunk, and what becomes of a bad input."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers.client.request import NewItem, Request
from producers.client.sending import intake
from producers.client.sending.intake import CHUNK_BYTES, CHUNK_ITEMS, REJECTED_KEPT, Chunk, Intake, values_of
from producers.client.sending.orders import DEADLINE_GRAIN, Order, envelopes_of, shared_deadline
from producers.client.sending.submission import check_many
from producers.wire.catalogue import KINDS, Catalogue, Task
from producers.wire.errors import InvalidInput
from producers.wire.messages import InlineBytes, Item, Priority, decode, decode_bytes
from producers.wire.packing import ENVELOPE_BYTES, ENVELOPE_ITEMS, outbox_row, pack
from results_store.records import NewEnvelope


def items_of(sizes: Sequence[int]) -> list[Item]:
    return [Item(seq, "x" * size, ("topic",)) for seq, size in enumerate(sizes)]


def taken(intake: Intake, inputs: Iterable[object]) -> Iterator[Item]:
    """The good inputs, as a submission takes them one after the other."""
    return (item for value in inputs if (item := intake.take(value)) is not None)


def chunks(items: Iterable[Item], clock: Callable[[], float]) -> Iterator[list[Item]]:
    """The chunks that a submission gathers; the last one is what is left."""
    chunk = Chunk(clock)
    for item in items:
        if chunk.add(item):
            yield chunk.empty()
    if chunk.items:
        yield chunk.empty()


def request_for(*tasks: str) -> Request:
    return Request.check(Catalogue.builtin(), tasks, priority="bulk")


def order(request: Request, items: Sequence[Item], **more: Any) -> Order:
    return Order(request, items, "j" * 26, Future(), **more)


def envelopes(
    request: Request, items: Sequence[Item], *, now: float = 1.0, deadline_at: float | None = None
) -> list[NewEnvelope]:
    sent = envelopes_of([order(request, items, deadline_at=deadline_at)], now, now)
    return [outbox_row(envelope, 0) for envelope in sent]


def test_small_items_fill_envelopes_by_number() -> None:
    """64 to a message is what makes the transport cheap; the rest goes in a shorter last one."""
    assert [len(group) for group in pack(items_of([10] * 150))] == [ENVELOPE_ITEMS, ENVELOPE_ITEMS, 22]


def test_large_items_fill_envelopes_by_bytes_and_a_huge_one_travels_alone() -> None:
    """An envelope is redelivered as a whole, so that it must stay worth about one micro-batch."""
    half = ENVELOPE_BYTES // 2
    groups = [[item.seq for item in group] for group in pack(items_of([half, half, half, ENVELOPE_BYTES * 9, 5, 5]))]
    assert groups == [[0, 1], [2], [3], [4, 5]]


def test_packing_keeps_every_item_in_order() -> None:
    """Nothing may be lost or doubled at a boundary."""
    sizes = [(n * 7919) % 20_000 for n in range(1_000)]
    assert [item.seq for group in pack(items_of(sizes)) for item in group] == list(range(1_000))


def test_a_chunk_is_bounded_in_number_and_in_bytes() -> None:
    """Memory stays constant, for texts as for photographs."""
    texts = [len(chunk) for chunk in chunks(items_of([1] * (CHUNK_ITEMS + 1)), clock=lambda: 0.0)]
    photos = [len(chunk) for chunk in chunks(items_of([CHUNK_BYTES // 2] * 5), clock=lambda: 0.0)]
    assert texts == [CHUNK_ITEMS, 1]
    assert photos == [2, 2, 1]


def test_a_slow_source_does_not_hold_back_what_it_has_given() -> None:
    """Where each item takes a second to come, it is not kept until 4,095 more have come."""
    clock = itertools.count(step=1.0)
    assert [len(chunk) for chunk in chunks(items_of([1] * 5), clock=lambda: float(next(clock)))] == [2, 2, 1]


def test_envelopes_read_back_as_what_was_submitted() -> None:
    """The payload in the outbox is the message a worker decodes, and its counts are what the store adds up."""
    request = request_for("sentiment", "topic")
    items = list(taken(Intake(request), ["one", NewItem("two", key="b")]))
    (row,) = envelopes(request, items, now=12.5, deadline_at=20.0)
    envelope, bad = decode(decode_bytes(row.payload, row.content_type))
    assert bad == []
    assert envelope.items == tuple(items)
    assert (envelope.id, envelope.queued_at, envelope.deadline_at) == (row.id, 12.5, 20.0)
    assert (row.items, row.results, row.priority) == (2, 4, Priority.BULK)
    assert row.content_type == "application/json"


def test_bytes_travel_as_messagepack() -> None:
    """base64 inside JSON inside base64 would make a photograph 78 % larger instead of 33 %."""
    request = Request.check(Catalogue.builtin(), "image-embedding", priority="bulk")
    (row,) = envelopes(request, list(taken(Intake(request), [b"\x89PNG"])))
    envelope, bad = decode(decode_bytes(row.payload, row.content_type))
    assert bad == []
    assert envelope.items[0].input == InlineBytes(b"\x89PNG")


def test_tasks_of_two_models_become_two_envelopes_with_the_same_seq() -> None:
    """An envelope goes to one model's queue; the results meet again under their seq."""
    builtin = Catalogue.builtin()
    catalogue = Catalogue({**builtin.tasks, "mood": Task("mood", KINDS["text-classification"], "other", "")})
    request = Request.check(catalogue, ("topic", "mood"), priority="bulk", params={"mood": {"top_k": 2}})
    rows = envelopes(request, list(taken(Intake(request), ["a", "b"])))
    read = [decode(decode_bytes(envelope.payload, envelope.content_type))[0] for envelope in rows]
    assert [(one.model, [(i.seq, i.tasks, i.params) for i in one.items]) for one in read] == [
        ("text", [(0, ("topic",), {}), (1, ("topic",), {})]),
        ("other", [(0, ("mood",), {"mood": {"top_k": 2}}), (1, ("mood",), {"mood": {"top_k": 2}})]),
    ]


COLUMN = ["one", "two", "三", "four " * 9]


@pytest.mark.parametrize(
    "column",
    [np.array(COLUMN), np.array(COLUMN, dtype=object), pa.array(COLUMN), pa.chunked_array([COLUMN[:1], COLUMN[1:]])],
    ids=["numpy", "objects", "arrow", "chunks"],
)
def test_columns_are_texts(column: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Converted many at a time."""
    monkeypatch.setattr(intake, "CONVERTED", 3)
    check_many(column, "raise", Iterable)
    items = list(taken(Intake(request_for("topic")), values_of(column)))
    assert [(item.seq, item.input, type(item.input)) for item in items] == [
        (n, text, str) for n, text in enumerate(COLUMN)
    ]


def test_a_missing_text_of_a_column_names_its_place() -> None:
    with pytest.raises(InvalidInput, match=r"inputs\[1\]: is null"):
        list(taken(Intake(request_for("topic")), values_of(pa.array(["a", None]))))


def test_other_arrays_are_inputs_as_they_are() -> None:
    rows = np.array([["a", "b"], ["c", "d"]])
    assert values_of(rows) is rows
    assert values_of(COLUMN) is COLUMN


@pytest.mark.parametrize("key", [None, "k", "ключ"])
def test_a_keyed_text_is_the_item_that_any_input_is(key: str | None) -> None:
    """Texts take a shorter way."""
    request = Request.check(Catalogue.builtin(), "topic", priority="bulk", params={"top_k": 2})
    [item] = taken(Intake(request), [NewItem("a text", key)])
    assert item == request.item(0, NewItem("a text", key), field="inputs[0]")


def test_a_bad_input_names_its_place() -> None:
    """Of a million rows, the one to look at must be in the message."""
    with pytest.raises(InvalidInput) as caught:
        list(taken(Intake(request_for("topic")), ["fine", "", "fine"]))
    assert caught.value.field == "inputs[1]"


def test_a_bad_input_names_the_line_it_came_from() -> None:
    """Somebody who submits a file looks for a line in it."""
    with pytest.raises(InvalidInput, match=r"^reviews\.csv:17: is empty"):
        list(taken(Intake(request_for("topic")), [NewItem("", origin="reviews.csv:17")]))


def test_skipping_puts_bad_rows_aside_and_keeps_the_places_of_the_others() -> None:
    """`seq` stays the place among the inputs, so that results can be joined to them."""
    intake = Intake(request_for("topic"), "skip")
    unreadable = InvalidInput("rows.jsonl:3", "is not JSON")
    good = [item.seq for item in taken(intake, ["a", NewItem(5, key="five"), unreadable, "d"])]
    assert good == [0, 3]
    assert [(bad.seq, bad.key, bad.error.field) for bad in intake.rejected] == [
        (1, "five", "inputs[1]"),
        (2, None, "rows.jsonl:3"),
    ]


def test_rejected_rows_are_all_counted_but_not_all_kept() -> None:
    """A million wrong rows must not fill the memory."""
    intake = Intake(request_for("topic"), "skip")
    assert list(taken(intake, [""] * (REJECTED_KEPT + 5))) == []
    assert (len(intake.rejected), intake.rejected_count) == (REJECTED_KEPT, REJECTED_KEPT + 5)


def test_resuming_passes_over_the_good_items_already_accepted() -> None:
    """Bad rows were never accepted, so that they don't count when an earlier run is continued."""
    intake = Intake(request_for("topic"), "skip", skip=2)
    assert [item.seq for item in taken(intake, ["a", "", "c", "d", "e"])] == [3, 4]


def test_an_items_own_parameters_are_laid_over_the_common_ones() -> None:
    """One row may want five labels where the others want two."""
    request = Request.check(Catalogue.builtin(), "topic", priority="bulk", params={"top_k": 2, "truncation": True})
    items = taken(Intake(request), ["a", NewItem("b", params={"top_k": 5})])
    assert [msgspec.to_builtins(item.params) for item in items] == [
        {"topic": {"top_k": 2, "truncation": True}},
        {"topic": {"top_k": 5, "truncation": True}},
    ]


def test_lone_items_of_one_kind_share_an_envelope() -> None:
    """What many callers submit at once goes as one message for each model and priority, whatever its tasks."""
    requests = [request_for("topic"), request_for("spam", "topic"), request_for("image-embedding")]
    inputs: list[object] = ["a", "b", b"picture"]
    orders = [order(request, [request.item(seq, inputs[seq], field="input")]) for seq, request in enumerate(requests)]
    urgent = Request.check(Catalogue.builtin(), "topic", priority="interactive")
    orders.append(order(urgent, [urgent.item(3, "c", field="input")]))
    orders.append(order(requests[0], [requests[0].item(4, "d", field="input")], durable=False))
    packed = list(envelopes_of(orders, now=1.0, steady=1.0))
    assert [[item.seq for item in one.items] for one in packed] == [[0, 1], [2], [3], [4]]
    assert packed[0].about == "2 items, topic+spam"
    assert packed[0].results == 3


@given(st.floats(0.01, 1e6), st.lists(st.floats(1e9, 2e9), min_size=1, max_size=5))
def test_a_shared_deadline_is_never_early_and_hardly_late(deadline_s: float, times: list[float]) -> None:
    """Items submitted within a moment share an envelope; none expires before its time."""
    request = Request.check(Catalogue.builtin(), "topic", priority="bulk", deadline_s=deadline_s)
    for now in times:
        shared = shared_deadline(request, now)
        assert shared is not None
        assert now + deadline_s - 1e-5 <= shared <= now + deadline_s * (1 + 2 * DEADLINE_GRAIN) + 1e-5
    assert shared_deadline(request_for("topic"), 5.0) is None
