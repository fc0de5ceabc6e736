"""The activity of the fleet in numbers: queued work, device utilisation, recent batches, and each day's batches."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import msgspec
from cachetools import TLRUCache

from producers.commands.batch_figures import Figures, Window, figures
from producers.commands.serving import unserved_sentence
from producers.gateway.views import priority_name
from producers.wire.errors import ArgosyError
from producers.wire.live_nodes import LiveNode
from producers.wire.messages import Priority
from results_store.records import Batch, Depth, QueuedWork
from results_store.sql.flight import DAY_S, RecordedDay
from results_store.store import Store

#: Length of the window of the figures, and the number of slices in each series.
WINDOW_S = 60.0
SLICES = 30

#: The store is queried once in this time, however many callers ask.
FRESH_S = 1.0

#: The sums of a day are kept so long. Of a day that is over, nothing changes but by a purge.
OPEN_DAY_S = 60.0
ENDED_DAY_S = 6 * 3600.0

#: A day's batches are all recorded so long after its end.
RECORDED_S = 3600.0

#: The number of days whose sums are kept; a request has up to 366.
KEPT_DAYS = 400

#: The number of newest batches in the list.
LISTED = 25


class Activity:
    """The latest figures of the fleet, for a single event loop. `ask` runs a query on the store, `nodes` asks Redis."""

    def __init__(
        self,
        ask: Callable[[Callable[[Store], dict[str, Any]]], Awaitable[dict[str, Any]]],
        nodes: Callable[[], Awaitable[list[LiveNode]]],
    ) -> None:
        self._ask = ask
        self._nodes = nodes
        self._window = Window(WINDOW_S)
        self._one_at_a_time = asyncio.Lock()
        self._looked_at = float("-inf")
        self._seen: dict[str, Any] = {}

    async def now(self) -> dict[str, Any]:
        """Return the figures as JSON. Raises StoreUnavailable."""
        async with self._one_at_a_time:
            if time.monotonic() - self._looked_at >= FRESH_S:
                found, nodes = await self._ask(self._look), await self._live()
                self._seen = found | served(found["models"], nodes)
                self._looked_at = time.monotonic()
            return self._seen

    async def unserved(self, models: Iterable[str]) -> str | None:
        """Return a sentence if no live worker serves some of these models; None also if Redis does not say."""
        nodes = await self._live()
        return None if nodes is None else unserved_sentence(models, _models(nodes))

    async def _live(self) -> list[LiveNode] | None:
        """Return the live workers; None if Redis does not say."""
        try:
            return await self._nodes()
        except ArgosyError:
            return None

    def _look(self, store: Store) -> dict[str, Any]:
        at = time.time()
        batches = self._window.look(store, at)
        found = view(store.depth(), store.flight.queued_work(), batches, at, at - self._window.since)
        return found | {"pauses": [asdict(one) for one in store.pauses.every()]}


class RecordedDays:
    """The recorded work of each day, for a single event loop. However many ask, the store sums a day once.

    `ask` runs a query on the store. `now` is in Unix seconds, `clock` measures how long sums are kept.
    """

    def __init__(
        self,
        ask: Callable[[Callable[[Store], RecordedDay]], Awaitable[RecordedDay]],
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._now = now
        self._one_at_a_time = asyncio.Lock()
        self._kept: TLRUCache[int, RecordedDay] = TLRUCache(KEPT_DAYS, self._kept_until, clock)

    async def last(self, days: int) -> list[tuple[int, RecordedDay]]:
        """Return the last days of UTC, by their number since 1970, with today at the end. Raises StoreUnavailable."""
        today = int(self._now() // DAY_S)
        return [(day, await self._day(day)) for day in range(today - days + 1, today + 1)]

    async def _day(self, day: int) -> RecordedDay:
        async with self._one_at_a_time:  # for a single day: who asks for a few does not wait for who asks for a year
            kept = self._kept.get(day)
            if kept is None:
                kept = self._kept[day] = await self._ask(lambda store: store.flight.day(day))
            return kept

    def _kept_until(self, day: int, _: RecordedDay, at: float) -> float:
        ended = self._now() >= (day + 1) * DAY_S + RECORDED_S
        return at + (ENDED_DAY_S if ended else OPEN_DAY_S)


def served(waiting: Sequence[dict[str, Any]], nodes: Sequence[LiveNode] | None) -> dict[str, Any]:
    """Return the live workers, the waiting work with whether one of them serves its model, and a sentence if not.

    Each of these is None if the workers are unknown.
    """
    if nodes is None:
        return {"workers": None, "models": [line | {"served": None} for line in waiting], "unserved": None}
    models = _models(nodes)
    return {
        "workers": [msgspec.to_builtins(node) for node in nodes],
        "models": [line | {"served": line["model"] in models} for line in waiting],
        "unserved": unserved_sentence([line["model"] for line in waiting], models),
    }


def _models(nodes: Sequence[LiveNode]) -> set[str]:
    return {model for node in nodes for model in node.models}


def view(
    depth: Sequence[Depth],
    work: Sequence[QueuedWork],
    batches: Sequence[Batch],
    at: float,
    covered_s: float = WINDOW_S,
) -> dict[str, Any]:
    """Return the figures at a time. Times are in seconds, shares from 0 to 1, and `series` go from old to new.

    The batches are those of the last `covered_s` seconds, which are less than the window if it has too many to read.
    """
    since = at - WINDOW_S
    found = figures(batches, at - covered_s, at)
    return {
        "at": at,
        "window_s": WINDOW_S,
        "covered_s": covered_s,
        "queue": [_waiting(depth, work, priority, at) for priority in _priorities(depth)],
        "models": list(_by_model(depth, work, at)),
        "devices": _devices(found, batches, since, at),
        "batches": _figures(found, batches, since),
        "recent": [_brief(batch) for batch in reversed(batches[-LISTED:])],
    }


def _priorities(depth: Sequence[Depth]) -> list[int]:
    return sorted({*map(int, Priority), *(one.priority for one in depth)})


def _waiting(depth: Sequence[Depth], work: Sequence[QueuedWork], priority: int, at: float) -> dict[str, Any]:
    own = [one for one in depth if one.priority == priority]
    return {"priority": priority_name(priority), **_sums(own, [one for one in work if one.priority == priority], at)}


def _by_model(depth: Sequence[Depth], work: Sequence[QueuedWork], at: float) -> Iterator[dict[str, Any]]:
    for model, priority in sorted({(one.model, one.priority) for one in depth}):
        own = [one for one in depth if (one.model, one.priority) == (model, priority)]
        its = [one for one in work if (one.model, one.priority) == (model, priority)]
        yield {"model": model, "priority": priority_name(priority), **_sums(own, its, at)}


def _sums(depth: Sequence[Depth], work: Sequence[QueuedWork], at: float) -> dict[str, Any]:
    """Add up queued work. The time is unknown unless it is known for every part."""
    seconds = [one.seconds for one in work]
    known = [one for one in seconds if one is not None]
    return {
        "items": sum(one.items for one in depth),
        "envelopes": sum(one.envelopes for one in depth),
        "oldest_s": max(0.0, at - min(one.oldest_at for one in depth)) if depth else None,
        "seconds": sum(known) if len(known) == len(seconds) else None,
    }


def _devices(found: Figures, batches: Sequence[Batch], since: float, until: float) -> list[dict[str, Any]]:
    return [
        {
            "name": device.name,
            "busy": min(device.busy, 1.0),
            "batches": device.batches,
            "items_per_s": device.items_per_s,
            "series": busy_series(
                [one for one in batches if device.name == f"{one.device} ({one.worker})"], since, until
            ),
        }
        for device in found.devices
    ]


def busy_series(batches: Sequence[Batch], since: float, until: float, slices: int = SLICES) -> list[float]:
    """Return the busy share of a device for each slice between two times."""
    width_s = (until - since) / slices
    busy_s = [0.0] * slices
    for batch in batches:
        begin, end = max(batch.started_at, since), min(batch.started_at + batch.forward_s, until)
        place = int((begin - since) / width_s)
        while place < slices and since + place * width_s < end:
            left, right = since + place * width_s, since + (place + 1) * width_s
            busy_s[place] += max(0.0, min(end, right) - max(begin, left))
            place += 1
    return [min(1.0, round(one / width_s, 4)) for one in busy_s]


def _figures(found: Figures, batches: Sequence[Batch], since: float) -> dict[str, Any]:
    return {
        "count": found.batches,
        "items": found.items,
        "rows": found.rows,
        "items_per_s": found.items / found.seconds,
        "padding": found.waste,
        "wait_ms": found.wait_ms,
        "cached": found.cached,
        "sizes": [[size, count] for size, count in found.sizes.items()],
        "paddings": [[end, count] for end, count in found.wastes.items()],
        "priorities": {str(priority_name(priority)): share for priority, share in found.priorities.items()},
        "series": _items_series(batches, since),
    }


def _items_series(batches: Sequence[Batch], since: float) -> list[float]:
    """Return the items per second of each slice."""
    width_s = WINDOW_S / SLICES
    items = [0] * SLICES
    for batch in batches:
        items[min(SLICES - 1, max(0, int((batch.started_at - since) / width_s)))] += batch.items
    return [count / width_s for count in items]


def _brief(batch: Batch) -> dict[str, Any]:
    names = ("id", "model", "device", "worker", "started_at", "forward_s", "queue_wait_s", "items", "rows", "heads")
    priorities = {str(priority_name(int(value))): count for value, count in batch.priorities.items()}
    padding = 1 - batch.tokens / max(batch.padded_tokens, 1)
    return {name: getattr(batch, name) for name in names} | {"priorities": priorities, "padding": padding}
