"""How near does the group-commit writer come to raw bulk inserts of the same rows, and does reading progress stay flat?

Thirty-two threads commit envelopes of 64 items with three tasks through one `Writer`, as a worker's slots do; beside
it, in turns, the same rows go into the same table by the driver alone: `executemany` on SQLite, COPY on PostgreSQL,
8,192 rows a transaction, with the same durability. Both begin with result objects, so both encode JSON. Only the writer
marks envelopes done and counts progress.

Chunks go through the same writer, by the same threads, from arrays of codes, scores, tokens and batches: envelopes of 64
items, as they are today, and of 1,024.
"""

from __future__ import annotations

import json
import sqlite3
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import fields
from functools import partial
from itertools import islice
from random import Random
from typing import Any, NamedTuple

import numpy as np
import psycopg
from sqlalchemy import text

from benchmarks import convention
from benchmarks.disasters.databases import postgresql
from results_store.records import NewEnvelope, NewJob, Result, ResultChunk, ResultState, Transaction
from results_store.sql.database import Database, Weight
from results_store.sql.schema import result_chunks
from results_store.store import Store
from results_store.writer import Writer

THREADS = 32
ITEMS, TASKS = 64, ("sentiment", "spam", "topic")
ROWS_PER_TRANSACTION = 8192
DATABASES = ("sqlite", "postgresql")
COLUMNS = [field.name for field in fields(Result)]
JSON_COLUMNS = [COLUMNS.index(name) for name in ("output", "error")]

JOB = "INSERT INTO jobs (id, priority, created_at, items, total, succeeded) VALUES (:job, 9, 1, :size, :size, :done)"
NUMBERS_SQLITE = "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < :done)"
NUMBERS_POSTGRESQL = "WITH numbers (n) AS (SELECT generate_series(1, CAST(:done AS integer)))"
RESULTS = "INSERT INTO results (job, seq, task, envelope, state, output)"
SELECTED = "SELECT CAST(:job AS text), n, 'topic', 'e', 'succeeded', '[]' FROM numbers"

LABELS = tuple(f"label {number}" for number in range(28))
CHUNKED_ITEMS = (64, 1024)

Envelopes = Sequence[Sequence[Result]]


def main() -> None:
    options = convention.options(__doc__)
    envelopes, rounds = (12, 1) if options.quick else (100, 15)
    sizes = (1_000, 10_000) if options.quick else (10_000, 100_000, 1_000_000)
    figures: dict[str, Any] = {}
    for database, urls in zip(DATABASES, (sqlite_urls, postgresql_urls), strict=True):
        with urls() as url:
            figures |= writing(database, url, envelopes, rounds)
            figures |= chunks(database, url, 12 if options.quick else 200, rounds)
            figures[f"progress_ms_{database}"] = progress_ms(url, sizes)
    figures["progress_ms"] = figures["progress_ms_sqlite"]
    largest = CHUNKED_ITEMS[-1]
    figures["chunk_results_per_s"] = min(figures[f"chunk_results_per_s_{of}_{largest}"] for of in DATABASES)
    convention.report("store", figures, keep=options.keep)


@contextmanager
def sqlite_urls() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="argosy-benchmark-") as folder:
        yield f"sqlite:///{folder}/store.db"


@contextmanager
def postgresql_urls() -> Iterator[str]:
    with postgresql() as server:
        yield server.url


# --- writing ---


def writing(database: str, url: str, envelopes: int, rounds: int) -> dict[str, Any]:
    """Return the medians of `rounds`, writer and raw in turns, and a first of each that is not counted.

    Many short rounds, so that what else the machine does meets both alike.
    """
    raw = raw_sqlite if database == "sqlite" else raw_postgresql
    rates: dict[str, list[float]] = {"writer": [], "raw": []}
    store = Store(url)
    store.migrate()
    with store:
        for number in range(rounds + 1):
            for name, write in (("writer", through_the_writer), ("raw", raw)):
                results = made(f"{name}-{number}", envelopes)
                accept(store, results)
                began_at = time.perf_counter()
                write(store, url, results)
                rate = envelopes * ITEMS * len(TASKS) / (time.perf_counter() - began_at)
                convention.progress(f"{database}, {name}: {rate:,.0f} rows/s{'' if number else ' (warm-up)'}")
                if number:
                    rates[name].append(rate)
    writer, direct = (statistics.median(rates[name]) for name in ("writer", "raw"))
    return {
        f"writer_over_raw_{database}": round(writer / direct, 2),
        f"rows_per_s_{database}": round(writer),
        f"raw_rows_per_s_{database}": round(direct),
    }


