"""The spool of a site: a row for each item and task whose result is not final, and notes.

A row moves from state to state (`EdgeState`); each move names the state that it leaves, so that of two movers one wins.
docs/decisions/0051-edge.md says what each state means, and what follows if the forwarder dies in it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

from sqlalchemy import and_, bindparam, delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from results_store.records import Result
from results_store.sql.chunks.stored_results import asking, results_of
from results_store.sql.columns import among
from results_store.sql.database import Database, Weight
from results_store.sql.result_rows import insert_new
from results_store.sql.schema import edge_items, edge_notes

_ITEM = edge_items.c


class EdgeState(StrEnum):
    """The states of an item at a site before its result is final."""

    NEW = "new"
    ASKED = "asked"
    WAITING = "waiting"
    BATCHED = "batched"
    SENT = "sent"
    ANSWERED = "answered"


#: The states in which an item waits for the centre.
FOR_CENTRE = (EdgeState.WAITING, EdgeState.BATCHED, EdgeState.SENT)


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeItem:
    """An item and task of a site, keyed like its result.

    `due_s` is the end of its deadline by the site's clock. `ask` is the submission to the site's own fleet, whose job
    is `site_job`; `batch` the one to the centre, whose job is `centre_job`; `place` the item's number there. `site` and
    `centre` are answers: ``{"state", "output", "error", "model", "model_revision"}``.
    """

    job: str
    seq: int
    task: str
    envelope: str
    state: EdgeState
    priority: int
    tenant: str = ""
    key: str | None = None
    params: dict[str, Any] | None = None
    bytes: int = 0
    queued_at: float = 0.0
    due_s: float | None = None
    ask: str | None = None
    site_job: str | None = None
    batch: str | None = None
    centre_job: str | None = None
    place: int | None = None
    site: dict[str, Any] | None = None
    centre: dict[str, Any] | None = None


_COLUMNS = [_ITEM[field.name] for field in fields(EdgeItem)]
_IN_ORDER = (_ITEM.priority, _ITEM.job, _ITEM.seq, _ITEM.task)
_THIS = and_(_ITEM.job == bindparam("_job"), _ITEM.seq == bindparam("_seq"), _ITEM.task == bindparam("_task"))


class EdgeSpool:
    """The rows in a database, as `Store.edge`. Methods raise StoreUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, items: Sequence[EdgeItem]) -> None:
        """Add items that are not there."""
        if items:
            with self._database.write(Weight.ACCEPTED) as connection:
                connection.execute(insert_new(connection, edge_items), [asdict(item) for item in items])

    def items(self, *states: EdgeState, limit: int = 1000) -> list[EdgeItem]:
        """Return items in these states, urgent ones first, a job's in their order."""
        wanted = select(*_COLUMNS).where(_ITEM.state.in_([state.value for state in states]))
        return self._found(wanted.order_by(*_IN_ORDER).limit(limit))

    def of_job(self, job: str) -> list[EdgeItem]:
        """Return a job's items, in their order."""
        return self._found(select(*_COLUMNS).where(_ITEM.job == job).order_by(*_IN_ORDER))

    def of_batch(self, batch: str) -> list[EdgeItem]:
        """Return a batch's items, by their places."""
        return self._found(select(*_COLUMNS).where(_ITEM.batch == batch).order_by(_ITEM.place))

    def due(self, at_s: float, limit: int = 1000) -> list[EdgeItem]:
        """Return items that wait for the centre, or shall be asked, whose deadline was before `at_s`."""
        states = [state.value for state in (EdgeState.NEW, *FOR_CENTRE)]
        wanted = select(*_COLUMNS).where(_ITEM.state.in_(states), _ITEM.due_s <= at_s)
        return self._found(wanted.order_by(*_IN_ORDER).limit(limit))

    def waiting(self, limit: int, *, newest: bool) -> list[EdgeItem]:
        """Return the items that are not yet sent to the centre: those that wait longest, or the newest."""
        by_age = (_ITEM.queued_at, _ITEM.job, _ITEM.seq, _ITEM.task)
        wanted = select(*_COLUMNS).where(_ITEM.state == EdgeState.WAITING.value).limit(limit)
        return self._found(wanted.order_by(*(column.desc() if newest else column for column in by_age)))

    def site_answers(self, limit: int = 1000) -> list[tuple[EdgeItem, Result]]:
        """Return the asked items that the site's fleet has answered, each with that result."""
        asked = self._found(select(*_COLUMNS).where(_ITEM.state == EdgeState.ASKED.value).order_by(*_IN_ORDER))
        places: dict[str, set[int]] = {}
        for item in asked:
            if item.site_job is not None and item.place is not None:
                places.setdefault(item.site_job, set()).add(item.place)
        answers: dict[tuple[str | None, int | None], Result] = {}
        with self._database.read() as connection:
            ask = asking(connection)
            for job, own in places.items():
                answers |= {(job, row.seq): row for row in results_of(ask, job, own)}
                if len(answers) >= limit:
                    break
        found = ((item, answers.get((item.site_job, item.place))) for item in asked)
        return [(item, answer) for item, answer in found if answer is not None][:limit]

    def _found(self, wanted: Any) -> list[EdgeItem]:
        with self._database.read() as connection:
            return [_item(row) for row in connection.execute(wanted).mappings()]

    def move(self, items: Sequence[EdgeItem], to: EdgeState, **changes: Any) -> int:
        """Move items on from the states that they have here; return how many had them still.

        `changes` are new values of all; a list has one for each item.
        """
        if not items:
            return 0
        names = {name: bindparam(f"_new_{name}", type_=_ITEM[name].type) for name in changes}
        moved = update(edge_items).where(_THIS, _ITEM.state == bindparam("_from"))
        moved = moved.values(state=to.value, **names)
        rows = [
            {
                **_key(item),
                "_from": item.state.value,
                **{f"_new_{name}": own[n] if isinstance(own, list) else own for name, own in changes.items()},
            }
            for n, item in enumerate(items)
        ]
        with self._database.write(Weight.ACCEPTED) as connection:
            return sum(connection.execute(moved, row).rowcount for row in rows)

    def remove(self, items: Sequence[EdgeItem]) -> None:
        """Remove items whose results are stored."""
        if items:
            with self._database.write(Weight.NOTE) as connection:
                connection.execute(delete(edge_items).where(_THIS), [_key(item) for item in items])

    def left(self, envelopes: Collection[str]) -> dict[str, int]:
        """Return the number of items of each of these envelopes; none is left out."""
        wanted = select(_ITEM.envelope, func.count()).group_by(_ITEM.envelope)
        with self._database.read() as connection:
            there = among(connection, _ITEM.envelope, list(envelopes))
            return {envelope: int(count) for envelope, count in connection.execute(wanted.where(there))}

    def envelopes(self) -> list[str]:
        """Return the envelopes that have items here."""
        with self._database.read() as connection:
            return list(connection.execute(select(_ITEM.envelope).distinct()).scalars())

    def jobs(self) -> list[str]:
        """Return the jobs that have items here."""
        with self._database.read() as connection:
            return list(connection.execute(select(_ITEM.job).distinct()).scalars())

    def counts(self) -> dict[EdgeState, tuple[int, int]]:
        """Return the number of items by state, and the bytes of their inputs."""
        wanted = select(_ITEM.state, func.count(), func.sum(_ITEM.bytes)).group_by(_ITEM.state)
        with self._database.read() as connection:
            return {EdgeState(state): (int(n), int(size)) for state, n, size in connection.execute(wanted)}

    def for_centre(self) -> tuple[int, int]:
        """Return the number of items that wait for the centre, and the bytes of their inputs."""
        found = self.counts()
        items, size = zip((0, 0), *(found[state] for state in FOR_CENTRE if state in found), strict=True)
        return sum(items), sum(size)

    def note(self, name: str, value: Mapping[str, Any]) -> None:
        """Keep a note under a name, over the one before."""
        with self._database.write(Weight.NOTE) as connection:
            insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
            values = insert(edge_notes).values(name=name, value=dict(value))
            kept = values.on_conflict_do_update(index_elements=["name"], set_={"value": dict(value)})
            connection.execute(kept)

    def noted(self, name: str) -> dict[str, Any]:
        """Return the note under a name; empty if there is none."""
        with self._database.read() as connection:
            found = connection.execute(select(edge_notes.c.value).where(edge_notes.c.name == name)).scalar()
        return dict(found or {})


def _key(item: EdgeItem) -> dict[str, Any]:
    return {"_job": item.job, "_seq": item.seq, "_task": item.task}


def _item(row: Mapping[Any, Any]) -> EdgeItem:
    own = {field.name: row[field.name] for field in fields(EdgeItem)}
    return EdgeItem(**{**own, "state": EdgeState(own["state"])})
