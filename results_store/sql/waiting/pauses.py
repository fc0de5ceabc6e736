"""What an operator has paused: models, tasks and tenants.

A claim reads the pauses in its own transaction, so a pause holds for all workers from the moment at which it is stored.
"""

from __future__ import annotations

from typing import Any, get_args

from sqlalchemy import Connection, delete, exists, func, literal, or_, select

from results_store.records import Pause, PauseKind
from results_store.sql.auditing.audit_log import Actor, note
from results_store.sql.columns import clock, text
from results_store.sql.database import Database, Weight
from results_store.sql.result_rows import insert_new
from results_store.sql.schema import PUBLISHED, UNFINISHED, envelopes, jobs, pauses

KINDS: tuple[PauseKind, ...] = get_args(PauseKind)


class Pauses:
    """The pauses in the store, as `Store.pauses`. Raises StoreUnavailable, like the store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def every(self) -> list[Pause]:
        """Return the pauses by kind and name, each with the number of envelopes that have come up and wait for it."""
        with self._database.read() as connection:
            found = connection.execute(select(pauses).order_by(pauses.c.subject)).mappings().all()
            waiting = _waiting(connection) if found else {}
        return [_pause(row["subject"], row["reason"], row["paused_at"], waiting) for row in found]

    def subjects(self) -> frozenset[str]:
        """Return the keys of the pauses: ``model:NAME``, ``task:NAME``, ``tenant:NAME``."""
        with self._database.read() as connection:
            return frozenset(connection.execute(select(pauses.c.subject)).scalars())

    def holding(self, job: str) -> list[Pause]:
        """Return the pauses that hold results of a job: of its models, its tenant, or tasks of its envelopes."""
        open_ = (UNFINISHED, envelopes.c.job == job)
        models = select(literal("model:") + envelopes.c.model).where(*open_)
        tenants = select(literal("tenant:") + jobs.c.tenant).where(jobs.c.id == job, exists().where(*open_))
        found = select(envelopes.c.paused_by).where(*open_)
        with self._database.read() as connection:
            any_ = or_(*(pauses.c.subject.in_(one) for one in (models, tenants, found)))
            rows = connection.execute(select(pauses).where(any_).order_by(pauses.c.subject)).mappings()
            return [_pause(row["subject"], row["reason"], row["paused_at"], {}) for row in rows]

    def pause(self, kind: PauseKind, name: str, reason: str = "", *, by: Actor | None = None) -> bool:
        """Pause a model, task or tenant. Return whether it was not paused before; the first reason stays."""
        with self._database.write(Weight.ACCEPTED) as connection:
            values = {"subject": subject(kind, name), "reason": text(reason), "paused_at": clock()}
            new = insert_new(connection, pauses).values(values).returning(pauses.c.subject)
            if connection.execute(new).first() is None:
                return False
            note(connection, by, "pause", subject(kind, name), reason=reason or None)
            return True

    def resume(self, kind: PauseKind, name: str, *, by: Actor | None = None) -> bool:
        """End a pause. Return whether there was one. Reconcilers publish what waited, within seconds."""
        with self._database.write(Weight.ACCEPTED) as connection:
            gone = delete(pauses).where(pauses.c.subject == subject(kind, name))
            if not connection.execute(gone).rowcount:
                return False
            note(connection, by, "resume", subject(kind, name))
            return True


def subject(kind: PauseKind, name: str) -> str:
    """Return the key of a pause."""
    return text(f"{kind}:{name}") or ""


def _waiting(connection: Connection) -> dict[str, int]:
    by = envelopes.c.paused_by
    found = connection.execute(select(by, func.count()).where(PUBLISHED, by.is_not(None)).group_by(by))
    return {row[0]: row[1] for row in found}


def _pause(key: str, reason: str, paused_at: float, waiting: dict[str, int]) -> Pause:
    kind, _, name = key.partition(":")
    found: Any = kind
    return Pause(kind=found, name=name, reason=reason, paused_at=paused_at, waiting=waiting.get(key, 0))