def made(job: str, envelopes: int) -> Envelopes:
    """Return results such as text heads give, an envelope a list."""
    random = Random(job)
    now = time.time()
    return [
        [
            Result(
                job=job,
                seq=number * ITEMS + item,
                task=task,
                envelope=f"{job}-{number}",
                state=ResultState.SUCCEEDED,
                key=str(number * ITEMS + item),
                output=[{"label": label, "score": round(random.random(), 6)} for label in ("positive", "negative")],
                model="text",
                model_revision="c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
                batch=f"{job}-batch-{number}",
                queued_at=now,
                batched_at=now + random.random(),
                computed_at=now + 1 + random.random(),
                stored_at=now + 2,
            )
            for item in range(ITEMS)
            for task in TASKS
        ]
        for number in range(envelopes)
    ]


def accept(store: Store, results: Envelopes) -> None:
    accept_envelopes(store, results[0][0].job, [rows[0].envelope for rows in results], ITEMS)


def accept_envelopes(store: Store, job: str, ids: Sequence[str], items: int) -> None:
    given = [
        NewEnvelope(
            id=id_,
            job=job,
            model="text",
            priority=9,
            items=items,
            results=items * len(TASKS),
            payload=b"{}",
            content_type="application/json",
            created_at=time.time(),
        )
        for id_ in ids
    ]
    store.add_envelopes(given, jobs=[NewJob(id=job, priority=9, created_at=time.time())])


def through_the_writer(store: Store, _url: str, results: Envelopes) -> None:
    parts = [partial(Transaction, results=rows, done=[rows[0].envelope]) for rows in results]
    by_threads(store, results[0][0].job, parts)


