"""The flight recorder: the micro-batches that ran, and the estimates for queued work that follow from them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import Connection, case, func, not_, select

from results_store.errors import UnknownBatch
from results_store.records import Batch, QueuedWork
from results_store.sql import driver_statements
from results_store.sql.columns import among, clock, compact_json
from results_store.sql.database import Database
from results_store.sql.result_rows import insert_new
from results_store.sql.schema import UNFINISHED, batches, envelopes
from results_store.sql.waiting.postponing import IS_PAUSED

#: The newest batches that estimate the fleet's speed: at most so many, from at most so many seconds before the newest.
_RECENT = 500
_RECENT_S = 60.0

_NAMES = tuple(field.name for field in fields(Batch))
_JSON = ("heads", "priorities", "trace")
_BRIEF = [batches.c[name] for name in _NAMES if name != "trace"]


#: Seconds of a day.
DAY_S = 86400


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedDay:
    """The sums of a day's micro-batches; `forward_s` are the seconds in forward passes of all devices together."""

    batches: int
    items: int
    rows: int
    tokens: int
    padded_tokens: int
    forward_s: float


def record(connection: Connection, new: Sequence[Batch]) -> None:
    """Add batches, in the caller's transaction."""
    rows: list[dict[str, Any]] = [{name: getattr(batch, name) for name in _NAMES} for batch in new]
    if connection.dialect.name != "sqlite":
        if rows:
            connection.execute(insert_new(connection, batches), rows)
        return
    for row in rows:
        row |= {name: None if row[name] is None else compact_json(row[name]) for name in _JSON}
        driver_statements.run(connection, insert_new(connection, batches), row)


class FlightRecorder:
    """The micro-batches of the store, as `Store.flight`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def recent(
        self,
        *,
        limit: int = 20,
        since: float | None = None,
        ended_since: float | None = None,
        model: str | None = None,
        traces: bool = False,
    ) -> list[Batch]:
        """Return the newest micro-batches (of a model), newest first: begun after `since`, ended after `ended_since`.

        Only `since` has an index. Only `traces` adds the items of each batch, which are most of a row.
        """
        wanted = select(*([batches.c[name] for name in _NAMES] if traces else _BRIEF))
        if since is not None:
            wanted = wanted.where(batches.c.started_at > since)
        if ended_since is not None:
            wanted = wanted.where(batches.c.started_at + batches.c.forward_s > ended_since)
        if model is not None:
            wanted = wanted.where(batches.c.model == model)
        wanted = wanted.order_by(batches.c.started_at.desc(), batches.c.id.desc()).limit(limit)
        with self._database.read() as connection:
            return [Batch(**row) for row in connection.execute(wanted).mappings()]

    def batch(self, id_: str) -> Batch:
        """Return a micro-batch with its trace. Raises UnknownBatch."""
        with self._database.read() as connection:
            row = connection.execute(select(batches).where(batches.c.id == id_)).mappings().one_or_none()
        if row is None:
            raise UnknownBatch(f"no batch {id_!r}; `argosy batches` lists the newest ones")
        return Batch(**row)

    def passes(self, ids: Collection[str]) -> dict[str, tuple[float, float]]:
        """Return the start (Unix seconds) and the seconds of the forward pass of these micro-batches, by id."""
        columns = (batches.c.id, batches.c.started_at, batches.c.forward_s)
        with self._database.read() as connection:
            rows = connection.execute(select(*columns).where(among(connection, batches.c.id, ids)))
            return {id_: (started_at, forward_s) for id_, started_at, forward_s in rows}

    def day(self, day: int) -> RecordedDay:
        """Return the sums of the micro-batches that began on a day of UTC, counted from 1970, by workers' clocks."""
        names = ("items", "rows", "tokens", "padded_tokens", "forward_s")
        sums = (func.coalesce(func.sum(batches.c[name]), 0) for name in names)
        of_day = (batches.c.started_at >= day * DAY_S, batches.c.started_at < (day + 1) * DAY_S)
        with self._database.read() as connection:
            count, *found = connection.execute(select(func.count(), *sums).where(*of_day)).one()
        whole = {name: int(value) for name, value in zip(names[:-1], found[:-1], strict=True)}
        return RecordedDay(batches=count, **whole, forward_s=float(found[-1]))

    def queued_work(self) -> list[QueuedWork]:
        """Return the queued work of each model and priority, with its estimated time if known."""
        line = (envelopes.c.model, envelopes.c.priority, envelopes.c.lane)
        wanted = select(*line, func.sum(envelopes.c["items"])).where(UNFINISHED, not_(IS_PAUSED))
        wanted = wanted.group_by(*line).order_by(*line)
        with self._database.read() as connection:
            rates = _seconds_per_item(connection)
            return [
                QueuedWork(
                    model=model, priority=priority, items=int(items), seconds_per_item=rates.get(model), lane=lane
                )
                for model, priority, lane, items in connection.execute(wanted)
            ]

    def seconds_per_item(self) -> Mapping[str, float]:
        """Return the fleet's recent seconds for an item by model, also of models without queued work."""
        with self._database.read() as connection:
            return _seconds_per_item(connection)


def _seconds_per_item(connection: Connection) -> Mapping[str, float]:
    """Return the seconds per item of each model: of all devices that share the work, with the host's part.

    The devices' rates add up, since a fast device takes more of the work than a slow one.
    """
    # times are by the workers' clocks: a worker whose clock is ahead must not hide the other workers' batches
    known = batches.c.started_at < clock() + _RECENT_S
    since = select(func.max(batches.c.started_at) - _RECENT_S).where(known).scalar_subquery()
    newest = select(batches).where(batches.c.started_at > since, known).order_by(batches.c.started_at.desc())
    ran = newest.limit(_RECENT).subquery().c
    crowded = case((ran.host_s.is_not(None), ran["items"]), else_=0)
    sums = (func.sum(ran.forward_s), func.sum(ran["items"]), func.sum(ran.host_s), func.sum(crowded))
    found = connection.execute(select(ran.model, *sums).group_by(ran.model, ran.worker))
    rates: defaultdict[str, float] = defaultdict(float)
    for model, device_s, items, host_s, items_crowded in found:
        seconds = device_s / max(int(items), 1) + (host_s or 0.0) / max(int(items_crowded), 1)
        rates[model] += 1 / max(seconds, 1e-9)
    return {model: 1 / rate for model, rate in rates.items()}
