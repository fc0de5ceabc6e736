"""The figures of a fleet for its metrics and its scaler. Every query is bounded, and none scans the results."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sqlalchemy import RowMapping, and_, case, func, or_, select

from results_store.records import Result
from results_store.sql.chunks import stored_results
from results_store.sql.columns import among, clock
from results_store.sql.database import Database
from results_store.sql.schema import DEAD, FAILED, UNFINISHED, envelopes, jobs, results
from results_store.sql.waiting.postponing import IS_PAUSED, IS_POSTPONED

#: The upper bounds of the classes of deadlines, in seconds from now. The first holds the deadlines that are over.
DUE_WITHIN_S = (0.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 14400.0, 86400.0)

#: The class of later deadlines, and that of envelopes without a deadline.
LATER, NEVER = len(DUE_WITHIN_S), len(DUE_WITHIN_S) + 1

#: The most failed results that are counted at once.
MOST_FAILURES = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """The unfinished envelopes of a model, a priority and a class of deadlines, by the store's clock (Unix seconds).

    They were created between `oldest_at` and `newest_at`; `due_at` is the earliest deadline, None without deadlines.
    Workers hold `held` of them; `unclaimed_since` is the creation of the oldest other envelope, if there is one.
    `retried` were claimed more than once, `republished` returned to the outbox, and `deaths` of workers hit them.
    `paused` wait for the end of a pause, with `paused_items`, and `postponed` for their time: they are not unclaimed.
    """

    model: str
    priority: int
    envelopes: int
    items: int
    oldest_at: float
    newest_at: float
    due_at: float | None
    held: int
    unclaimed_since: float | None
    retried: int
    republished: int
    deaths: int
    paused: int = 0
    paused_items: int = 0
    postponed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemTimes:
    """A stored result's task, the priority of its job, and its times: queued, computed and stored (Unix seconds)."""

    task: str
    priority: int
    queued_at: float
    computed_at: float
    stored_at: float


@dataclass(frozen=True, slots=True)
class FailureTally:
    """A number of failed results of a task, with their kind of error."""

    task: str
    kind: str
    count: int


class FleetFigures:
    """Figures of the whole fleet, as `Store.figures`. Raises StoreUnavailable, like the store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def demand(self) -> tuple[float, list[Demand]]:
        """Return the store's time, and the unfinished work by model, priority and class of deadlines."""
        row, left_s = envelopes.c, envelopes.c.deadline_at - clock()
        classes = [(row.deadline_at.is_(None), NEVER), *((left_s <= most, n) for n, most in enumerate(DUE_WITHIN_S))]
        due = case(*classes, else_=LATER).label("due")
        held = and_(row.leased_until.is_not(None), row.leased_until > clock())
        wanted = select(
            row.model,
            row.priority,
            due,
            func.count().label("envelopes"),
            func.sum(row["items"]).label("items"),
            func.min(row.created_at).label("oldest_at"),
            func.max(row.created_at).label("newest_at"),
            func.min(row.deadline_at).label("due_at"),
            func.count(case((held, 1))).label("held"),
            func.min(case((or_(held, IS_PAUSED, IS_POSTPONED), None), else_=row.created_at)).label("unclaimed_since"),
            func.count(case((row.attempts > 1, 1))).label("retried"),
            func.count(case((row.accepted_at != row.created_at, 1))).label("republished"),
            func.sum(row.deaths).label("deaths"),
            func.count(case((IS_PAUSED, 1))).label("paused"),
            func.sum(case((IS_PAUSED, row["items"]), else_=0)).label("paused_items"),
            func.count(case((IS_POSTPONED, 1))).label("postponed"),
        )
        with self._database.read() as connection:
            now = float(connection.execute(select(clock())).scalar_one())
            found = connection.execute(wanted.where(UNFINISHED).group_by(row.model, row.priority, due)).mappings()
            return now, [_demand(line) for line in found]

    def failures(self, since: float) -> list[FailureTally]:
        """Return the results that failed after `since` by the store's clock, at most `MOST_FAILURES` of them."""
        kind = func.coalesce(results.c.error["kind"].as_string(), "").label("kind")
        new = select(results.c.task, kind).where(FAILED, results.c.stored_at > since)
        newest = new.order_by(results.c.stored_at.desc()).limit(MOST_FAILURES).subquery().c
        counted = select(newest.task, newest.kind, func.count()).group_by(newest.task, newest.kind)
        with self._database.read() as connection:
            return [FailureTally(task, kind, count) for task, kind, count in connection.execute(counted)]

    def dead_letters(self) -> int:
        """Return the number of envelopes that were given up."""
        with self._database.read() as connection:
            return int(connection.execute(select(func.count()).select_from(envelopes).where(DEAD)).scalar_one())

    def tenants_of(self, ids: Collection[str]) -> dict[str, str]:
        """Return the tenant of each of these jobs that still exists."""
        with self._database.read() as connection:
            wanted = select(jobs.c.id, jobs.c.tenant).where(among(connection, jobs.c.id, list(ids)))
            return {row.id: row.tenant for row in connection.execute(wanted)}

    def times_of(self, items: Mapping[str, Collection[int]]) -> list[ItemTimes]:
        """Return the times of the succeeded results of these items (job → seqs), as far as they are stored."""
        found: list[ItemTimes] = []
        with self._database.read() as connection:
            ask = stored_results.asking(connection)
            known = select(jobs.c.id, jobs.c.priority).where(among(connection, jobs.c.id, list(items)))
            for job, priority in connection.execute(known).all():
                rows = stored_results.results_of(ask, job, items[job])
                found += [times for row in rows if (times := _times(row, priority))]
        return found


def _times(row: Result, priority: int) -> ItemTimes | None:
    if row.queued_at is None or row.computed_at is None or row.stored_at is None:
        return None
    return ItemTimes(
        task=row.task,
        priority=priority,
        queued_at=row.queued_at,
        computed_at=row.computed_at,
        stored_at=row.stored_at,
    )


def _demand(line: RowMapping) -> Demand:
    fields = {name: value for name, value in line.items() if name != "due"}
    sums = {name: int(line[name]) for name in ("items", "deaths", "paused_items")}  # they may be decimals
    return Demand(**{**fields, **sums})