def by_threads(store: Store, job: str, parts: Sequence[Callable[[], Transaction]]) -> None:
    """Make and commit the parts, as a worker's slots do."""
    left = iter(parts)
    taking = threading.Lock()

    def commit() -> None:
        while True:
            with taking:
                part = next(left, None)
            if part is None:
                return
            writer.commit(part())

    with Writer(store, worker="benchmark", lease_s=60) as writer:
        threads = [threading.Thread(target=commit) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    status = store.job(job)
    if not status.finished:
        raise SystemExit(f"{status.done} of {status.total} results were stored")


# --- chunks ---


class Outputs(NamedTuple):
    """The outputs of an envelope's items for a task, each of the length of the envelope."""

    codes: Any
    scores: Any
    tokens: Any
    batch_of: Any


def chunks(database: str, url: str, envelopes: int, rounds: int) -> dict[str, Any]:
    """Return the medians of `rounds` by the size of the envelopes, after a first that is not counted."""
    found: dict[str, Any] = {}
    with Store(url) as store:
        for items in CHUNKED_ITEMS:
            rates = [chunk_rate(store, f"chunks-{items}-{number}", envelopes, items) for number in range(rounds + 1)]
            convention.progress(f"{database}, chunks of {items}: {statistics.median(rates[1:]):,.0f} results/s")
            found[f"chunk_results_per_s_{database}_{items}"] = round(statistics.median(rates[1:]))
            found[f"chunk_bytes_per_result_{database}_{items}"] = round(bytes_per_result(url), 1)
    return found


def chunk_rate(store: Store, job: str, envelopes: int, items: int) -> float:
    random = np.random.default_rng(0)
    ids = [f"{job}-{number}" for number in range(envelopes)]
    accept_envelopes(store, job, ids, items)
    outputs = [
        Outputs(
            random.integers(0, len(LABELS), items),
            random.random(items, dtype=np.float32),
            random.integers(8, 128, items),
            random.integers(0, 4, items),
        )
        for _ in TASKS
    ]
    began_at = time.perf_counter()
    parts = [partial(chunked, job, id_, number, items, outputs) for number, id_ in enumerate(ids)]
    by_threads(store, job, parts)
    return envelopes * items * len(TASKS) / (time.perf_counter() - began_at)


def chunked(job: str, envelope: str, number: int, items: int, outputs: Sequence[Outputs]) -> Transaction:
    """Return an envelope's part of a transaction, from its arrays."""
    now = time.time()
    made = [
        ResultChunk(
            job=job,
            envelope=envelope,
            task=task,
            seqs=range(number * items, (number + 1) * items),
            tokens=own.tokens.tolist(),
            batches=[(f"{envelope}-{batch}", now, now + 0.01) for batch in range(4)],
            batch_of=own.batch_of.tolist(),
            labels=LABELS,
            codes=own.codes.tolist(),
            scores=own.scores.astype(np.float64).round(6).tolist(),
            model="text",
            model_revision="c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
            precision="fp32",
            queued_at=now,
        )
        for task, own in zip(TASKS, outputs, strict=True)
    ]
    return Transaction(chunks=made, done=[envelope])


def bytes_per_result(url: str) -> float:
    """Return the bytes of the columns of all chunks over their results, as the database keeps them."""
    length = "length(CAST({} AS blob))" if url.startswith("sqlite") else "pg_column_size({})"
    each = " + ".join(f"coalesce({length.format(column.name)}, 0)" for column in result_chunks.c)
    database = Database(url, timeout_s=300)
    database.open()
    with database.read() as connection:
        found = connection.execute(text(f"SELECT sum({each}) * 1.0 / sum(size) FROM result_chunks")).scalar_one()  # noqa: S608 - constants
    database.close()
    return float(found)


def raw_sqlite(_store: Store, url: str, results: Envelopes) -> None:
    insert = f"INSERT INTO results ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"  # noqa: S608 - constants
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = NORMAL")
        for portion in portions(results):
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(insert, portion)
            connection.execute("COMMIT")


def raw_postgresql(_store: Store, url: str, results: Envelopes) -> None:
    copy = f"COPY results ({', '.join(COLUMNS)}) FROM STDIN"
    with psycopg.connect(url) as connection:
        for portion in portions(results):
            with connection.cursor() as cursor, cursor.copy(copy) as into:
                for row in portion:
                    into.write_row(row)
            connection.commit()


def portions(results: Envelopes) -> Iterator[list[tuple[Any, ...]]]:
    rows = (encoded(result) for envelope in results for result in envelope)
    while portion := list(islice(rows, ROWS_PER_TRANSACTION)):
        yield portion


def encoded(result: Result) -> tuple[Any, ...]:
    row = [getattr(result, name) for name in COLUMNS]
    for place in JSON_COLUMNS:
        if row[place] is not None:
            row[place] = json.dumps(row[place], separators=(",", ":"))
    return tuple(row)


# --- progress ---


def progress_ms(url: str, sizes: Sequence[int]) -> dict[str, float]:
    """Return the median time of `Store.job` on jobs of these sizes, each half done."""
    found = {}
    with Store(url) as store:
        for size in sizes:
            convention.progress(f"building a job of {size:,} items")
            half_done(url, size)
            times = [timed_ms(lambda size=size: store.job(f"big-{size}")) for _ in range(300)]
            found[f"{size:,}".replace(",", "_")] = round(statistics.median(times), 3)
    return found


def half_done(url: str, size: int) -> None:
    """Write the job and half its results straight into the tables."""
    values = {"job": f"big-{size}", "size": size, "done": size // 2}
    database = Database(url, timeout_s=300)
    database.open()
    with database.write(Weight.NOTE) as connection:
        numbers = NUMBERS_SQLITE if url.startswith("sqlite") else NUMBERS_POSTGRESQL
        connection.execute(text(JOB), values)
        connection.execute(text(f"{RESULTS} {numbers} {SELECTED}"), values)
    database.close()


def timed_ms(call: Callable[[], object]) -> float:
    began_at = time.perf_counter()
    call()
    return (time.perf_counter() - began_at) * 1000


if __name__ == "__main__":
    main()
