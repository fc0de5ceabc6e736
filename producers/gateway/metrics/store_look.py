"""The fleet as the store knows it: unfinished work, and the batches and failures since the look before."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from results_store.records import Batch, Pause
from results_store.sql.monitoring.fleet_figures import Demand, FailureTally, ItemTimes
from results_store.sql.waiting.schedules import ANY_HOST
from results_store.store import Store

#: The most batches of a look; the first look, from which the costs are learned, takes fewer.
MOST, FIRST = 20_000, 2_000

#: The newest batches of a look whose items are looked at, and the most items of each whose results are.
TRACED, ITEMS = 50, 8


@dataclass(frozen=True, slots=True)
class LastLook:
    """The end of the look before: batches begun before `batches_since` are known, others if `known` has their ids."""

    batches_since: float
    failures_since: float
    known: Collection[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreLook:
    """The state of the store `at` its own time (Unix seconds).

    `scheduled` tells that a submission by the clock waits for a worker that makes it.

    `batches` are new, newest first, and `traced` are some of them with their items. `cut_off` tells that there were
    more batches than a look takes. `tenants` has the tenants of the jobs in `traced`, `times` those of some items.
    """

    at: float
    demand: Sequence[Demand]
    dead: int
    pauses: Sequence[Pause] = ()
    scheduled: bool = False
    lanes: frozenset[int]
    batches: Sequence[Batch]
    traced: Sequence[Batch] = ()
    cut_off: bool = False
    tenants: Mapping[str, str]
    times: Sequence[ItemTimes]
    failures: Sequence[FailureTally]


def look_at_store(store: Store, last: LastLook | None) -> StoreLook:
    """Look at the store. The first look only tells the costs of recent batches. Raises StoreUnavailable."""
    at, demand = store.figures.demand()
    since = None if last is None else last.batches_since
    found = store.flight.recent(limit=FIRST if last is None else MOST, since=since)
    batches = [batch for batch in found if last is None or batch.id not in last.known]
    traced = [] if last is None else _traced(store, since, {batch.id for batch in batches})
    return StoreLook(
        at=at,
        demand=demand,
        dead=store.figures.dead_letters(),
        pauses=store.pauses.every(),
        scheduled=bool(store.schedules.due(ANY_HOST)),
        lanes=frozenset(tenant.lane for tenant in store.tenants.every()),
        batches=batches,
        traced=traced,
        cut_off=last is not None and len(found) == MOST,
        tenants=store.figures.tenants_of({job for batch in traced for job in (batch.trace or {})["jobs"]}),
        times=store.figures.times_of(_some_items(traced)) if traced else (),
        failures=() if last is None else store.figures.failures(last.failures_since),
    )


def _traced(store: Store, since: float | None, new: Collection[str]) -> list[Batch]:
    if not new:
        return []
    found = store.flight.recent(limit=TRACED, since=since, traces=True)
    return [batch for batch in found if batch.id in new and batch.trace]


def _some_items(traced: Sequence[Batch]) -> dict[str, set[int]]:
    """Return some items of each batch, as job → seqs."""
    chosen: defaultdict[str, set[int]] = defaultdict(set)
    for batch in traced:
        trace = batch.trace or {}
        items = trace["items"]
        for job, seq, *_ in items[:: max(1, len(items) // ITEMS)]:
            chosen[trace["jobs"][job]].add(seq)
    return chosen
