"""Envelopes in columns: which items they hold, and that they read back as the same items."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers.client.request import NewItem, Request
from producers.client.sending.orders import Order, envelopes_of
from producers.wire.catalogue import Catalogue
from producers.wire.errors import InvalidMessage
from producers.wire.messages import (
    COLUMNAR,
    COLUMNS,
    JSON,
    SPAN_OF_COLUMNS,
    VERSION,
    Envelope,
    InlineBytes,
    Item,
    Priority,
    TextColumns,
    are_alike,
    decode,
    decode_bytes,
    encode,
    new_id,
    outline,
    stored_envelope,
)
from producers.wire.packing import COLUMNS_BYTES, ENVELOPE_ITEMS, outbox_row, pack
from results_store.sql.chunks.chunk_rows import SPAN

MANY = {"text": 5_000}


def item(seq: int, text: str = "a text", **changes: Any) -> Item:
    return Item(**{"seq": seq, "input": text, "tasks": ("topic", "sentiment"), **changes})


def envelope(*items: Item, **changes: Any) -> Envelope:
    usual = {"version": VERSION, "id": new_id(), "job": "job", "model": "text", "priority": Priority.BULK}
    return Envelope(**{**usual, "queued_at": 5.0, "items": items, **changes})


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(
    st.lists(st.tuples(TEXTS, st.one_of(st.none(), TEXTS)), min_size=1, max_size=30),
    st.integers(-(2**63), 2**63 - 1 - SPAN_OF_COLUMNS),
    st.integers(1, 100),
    st.one_of(st.none(), st.floats(0, 1e9)),
)
def test_columns_read_back_as_the_same_items(
    rows: list[tuple[str, str | None]], first: int, step: int, deadline_at: float | None
) -> None:
    """By every way to read them."""
    params = {"topic": {"top_k": 2}}
    items = [item(first + step * n, text, key=key, params=params) for n, (text, key) in enumerate(rows)]
    sent = envelope(*items, deadline_at=deadline_at, tenant="t")
    payload, content_type = encode(sent, in_columns=True)
    assert content_type == COLUMNAR
    assert stored_envelope(payload, content_type) == (sent, [])
    assert decode(decode_bytes(payload, content_type)) == (sent, [])
    seen = outline(sent.id, payload, content_type)
    assert [(one.seq, one.tasks, one.key) for one in seen.items] == [(one.seq, one.tasks, one.key) for one in items]


def test_columns_are_chosen_by_the_sender() -> None:
    assert encode(envelope(item(0), item(1)))[1] == JSON
    assert SPAN == SPAN_OF_COLUMNS


@pytest.mark.parametrize(
    "items",
    [
        (item(0), item(1, tasks=("topic",))),
        (item(0), item(1, params={"topic": {"top_k": 2}})),
        (item(0), item(0)),
        (item(1), item(0)),
        (item(0), item(SPAN_OF_COLUMNS)),
        (item(0), item(1, input=InlineBytes(b"x"))),
        (item(0, input=InlineBytes(b"x")), item(1)),
        (),
    ],
    ids=["tasks", "parameters", "one number", "descending", "far", "bytes", "bytes first", "none"],
)
def test_items_that_differ_are_no_columns(items: tuple[Item, ...]) -> None:
    assert not are_alike(items)
    assert encode(envelope(*items), in_columns=True)[1] != COLUMNAR


def _payload(**changes: Any) -> bytes:
    raw = msgspec.to_builtins(TextColumns.of(envelope(item(0), item(1), item(2))))
    return msgspec.msgpack.encode(raw | changes)


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (_payload(version=COLUMNS + 1), "version 4 is not supported"),
        (_payload(keys=["a"]), "not readable"),
        (_payload(places=[0, 1]), "not readable"),
        (_payload(places=[0, 2, 1]), "do not ascend"),
        (_payload(texts=[]), "there are none"),
        (_payload(texts=[1]), "Expected `str`"),
        (_payload(job="a\0b"), "NUL"),
        (_payload(more=1), "unknown field"),
        (_payload()[:-3], "truncated"),
        (b"", "not readable"),
    ],
)
@pytest.mark.parametrize("read", [stored_envelope, decode_bytes])
def test_what_is_no_columns_is_refused_by_name(read: Callable[[bytes, str], object], payload: bytes, said: str) -> None:
    with pytest.raises(InvalidMessage, match=said):
        read(payload, COLUMNAR)


def test_texts_that_are_alike_share_large_envelopes() -> None:
    """Others, and any after them, go in small ones; the order is kept."""
    items = [item(seq) for seq in range(300)]
    assert [len(group) for group in pack(items, 200)] == [200, 100]
    assert [len(group) for group in pack(items, 10)] == [len(group) for group in pack(items)]
    items[150] = item(150, tasks=("topic",))
    groups = list(pack(items, 1000))
    assert [one.seq for group in groups for one in group] == list(range(300))
    assert [len(group) for group in groups] == [150, ENVELOPE_ITEMS, 86]


def test_large_envelopes_are_bounded_by_bytes() -> None:
    items = [item(seq, "x" * (COLUMNS_BYTES // 4)) for seq in range(9)]
    assert all(sum(len(str(one.input)) for one in group) <= COLUMNS_BYTES for group in pack(items, 1000))


def test_a_gap_in_the_numbers_is_kept() -> None:
    """An input that was rejected leaves one."""
    items = [item(seq) for seq in range(200) if seq != 100]
    (group,) = pack(items, 1000)
    sent = envelope(*group)
    assert stored_envelope(*encode(sent, in_columns=True))[0] == sent


def rows_of(*tasks: str, priority: str = "bulk", **changes: Any) -> list[int]:
    """Return the sizes of the envelopes of 1,200 texts."""
    request = Request.check(Catalogue.builtin(), tasks, priority=priority)
    items = [request.item(seq, NewItem("a text"), field="inputs") for seq in range(1200)]
    order = Order(request, items, "j", Future(), **changes)
    return [len(one.items) for one in envelopes_of([order], 1.0, 1.0, MANY)]


def test_durable_bulk_of_simple_tasks_is_in_columns() -> None:
    """Urgent, standard and direct items are answered soon, and steps and other tasks have no blocks."""
    small = [64] * 18 + [48]
    assert rows_of("topic", "sentiment") == [1024, 176]
    assert rows_of("topic", "embedding") == [256] * 4 + [176]
    assert rows_of("topic", "entities") == small
    assert rows_of("topic", priority="standard") == rows_of("topic", priority="interactive") == small
    assert rows_of("topic", durable=False) == rows_of("topic", pipeline=True) == small


def test_a_row_says_what_is_in_the_columns() -> None:
    sent = envelope(*(item(seq) for seq in range(100)), deadline_at=8.0)
    row = outbox_row(sent, 0, in_columns=True)
    assert (row.content_type, row.items, row.results, row.deadline_s) == (COLUMNAR, 100, 200, 3.0)
