"""The flight recorder: the micro-batches that ran, and the estimates for queued work that follow from them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from sqlalchemy import Connection, case, func, not_, select

from results_store.errors import UnknownBatch
from results_store.records import Batch, QueuedWork
from results_store.sql import driver_statements
from results_store.sql.columns import clock, compact_json
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


def record(connection: Connection, batch: Batch) -> None:
    """Add a batch, in the caller's transaction."""
    row: dict[str, Any] = {name: getattr(batch, name) for name in _NAMES}
    if connection.dialect.name == "sqlite":
        row |= {name: None if row[name] is None else compact_json(row[name]) for name in _JSON}
    driver_statements.run(connection, insert_new(connection, batches), row)


class FlightRecorder:
    """The micro-batches of the store, as `Store.flight`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def recent(self, *, limit: int = 20, since: float | None = None, traces: bool = False) -> list[Batch]:
        """Return the newest micro-batches, newest first, begun after `since`.

        Only `traces` adds the items of each batch, which are most of a row.
        """
        wanted = select(*([batches.c[name] for name in _NAMES] if traces else _BRIEF))
        if since is not None:
            wanted = wanted.where(batches.c.started_at > since)
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
