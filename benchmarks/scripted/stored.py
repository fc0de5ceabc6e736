"""The rows of a job, counted and compared by SQL. A wrong pass raises, and gives no figure."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from importlib.util import find_spec
from typing import Any


class Wrong(AssertionError):
    """A pass stored a row that is not right, or not every row."""


def verify(store_url: str, job: str, expected: Mapping[str, Sequence[Any]]) -> None:
    """Compare all rows of a job with the expected outputs, in the order of the items, by task. Raises Wrong."""
    statement = f"SELECT seq, task, state, output, error FROM {_view()} WHERE job = ? ORDER BY seq, task"  # noqa: S608
    rows = _rows(store_url, statement, [job])
    owed = sum(map(len, expected.values()))
    if len(rows) != owed:
        raise Wrong(f"{len(rows):,} rows are stored, {owed:,} are owed")
    for seq, task, state, output, error in rows:
        found = json.loads(output) if isinstance(output, str) else output  # PostgreSQL's driver has read it
        if state != "succeeded" or found[:1] != expected[task][seq]:  # the best label is the checksum
            raise Wrong(f"item {seq}, {task}: {state} {output} {error}, not {expected[task][seq]}")
    (counted,) = _rows(store_url, "SELECT total, succeeded FROM jobs WHERE id = ?", [job])
    if counted != (owed, owed):
        raise Wrong(f"the job counts {counted}, {owed:,} are owed")


def _view() -> str:
    """Return the name by which SQL reads all results; an older tree has the table alone."""
    with suppress(ModuleNotFoundError):
        if find_spec("results_store.sql.chunks"):
            return "item_results"
    return "results"


def batches(store_url: str, since: float) -> list[tuple[int, int, float]]:
    """Return rows, padded tokens and seconds of each micro-batch since a time."""
    return _rows(store_url, "SELECT rows, padded_tokens, forward_s FROM batches WHERE started_at > ?", [since])


def first_batch_at(store_url: str, since: float) -> float:
    ((found,),) = _rows(store_url, "SELECT min(started_at) FROM batches WHERE started_at > ?", [since])
    return float(found)


def items_by_worker(store_url: str, since: float) -> dict[str, int]:
    """Return the items that each node has computed since a time."""
    rows = _rows(store_url, "SELECT worker, sum(items) FROM batches WHERE started_at > ? GROUP BY worker", [since])
    return {worker: int(items) for worker, items in rows}


def _rows(store_url: str, statement: str, values: list[Any]) -> list[Any]:
    if not store_url.startswith("sqlite:"):
        import psycopg

        with psycopg.connect(store_url) as postgresql:
            return postgresql.execute(statement.replace("?", "%s"), values).fetchall()
    with closing(sqlite3.connect(store_url.removeprefix("sqlite:///"))) as connection:
        return connection.execute(statement, values).fetchall()
