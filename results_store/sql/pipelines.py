"""Add the next items of a pipeline, in the transaction that stores their source results and nowhere else.

The caller's `Follow` decides which items these are; this module makes the decision final. If two transactions each
store one of the two results that a step joins, they meet at the job's row: the second transaction sees both results.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeAlias

from sqlalchemy import Connection, RowMapping, select, text

from results_store.records import NewEnvelope, Result, ResultState
from results_store.sql.columns import among, as_list, given_or_clock
from results_store.sql.item_numbering import TREE_SPAN, Carrier, Progress, root_of
from results_store.sql.result_rows import Inserted
from results_store.sql.schema import envelopes, jobs, results
from results_store.sql.submission import insert_envelopes

#: Returns the envelopes that follow from stored results. It runs in the transaction, so it must be fast and query
#: nothing.
Follow: TypeAlias = Callable[[Progress], Sequence[NewEnvelope]]

_COLUMNS = ("job", "seq", "task", "envelope", "state", "key", "output", "error")


def advance(
    connection: Connection, inserted: Sequence[Inserted], also: Collection[str], follow: Follow, now: float | None
) -> list[NewEnvelope]:
    """Put the envelopes that follow from newly `inserted` results into the outbox and return them.

    `also` are other jobs that the transaction will count.
    """
    if not inserted:
        return []
    # lock all jobs of this transaction at once, in the order in which their counters are written later
    ids = {row.job for row in inserted}
    locked = select(jobs.c.id, jobs.c.tenant, jobs.c.pipeline, jobs.c.cancelled_at, given_or_clock().label("now"))
    locked = locked.where(among(connection, jobs.c.id, {*ids, *also})).order_by(jobs.c.id)
    found = connection.execute(locked.with_for_update(key_share=True), {"_now": now}).mappings().all()
    wanted = [job for job in found if job["id"] in ids and job["pipeline"] and job["cancelled_at"] is None]
    if not wanted:
        return []
    carriers = _carriers(connection, {row.envelope for row in inserted})
    new: list[NewEnvelope] = []
    for job in wanted:
        own = [row for row in inserted if row.job == job["id"]]
        new += follow(_progress(connection, job, own, carriers))
    if new:
        insert_envelopes(connection, new, wanted[0]["now"])
    return new


def owed(new: Sequence[NewEnvelope]) -> Counter[str]:
    """Return the number of results that these envelopes add to each job."""
    more: Counter[str] = Counter()
    for envelope in new:
        more[envelope.job] += envelope.results
    return more


def _carriers(connection: Connection, ids: Collection[str]) -> dict[str, Carrier]:
    wanted = select(envelopes.c.id, envelopes.c.priority, envelopes.c.lane, envelopes.c.deadline_at)
    found = connection.execute(wanted.where(among(connection, envelopes.c.id, ids)))
    return {
        id_: Carrier(priority=priority, lane=lane, deadline_at=deadline_at)
        for id_, priority, lane, deadline_at in found
    }


def _progress(
    connection: Connection, job: RowMapping, new: Sequence[Inserted], carriers: Mapping[str, Carrier]
) -> Progress:
    roots = sorted({root_of(row.seq) for row in new})
    return Progress(
        job=job["id"],
        tenant=job["tenant"],
        pipeline=job["pipeline"],
        rows=_trees(connection, job["id"], roots),
        fresh={(row.seq, row.task): row.envelope for row in new if row.envelope in carriers},
        carriers=carriers,
        at=job["now"],
    )


def _trees(connection: Connection, job: str, roots: Sequence[int]) -> list[Result]:
    """Return the current results of some inputs, by a range of the primary key for each input."""
    begins = as_list(connection, [root * TREE_SPAN for root in roots])
    given = {"begins": begins, "job": job, "span": TREE_SPAN}
    rows = connection.execute(_TREES[connection.dialect.name], given).mappings()
    return [Result(**{**row, "state": ResultState(row["state"])}) for row in rows]


# The ranges come first, whatever the planner estimates. The other way round, it reads the whole job for each commit.
_OWN = ", ".join(f"results.{name}" for name in _COLUMNS)
_TREES = {
    dialect: text(sql).columns(*(results.c[name] for name in _COLUMNS))
    for dialect, sql in {
        "sqlite": f"SELECT {_OWN} FROM json_each(:begins) AS begins "  # noqa: S608 - constants
        "CROSS JOIN results WHERE results.job = :job "
        "AND results.seq >= begins.value AND results.seq < begins.value + :span",
        "postgresql": f"SELECT {_OWN} "  # noqa: S608 - constants
        "FROM unnest(CAST(:begins AS bigint[])) AS begins (value) "
        f"CROSS JOIN LATERAL (SELECT {', '.join(_COLUMNS)} FROM results WHERE job = :job "
        "AND seq >= begins.value AND seq < begins.value + :span OFFSET 0) AS results",
    }.items()
}
