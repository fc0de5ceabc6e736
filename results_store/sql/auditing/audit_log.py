"""The audit log: each change with its author, time and place.

A change writes its entry in its own transaction, so that neither is there without the other. A purge, which takes many
transactions, writes its entry before the first; a change of a job's priority with the job, before its envelopes.
Entries hold names and ids, never inputs, results or secrets.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal
from uuid import uuid4

from sqlalchemy import Connection, insert, select, tuple_

from results_store.sql.columns import clock, text
from results_store.sql.database import Database
from results_store.sql.schema import audit_log

#: The most characters of a name or a reason in an entry.
_LONGEST = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """Who changes something: the name and id of a gateway's key with its tenant, or a user of a machine's command line.

    `address` is the caller's network address, or the machine's name.
    """

    name: str
    source: Literal["page", "http", "command"]
    tenant: str = ""
    key: str | None = None
    address: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """A change by an `Actor`: `action` has the words of the command that does it, `subject` is ``job:ID`` or the like.

    `at` is by the store's clock, in Unix seconds.
    """

    id: str
    at: float
    name: str
    source: str
    tenant: str
    key: str | None
    address: str
    action: str
    subject: str
    detail: dict[str, Any]


def note(connection: Connection, by: Actor | None, action: str, subject: str, **detail: object) -> None:
    """Write an entry in the transaction of its change. Without `by`, a program of the fleet's own changes something."""
    if by is None:
        return
    names = {name: text(value[:_LONGEST]) if isinstance(value, str) else value for name, value in asdict(by).items()}
    known = {name: text(value[:_LONGEST]) if isinstance(value, str) else value for name, value in detail.items()}
    given = {name: value for name, value in known.items() if value is not None}
    row = {"id": uuid4().hex, "action": action, "subject": text(subject[:_LONGEST]), "detail": given, **names}
    connection.execute(insert(audit_log).values(at=clock(), **row))


class AuditLog:
    """The audit log in the store, as `Store.audit`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def newest(
        self, *, limit: int = 100, before: tuple[float, str] | None = None, since: float | None = None, text: str = ""
    ) -> list[AuditEntry]:
        """Return entries, newest first. `before` is the (at, id) of the last entry on the page before.

        `since` limits them to later ones (Unix seconds), `text` to entries with this text in name, action or subject.
        """
        wanted = select(audit_log).order_by(audit_log.c.at.desc(), audit_log.c.id.desc()).limit(limit)
        if before is not None:
            wanted = wanted.where(tuple_(audit_log.c.at, audit_log.c.id) < tuple_(*before))
        if since is not None:
            wanted = wanted.where(audit_log.c.at >= since)
        if text:
            columns = (audit_log.c.name, audit_log.c.action, audit_log.c.subject, audit_log.c.tenant)
            about = columns[0] + " " + columns[1] + " " + columns[2] + " " + columns[3]
            wanted = wanted.where(about.icontains(text, autoescape=True))
        with self._database.read() as connection:
            return [AuditEntry(**row) for row in connection.execute(wanted).mappings()]
