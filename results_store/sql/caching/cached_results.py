"""Succeeded results for later jobs with the same input, task, parameters and model, of the same tenant.

A row lives as long as the input of the job that computed it: a digest tells whether a guess of an input is right. So
rows are inserted in the commit of their results, while the input is there, and are deleted with it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence

from sqlalchemy import Connection, select

from results_store.records import CachedResult
from results_store.sql.columns import among, clock, json_text
from results_store.sql.database import Database
from results_store.sql.result_rows import insert_new
from results_store.sql.retention import in_portions
from results_store.sql.schema import cached_results, payloads


class CachedResults:
    """The cached results in the store, as `Store.cached_results`. Raises StoreUnavailable, like the store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, digests: Collection[str], *, keep_s: float) -> dict[str, CachedResult]:
        """Return the results with these digests that are not older than `keep_s`, by digest."""
        rows = cached_results.c
        columns = (rows.digest, rows.job, rows.output, rows.vector, rows.precision, rows.tokens)
        young = rows.stored_at > clock() - keep_s
        with self._database.read() as connection:
            found = connection.execute(select(*columns).where(among(connection, rows.digest, digests), young)).all()
        return {
            digest: CachedResult(digest, job, "", None if output is None else json.loads(output), vector, *others)
            for digest, job, output, vector, *others in found
        }

    def forget(self, *, keep_s: float) -> int:
        """Delete the results that are older than `keep_s`; return their number."""
        return in_portions(self._database, cached_results, lambda _: cached_results.c.stored_at <= clock() - keep_s)


def keep(connection: Connection, new: Sequence[CachedResult]) -> None:
    """Insert results whose inputs are still there, in the caller's transaction, which has locked their envelopes.

    Raises InvalidRow.
    """
    inputs = select(payloads.c.envelope).where(among(connection, payloads.c.envelope, {row.envelope for row in new}))
    # a purge that deletes them waits for the transaction, and deletes its rows afterwards
    locked = inputs.order_by(payloads.c.envelope).with_for_update(key_share=True, read=True)
    there = set(connection.execute(locked).scalars())
    rows = {row.digest: row for row in new if row.envelope in there}
    if rows:
        insert = insert_new(connection, cached_results).values(stored_at=clock())
        connection.execute(
            insert,
            [
                {
                    "digest": row.digest,
                    "job": row.job,
                    "output": json_text(row.output, "output"),
                    "vector": row.vector,
                    "precision": row.precision,
                    "tokens": row.tokens,
                }
                for row in sorted(rows.values())
            ],
        )
