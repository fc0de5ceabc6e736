"""The number of workers that unfinished work needs, by its seconds and its deadlines. Pure: it reads nothing.

A worker takes more urgent work first, and within a priority roughly the oldest. So the work of a priority is done on
time if all work down to this priority fits into the time for it; a deadline is kept if the work before it fits into
the time that is left. The largest of these numbers is wanted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from producers.wire.messages import Priority
from results_store.sql.monitoring.fleet_figures import Demand

#: Seconds within which the waiting work of a priority should be done.
WITHIN_S: Mapping[Priority, float] = {Priority.INTERACTIVE: 10.0, Priority.STANDARD: 60.0, Priority.BULK: 600.0}

#: No deadline asks for workers that would be needed for less: a new worker takes about as long to start.
LEAST_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The number of workers, with the reason. `seconds` is the known device time of the work; the work of the models
    in `unmeasured` is not in it, because no batch of theirs is known.
    """

    workers: int
    seconds: float
    reason: str
    unmeasured: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Need:
    workers: float
    reason: str


def wanted_workers(
    demand: Sequence[Demand],
    costs: Mapping[str, float],
    *,
    at: float,
    messages: int = 0,
    within_s: Mapping[Priority, float] = WITHIN_S,
    scheduled: bool = False,
) -> Wanted:
    """Return the number of workers for the unfinished work `at` the store's time, without paused work.

    `costs` are the seconds of a device for an item of each model. `messages` wait beside the store's envelopes: there
    is no telling how long they take, so they want a worker, and no more. So does a `scheduled` submission that is due.
    """
    demand = [one for one in demand if one.envelopes > one.paused]
    seconds = sum(_seconds(one, costs) for one in demand)
    unmeasured = tuple(sorted({one.model for one in demand if one.model not in costs}))
    needs = [*_by_priority(demand, costs, within_s), *_by_deadline(demand, costs, at)]
    most = max(needs, key=lambda need: need.workers, default=_Need(0.0, "nothing waits"))
    if most.workers <= 1.0:
        most = _Need(most.workers, _reason_for_one(demand, messages, scheduled=scheduled))
    workers = max(math.ceil(round(most.workers, 6)), int(bool(demand or messages or scheduled)))
    return Wanted(workers=workers, seconds=seconds, reason=most.reason, unmeasured=unmeasured)


def _reason_for_one(demand: Sequence[Demand], messages: int, *, scheduled: bool) -> str:
    if demand:
        return "a worker does the work in time"
    if scheduled:
        return "a scheduled submission is due"
    return "messages wait, or are held by a worker, that are not in the store" if messages else "nothing waits"


def _by_priority(
    demand: Sequence[Demand], costs: Mapping[str, float], within_s: Mapping[Priority, float]
) -> Iterator[_Need]:
    for priority, most_s in within_s.items():
        work_s = sum(_seconds(one, costs) for one in demand if _class_of(one.priority) <= priority)
        reason = f"{work_s:,.0f} s of work down to {priority.name.lower()} are to be done within {most_s:g} s"
        yield _Need(work_s / most_s, reason)


def _by_deadline(demand: Sequence[Demand], costs: Mapping[str, float], at: float) -> Iterator[_Need]:
    for line in demand:
        left_s = math.inf if line.due_at is None else line.due_at - at
        if 0 < left_s < math.inf:  # a deadline that is over costs no device time
            work_s = sum(_seconds(other, costs) * _share_before(other, line) for other in demand)
            reason = f"{work_s:,.0f} s of work come before a deadline in {left_s:,.0f} s, of {line.model}"
            yield _Need(work_s / max(left_s, LEAST_S), reason)


def _share_before(other: Demand, line: Demand) -> float:
    """Return the share of other work that runs before the newest of `line`: as if it had arrived at an even pace."""
    if other.priority != line.priority:
        return float(other.priority < line.priority)
    if other.newest_at <= line.newest_at:
        return 1.0
    return max(0.0, line.newest_at - other.oldest_at) / (other.newest_at - other.oldest_at)


def _seconds(line: Demand, costs: Mapping[str, float]) -> float:
    return (line.items - line.paused_items) * costs.get(line.model, 0.0)


def _class_of(priority: int) -> Priority:
    """Return the class of a priority of Celery, of which other programs use all ten."""
    return next((known for known in sorted(Priority) if priority <= known), Priority.BULK)


def of_models(demand: Iterable[Demand], models: Iterable[str]) -> list[Demand]:
    """Return the work of these models; of all models if there are none."""
    wanted = frozenset(models)
    return [line for line in demand if not wanted or line.model in wanted]
