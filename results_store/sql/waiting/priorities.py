"""The priority of a job that waits: changed with the job first, then with its envelopes, in portions.

Each change publishes the job's envelopes again, while their earlier messages stay in their lists until a worker reads
them. So a job is not changed again before the last change is published, nor within `EVERY_S` of it: by the audit log,
which has all changes but those of Python's client, whose user has the store's password.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, case, func, or_, select, update

from results_store.errors import TooManyChanges, UnknownJob
from results_store.sql import driver_statements
from results_store.sql.auditing.audit_log import Actor, note
from results_store.sql.columns import among, text
from results_store.sql.database import Database, Weight
from results_store.sql.schema import ACCEPTED, UNFINISHED, audit_log, envelopes, jobs

#: A job's priority is changed once in this time.
EVERY_S = 60.0

#: `accepted_at` of an envelope that has moved to another priority: overdue at once, as after a replay, which sets 0.
MOVED = -1.0

#: The time to wait for reconcilers, if they have yet to publish the last change.
_PUBLISHED_S = 5.0

#: Envelopes of a transaction: it holds SQLite's only lock for writers, and PostgreSQL's locks of their rows.
PORTION = 1000


def prioritize(database: Database, job: str, priority: int, by: Actor | None = None) -> int:
    """Give a job another priority, and its envelopes that no worker holds; return the number of these envelopes.

    They are overdue at once, so a reconciler publishes them to the list of their new priority. A message in the earlier
    list does no harm: a claim decides. If a change ends midway, the same change moves the others. It stops if another
    change overtakes it. Raises UnknownJob or TooManyChanges.
    """
    with database.read() as connection:
        unpublished = select(envelopes.c.id).where(envelopes.c.job == job, ACCEPTED, envelopes.c.accepted_at == MOVED)
        moving = connection.execute(unpublished.limit(1)).first() is not None
    with database.write(Weight.ACCEPTED) as connection:
        noted = _change(connection, job, priority, by, moving=moving)
    with database.read() as connection:
        mine = (envelopes.c.job == job, UNFINISHED, envelopes.c.priority != priority)
        ids = connection.execute(select(envelopes.c.id).where(*mine).order_by(envelopes.c.id)).scalars().all()
    moved = 0
    for start in range(0, len(ids), PORTION):
        with database.write(Weight.ACCEPTED) as connection:
            count = _move(connection, job, priority, ids[start : start + PORTION])
            if count is None:
                break
            if count and not noted:  # the job had this priority before, and some envelopes did not
                _note(connection, job, priority, by)
                noted = True
        moved += count
    return moved


def _change(connection: Connection, job: str, priority: int, by: Actor | None, *, moving: bool) -> bool:
    """Change the job's row; return whether it had another priority. To repeat a change is never refused."""
    changed = update(jobs).where(jobs.c.id == job, jobs.c.priority != priority).values(priority=priority)
    if not connection.execute(changed).rowcount:
        if connection.execute(select(jobs.c.id).where(jobs.c.id == job)).first() is None:
            raise UnknownJob(f"no job {job!r}; `argosy status` lists the jobs")
        return False
    if moving:
        raise TooManyChanges(
            f"job {job}: envelopes of the last change of its priority are not published yet; "
            "change it again once a worker's reconciler has published them, in some seconds",
            _PUBLISHED_S,
        )
    now = driver_statements.store_time(connection)
    own = (audit_log.c.action == "priority", audit_log.c.subject == text(f"job:{job}"))
    last = select(func.max(audit_log.c.at)).where(*own, audit_log.c.at > now - EVERY_S, audit_log.c.at <= now)
    if (at := connection.execute(last).scalar_one()) is not None:
        wait_s = at + EVERY_S - now
        raise TooManyChanges(
            f"job {job}: its priority was changed less than {EVERY_S:g} s ago; change it again in {wait_s:.0f} s",
            wait_s,
        )
    _note(connection, job, priority, by)
    return True


def _move(connection: Connection, job: str, priority: int, ids: Sequence[str]) -> int | None:
    """Move those of the envelopes that no worker holds; return their number, or None if the job has another priority.

    The job is read once the envelopes are locked: a change that overtakes this one moves them after it.
    """
    unheld = (UNFINISHED, envelopes.c.leased_until.is_(None), envelopes.c.priority != priority)
    wanted = select(envelopes.c.id).where(among(connection, envelopes.c.id, ids), *unheld).order_by(envelopes.c.id)
    locked = connection.execute(wanted.with_for_update(key_share=True)).scalars().all()
    if connection.execute(select(jobs.c.priority).where(jobs.c.id == job)).scalar() != priority:
        return None
    if locked:
        waits = or_(envelopes.c.due_at.is_not(None), envelopes.c.paused_by.is_not(None))
        connection.execute(
            update(envelopes)
            .where(among(connection, envelopes.c.id, locked))
            .values(
                priority=priority,
                state=case((waits, envelopes.c.state), else_="accepted"),
                accepted_at=case((waits, envelopes.c.accepted_at), else_=MOVED),
                published_at=case((waits, envelopes.c.published_at)),
            )
        )
    return len(locked)


def _note(connection: Connection, job: str, priority: int, by: Actor | None) -> None:
    note(connection, by, "priority", f"job:{job}", priority=priority)
