"""The figures and the pages of items that the gateway's page shows: pure functions of rows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers.gateway.activity import OPEN_DAY_S, RECORDED_S, SLICES, WINDOW_S, RecordedDays, busy_series, view
from producers.gateway.routes.browsing import page_of
from results_store.records import Depth, EnvelopeState, QueuedWork
from results_store.sql.flight import DAY_S, RecordedDay
from tests.integration.rows import batch, result


def depth(model: str, priority: int, items: int, oldest_at: float, state: EnvelopeState) -> Depth:
    return Depth(
        model=model, priority=priority, state=state, envelopes=1, items=items, results=items, oldest_at=oldest_at
    )


def test_what_waits_is_added_up_by_priority_and_by_model() -> None:
    """Over states and lanes; how long it takes is told only where it is known of all of it."""
    waiting = [
        depth("text", 9, 10, 900.0, EnvelopeState.ACCEPTED),
        depth("text", 9, 5, 800.0, EnvelopeState.PUBLISHED),
        depth("vision", 9, 1, 990.0, EnvelopeState.PUBLISHED),
        depth("vision", 5, 2, 999.0, EnvelopeState.PUBLISHED),
    ]
    work = [
        QueuedWork(model="text", priority=9, items=9, seconds_per_item=2.0, lane=0),
        QueuedWork(model="text", priority=9, items=6, seconds_per_item=2.0, lane=1),
        QueuedWork(model="vision", priority=9, items=1, seconds_per_item=None),
        QueuedWork(model="vision", priority=5, items=2, seconds_per_item=None),
    ]
    found = view(waiting, work, [], 1000.0)
    by_priority = {line["priority"]: (line["items"], line["oldest_s"], line["seconds"]) for line in found["queue"]}
    assert by_priority == {
        "interactive": (0, None, 0),
        "standard": (0, None, 0),
        5: (2, 1.0, None),
        "bulk": (16, 200.0, None),
    }
    assert [(line["model"], line["priority"], line["seconds"]) for line in found["models"]] == [
        ("text", "bulk", 30.0),
        ("vision", 5, None),
        ("vision", "bulk", None),
    ]


def test_the_course_of_a_minute() -> None:
    """Batches stand in the slices that they ran in; one that began before the window counts from its beginning."""
    ran = [
        batch("a", started_at=938.0, forward_s=3.0, items=4, priorities={"9": 4}),
        batch("b", started_at=997.0, forward_s=2.0, items=8, priorities={"0": 8}),
    ]
    found = view([], [], ran, 1000.0)
    (device,) = found["devices"]
    assert device["busy"] == pytest.approx(3.0 / 60)
    assert device["series"] == [0.5, *[0.0] * 27, 0.5, 0.5]
    assert found["batches"]["series"] == [2.0, *[0.0] * 27, 4.0, 0.0]
    assert found["batches"]["priorities"] == {"interactive": pytest.approx(0.4), "bulk": pytest.approx(0.6)}
    assert [one["id"] for one in found["recent"]] == ["b", "a"]
    assert (found["covered_s"], found["batches"]["items_per_s"]) == (60.0, 12 / 60)
    newest = view([], [], ran[1:], 1000.0, 5.0)  # of the others there were too many to read
    assert (newest["window_s"], newest["covered_s"], newest["batches"]["items_per_s"]) == (60.0, 5.0, 8 / 5)


@given(
    st.lists(st.tuples(st.floats(0, WINDOW_S), st.floats(0, 20)), max_size=20),
)
def test_slices_hold_all_the_time_that_was_spent(spans: list[tuple[float, float]]) -> None:
    """None lost between two slices, none counted twice; a slice is never fuller than full."""
    at, ran = 0.0, []
    for number, (gap_s, forward_s) in enumerate(spans):  # one after the other, as a device runs them
        ran.append(batch(str(number), started_at=at + gap_s, forward_s=forward_s))
        at += gap_s + forward_s
    series = busy_series(ran, 0.0, WINDOW_S)
    spent_s = sum(
        max(0.0, min(one.started_at + one.forward_s, WINDOW_S) - min(one.started_at, WINDOW_S)) for one in ran
    )
    assert len(series) == SLICES
    assert all(0 <= share <= 1 for share in series)
    assert sum(series) * WINDOW_S / SLICES == pytest.approx(spent_s, abs=0.02)


def test_a_page_ends_with_a_whole_item() -> None:
    """The rows read may break off inside one."""
    rows = [result(seq, task) for seq in range(3) for task in ("one", "two")]
    assert [len(group) for group in page_of(rows, 9, whole=True)[0]] == [2, 2, 2]
    assert page_of(rows, 9, whole=True)[1] is False
    assert page_of(rows, 3, whole=True)[1] is False
    assert page_of(rows, 2, whole=True)[1] is True
    found, more = page_of(rows[:5], 9, whole=False)
    assert ([group[0].seq for group in found], more) == ([0, 1], True)
    assert page_of(rows[:1], 9, whole=False) == ([rows[:1]], True)  # more tasks than are read: better some than none


def test_each_day_is_summed_once_however_many_ask() -> None:
    """At the same time or later; today again after a minute, and yesterday until its last batches are recorded."""
    summed: list[int] = []
    now_s = 100.0 * DAY_S + RECORDED_S - 1.0

    def day(number: int) -> RecordedDay:
        summed.append(number)
        return RecordedDay(batches=number, items=0, rows=0, tokens=0, padded_tokens=0, forward_s=0.0)

    async def ask(query: Callable[[Any], RecordedDay]) -> RecordedDay:
        await asyncio.sleep(0)
        return query(SimpleNamespace(flight=SimpleNamespace(day=day)))

    async def look() -> None:
        nonlocal now_s
        days = RecordedDays(ask, lambda: now_s, lambda: now_s)
        found = await asyncio.gather(*(days.last(number) for number in [366] * 20 + [2]))
        assert [len(one) for one in found] == [366] * 20 + [2]
        assert [(number, sums.batches) for number, sums in found[-1]] == [(99, 99), (100, 100)]
        assert sorted(summed) == [*range(100 - 365, 101)]
        summed.clear()
        for _ in range(2):
            now_s += OPEN_DAY_S + 1.0
            await days.last(366)
        assert summed == [99, 100, 100]

    asyncio.run(look())
