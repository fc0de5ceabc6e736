"""Results in chunks and as rows beside them: every reader sees each result once, whichever way it is stored."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from results_store.errors import InvalidRow
from results_store.export.parquet_export import write_parquet
from results_store.export.text_export import stream, write_csv, write_jsonl
from results_store.records import Result, ResultChunk, ResultState, Transaction
from results_store.sql.chunks.chunk_rows import SPAN, ChunkResults, row_of
from results_store.sql.chunks.packed_rows import LEAST, packed
from results_store.sql.columns import pack_vector, unpack_vector
from results_store.sql.database import Database, Weight
from results_store.store import Store
from results_store.writer import Writer
from tests.end_to_end.processes import until
from tests.integration.rows import new_envelope, new_job, result, run_together

ITEMS = 20
TASKS = ("Sentiment", "embedding", "spam")
FAILED = {"state": ResultState.FAILED, "output": None, "error": {"kind": "ModelError", "message": "broke"}}


def labelled(seq: int, task: str = "spam", **changes: Any) -> Result:
    output = [{"label": "ham", "score": round(1 / (seq + 2), 6)}, {"label": 'sp"äm', "score": 1e-06}]
    ran = {"batch": f"b{seq % 3}", "batched_at": 1.5 + seq % 3, "computed_at": 1764493212.123456 + seq % 3}
    of_model = {"model": "text", "model_revision": "r1", "precision": "fp32", "queued_at": 0.5, "tokens": seq + 3}
    return result(seq, task, **{"output": output, "key": f"k{seq}", **ran, **of_model, **changes})


def vector(seq: int, **changes: Any) -> Result:
    return labelled(seq, "embedding", **{"output": None, "vector": pack_vector([seq, 0.1, -1e-9]), **changes})


def answers(seqs: Sequence[int], envelope: str = "e0") -> list[Result]:
    return [
        vector(seq, envelope=envelope) if task == "embedding" else labelled(seq, task, envelope=envelope)
        for seq in seqs
        for task in TASKS
    ]


def chunks_of(rows: Sequence[Result]) -> list[ResultChunk]:
    chunks, left = packed(rows)
    assert not left
    return chunks


def accepted(store: Store, envelopes: int = 1, job: str = "job") -> None:
    owed = {"items": ITEMS, "results": ITEMS * len(TASKS), "job": job}
    store.create_job(new_job(job))
    store.add_envelopes([new_envelope(f"e{number}", **owed) for number in range(envelopes)])


def stored(rows: Sequence[Result], at: float = 7.0) -> list[Result]:
    return sorted((replace(row, stored_at=at) for row in rows), key=lambda row: (row.seq, row.task))


def sql(url: str, query: str) -> Sequence[Any]:
    database = Database(url, timeout_s=30)
    database.open()
    with database.read() as connection:
        found = connection.execute(text(query)).all()
    database.close()
    return found


def mixed(store: Store) -> list[Result]:
    """Store a job of three envelopes: one in chunks, one as rows, and one in chunks with a failed item beside."""
    accepted(store, 3)
    first, second, third = (answers(range(n * ITEMS, (n + 1) * ITEMS), f"e{n}") for n in range(3))
    third[4] = replace(third[4], **FAILED, vector=None)
    chunks, rows = packed(third)
    assert rows == [third[4]]
    store.transact(Transaction(chunks=chunks_of(first), done=["e0"], at=7.0))
    store.transact(Transaction(results=[*second, *rows], chunks=chunks, done=["e1", "e2"], at=7.0))
    return stored([*first, *second, *third])


# --- once ---


def test_a_chunk_settles_its_envelope_and_counts_once(store: Store) -> None:
    """Counters, the number that covers the envelope, and its end come with the chunk, in one transaction."""
    accepted(store)
    part = Transaction(chunks=chunks_of(answers(range(ITEMS))), done=["e0"], at=7.0)

    done = store.transact(part)
    again = store.transact(part)

    assert (done.inserted, done.done) == (ITEMS * len(TASKS), (("job", "e0"),))
    assert (again.inserted, again.done) == (0, (("job", "e0"),))
    status = store.job("job")
    assert (status.succeeded, status.finished_at, status.state) == (ITEMS * len(TASKS), 7.0, "finished")
    assert store.depth() == []
    assert store.results("job") == stored(answers(range(ITEMS)))


def test_rows_behind_a_chunk_are_dropped_and_a_chunk_behind_rows_is_taken_apart(store: Store, store_url: str) -> None:
    """The first terminal state stays, in whichever table it is."""
    accepted(store, 2)
    of_first, of_second = answers(range(ITEMS)), answers(range(ITEMS, 2 * ITEMS), "e1")
    store.transact(Transaction(chunks=chunks_of(of_first), done=["e0"], at=7.0))
    cancelled = [result(seq, "spam", envelope="e0", state=ResultState.CANCELLED, output=None) for seq in (0, 19)]
    assert store.commit(cancelled, at=8.0).inserted == 0

    early = result(25, "spam", envelope="e1", state=ResultState.CANCELLED, output=None)
    assert store.commit([early], at=6.0).inserted == 1
    late = store.transact(Transaction(chunks=chunks_of(of_second), done=["e1"], at=7.0))

    assert late.inserted == ITEMS * len(TASKS) - 1
    assert late.done == (("job", "e1"),)
    kept = [replace(early, stored_at=6.0) if (row.seq, row.task) == (25, "spam") else row for row in stored(of_second)]
    assert store.results("job") == [*stored(of_first), *kept]
    assert sql(store_url, "SELECT task, envelope FROM result_chunks ORDER BY envelope, task") == [
        *((task, "e0") for task in TASKS),
        ("Sentiment", "e1"),
        ("embedding", "e1"),
    ]
    status = store.job("job")
    assert (status.succeeded, status.cancelled, status.finished) == (2 * ITEMS * len(TASKS) - 1, 1, True)


def test_the_same_envelope_twice_in_a_transaction_counts_once(store: Store) -> None:
    """Also as a chunk and as rows."""
    accepted(store)
    rows = answers(range(ITEMS))
    part = Transaction(results=rows, chunks=[*chunks_of(rows), *chunks_of(rows)], done=["e0"], at=7.0)

    assert store.transact(part).inserted == len(rows)

    assert store.job("job").finished
    assert store.results("job") == stored(rows)


def test_an_envelope_that_an_older_version_began_is_covered_by_rows_and_a_chunk(store: Store) -> None:
    """Its row counts nothing; what a transaction gives is there after it, in either table."""
    accepted(store)
    rows = answers(range(ITEMS))
    spam = [row for row in rows if row.task == "spam"]
    store.commit(spam, at=7.0)
    with store._database.write(Weight.ACCEPTED) as connection:
        connection.execute(text("UPDATE envelopes SET stored = NULL"))

    chunks = chunks_of([row for row in rows if row.task != "spam"])
    done = store.transact(Transaction(results=spam, chunks=chunks, done=["e0"], at=7.0))

    assert (done.inserted, done.done) == (2 * ITEMS, (("job", "e0"),))


@pytest.mark.parametrize("envelope", ["batch", "job"])
def test_substitutes_for_results_in_chunks_are_dropped(store: Store, envelope: str) -> None:
    """The gateway ends a batch with a substitute for each result that it may lack, under the batch's or job's name."""
    accepted(store)
    store.transact(Transaction(chunks=chunks_of(answers(range(ITEMS - 2)))))
    late = {**FAILED, "state": ResultState.EXPIRED, "envelope": envelope}
    substitutes = [result(seq, task, **late) for seq in range(ITEMS) for task in TASKS]
    store.commit(substitutes, unlisted={"batch"}, at=8.0)
    by_state = Counter((row.seq < ITEMS - 2, row.state) for row in store.results("job"))
    assert by_state == {(True, ResultState.SUCCEEDED): 3 * (ITEMS - 2), (False, ResultState.EXPIRED): 6}
    assert (store.job("job").succeeded, store.job("job").expired) == (3 * (ITEMS - 2), 6)


@pytest.mark.parametrize("of_job", [False, True])
def test_a_substitute_and_a_chunk_at_once(store: Store, of_job: bool) -> None:
    """Whichever comes first: each result once, and counted once."""
    for number in range(10):
        job, envelope = f"job{number}", f"own{number}"
        store.create_job(new_job(job))
        owed = {"items": ITEMS, "results": ITEMS * len(TASKS), "job": job}
        store.add_envelopes([new_envelope(envelope, **owed)])
        chunks = chunks_of([replace(row, job=job) for row in answers(range(ITEMS), envelope)])
        late = {**FAILED, "state": ResultState.EXPIRED, "envelope": job if of_job else "batch", "job": job}
        substitutes = [result(seq, task, **late) for seq in range(ITEMS) for task in TASKS]

        def work(turn: int, chunks: Any = chunks, done: str = envelope, substitutes: Any = substitutes) -> None:
            given = {"results": substitutes, "unlisted": {"batch"}} if turn else {"chunks": chunks, "done": [done]}
            store.transact(Transaction(**given))

        run_together(work, 2)
        found = store.job(job)
        assert len(store.results(job)) == found.succeeded + found.expired == ITEMS * len(TASKS)


def test_workers_with_the_same_envelope_at_once(store: Store) -> None:
    """Chunks, rows and cancelled rows race; each result is stored and counted once."""
    accepted(store, 4)
    rows = {n: answers(range(n * ITEMS, (n + 1) * ITEMS), f"e{n}") for n in range(4)}

    def work(number: int) -> None:
        for n in range(4):
            own = rows[(n + number) % 4]
            if number == 0:
                cancelled = [replace(row, state=ResultState.CANCELLED, output=None, vector=None) for row in own[:5]]
                store.commit(cancelled)
            elif number % 2:
                store.transact(Transaction(chunks=chunks_of(own), done=[own[0].envelope]))
            else:
                store.transact(Transaction(results=own, done=[own[0].envelope]))

    run_together(work, 5)

    status = store.job("job")
    assert (status.done, status.finished) == (4 * ITEMS * len(TASKS), True)
    found = list(stream(store, "job", page=50))
    assert sorted((row.seq, row.task) for row in found) == [(seq, task) for seq in range(4 * ITEMS) for task in TASKS]
    assert sum(row.state is ResultState.CANCELLED for row in found) == status.cancelled


def test_a_replay_computes_failed_results_again_as_rows_beside_the_chunk(store: Store) -> None:
    """The chunk of the first run stays; the second computes all, and adds what was missing."""
    rows = mixed(store)
    assert [row.seq for row in rows if row.state is ResultState.FAILED] == [41]

    assert store.dead_letters.replay(failed_before=1e12).results == 1
    assert [row.task for row in store.results_of("job", [41])] == ["Sentiment", "spam"]
    again = store.transact(Transaction(chunks=chunks_of(answers(range(40, 60), "e2")), done=["e2"], at=7.0))

    assert again.inserted == 1
    status = store.job("job")
    assert (status.succeeded, status.failed, status.finished) == (3 * ITEMS * len(TASKS), 0, True)
    assert {row.state for row in store.results("job")} == {ResultState.SUCCEEDED}


def test_results_of_a_job_that_was_purged_meanwhile_are_rows(store: Store, store_url: str) -> None:
    """As strays, which the next purges find; a chunk without an envelope would stay for ever."""
    accepted(store)
    store.cancel_job("job")
    store.commit([replace(row, state=ResultState.CANCELLED) for row in answers(range(ITEMS))], done=["e0"], at=1.0)
    store.retention.purge(finished_before=200.0)

    store.transact(Transaction(chunks=chunks_of(answers(range(ITEMS))), done=["e0"], at=3.0))

    assert sql(store_url, "SELECT count(*) FROM result_chunks") == [(0,)]
    assert store.retention.purge(finished_before=200.0).results == ITEMS * len(TASKS)


def test_a_chunk_that_cannot_be_read_well_is_stored_as_rows(store: Store, store_url: str) -> None:
    """Readers look so far back for chunks, and hold some of them in memory."""
    accepted(store)
    far = [labelled(seq) for seq in (*range(LEAST), SPAN)]
    big = [vector(seq, vector=b"\0" * 2**18) for seq in range(LEAST)]

    store.transact(Transaction(chunks=[*chunks_of(far), *chunks_of(big)], at=7.0))

    assert sql(store_url, "SELECT count(*) FROM result_chunks") == [(0,)]
    assert store.results("job") == stored([*far, *big])


def test_a_chunk_that_is_wrong_is_refused(store: Store) -> None:
    """By name, before anything of its transaction is stored."""
    accepted(store)
    [chunk] = chunks_of([labelled(seq) for seq in range(LEAST)])
    wrong = {
        "seqs": [*range(LEAST - 1), 0],
        "tokens": [1],
        "keys": ["k"],
        "scores": [float("nan"), 0.0] * LEAST,
    }
    for name, value in wrong.items():
        with pytest.raises(InvalidRow, match=name):
            store.transact(Transaction(chunks=[replace(chunk, **{name: value})]))
    with pytest.raises(InvalidRow, match="pipeline"):
        store.transact(Transaction(chunks=[chunk], stepped=["e0"]))
    assert store.results("job") == []


def committed_together(writer: Writer, *parts: Transaction) -> list[BaseException | None]:
    """Commit the parts by a thread each, in the same transaction; return the error of each."""
    with ThreadPoolExecutor(len(parts)) as pool:
        with writer._turn:
            commits = [pool.submit(writer.commit, part) for part in parts]
            until(lambda: writer.waiting == len(parts))
        return [commit.exception() for commit in commits]


def test_a_group_of_the_writer_holds_chunks_rows_and_direct_results(store: Store) -> None:
    """A direct result is told with its notice, though others of the group come in chunks."""
    accepted(store)
    part = Transaction(chunks=chunks_of(answers(range(ITEMS))), done=["e0"])
    direct = Transaction(results=[result(0, job="x", envelope="x0")], done=["x0"], unlisted=["x0"])
    told: dict[str, Sequence[Result]] = {}
    with Writer(store, worker="w", lease_s=60, on_committed=lambda _, few: told.update(few)) as writer:
        assert committed_together(writer, part, direct) == [None, None]
    assert told == {"x0": store.results_of("x", [0])}
    assert store.job("job").finished


def test_a_wrong_chunk_fails_its_own_caller(store: Store) -> None:
    """The others of its group are stored."""
    accepted(store, 2)
    [wrong, *_] = chunks_of(answers(range(ITEMS, 2 * ITEMS), "e1"))
    part = Transaction(chunks=chunks_of(answers(range(ITEMS))), done=["e0"])
    with Writer(store, worker="w", lease_s=60) as writer:
        first, second = committed_together(writer, part, Transaction(chunks=[replace(wrong, tokens=[])]))
    assert first is None
    assert isinstance(second, InvalidRow)
    assert store.job("job").succeeded == ITEMS * len(TASKS)


# --- readers ---


@pytest.mark.parametrize("page", [1, 7, 60, 1000])
def test_pages_have_every_result_once_in_order(store: Store, page: int) -> None:
    """Whatever the size of a page: it may end in the middle of an item, of a chunk, and of rows between chunks."""
    rows = mixed(store)

    assert list(stream(store, "job", page=page)) == rows
    assert all(len(store.results("job", after=(seq, "x"), limit=9)) == 9 for seq in range(50))


def test_pages_of_chunks_that_lie_in_each_other(store: Store) -> None:
    """Envelopes of one job may have every other item, and more chunks than a page reads at a time."""
    accepted(store, 40)
    rows: list[Result] = []
    for number in range(40):
        own = answers(range(number % 8 + 160 * (number // 8), 160 * (number // 8 + 1), 8), f"e{number}")
        rows += own
        store.transact(Transaction(chunks=chunks_of(own), done=[f"e{number}"], at=7.0))

    assert list(stream(store, "job", page=100)) == stored(rows)
    assert store.results("job", limit=3000) == stored(rows)


def test_pages_of_more_tasks_than_chunks_are_read_at_a_time(store: Store) -> None:
    """All chunks of an envelope begin at the same item; a database may order their tasks in its own way."""
    tasks = [f"{letter}{number}" for number in range(20) for letter in "aB_"]
    owed = {"items": ITEMS, "results": ITEMS * len(tasks)}
    store.create_job(new_job())
    store.add_envelopes([new_envelope(f"e{number}", **owed) for number in range(2)])
    rows = [labelled(seq, task, envelope=f"e{seq // ITEMS}") for seq in range(2 * ITEMS) for task in tasks]
    for number in range(2):
        part = chunks_of([row for row in rows if row.envelope == f"e{number}"])
        store.transact(Transaction(chunks=part, done=[f"e{number}"], at=7.0))

    assert list(stream(store, "job", page=100)) == stored(rows)


def test_items_are_found_wherever_they_are(store: Store) -> None:
    """Lone items, ranges and items far from each other."""
    rows = mixed(store)
    for seqs in ([0], [19, 20], [41], [59, 0], range(60), [5, 1000000], [-3], []):
        assert store.results_of("job", seqs) == [row for row in rows if row.seq in seqs]


def test_the_spread_counts_both(store: Store) -> None:
    """Readers of new results look only into the blocks whose number has grown."""
    mixed(store)
    assert store.spread("job", 25) == {0: 75, 1: 75, 2: 30}


def test_exports_have_both(store: Store) -> None:
    """Lines, a table and Parquet."""
    import pyarrow.parquet as pq

    rows = mixed(store)
    lines, table, parquet = io.StringIO(), io.StringIO(), io.BytesIO()
    assert [write_jsonl(store, "job", lines), write_csv(store, "job", table)] == [len(rows)] * 2
    assert write_parquet(store, "job", parquet) == len(rows)

    told = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert [(row["seq"], row["task"], row["batch"]) for row in told] == [(row.seq, row.task, row.batch) for row in rows]
    assert [row["output"] for row in told if row["task"] == "spam"] == [r.output for r in rows if r.task == "spam"]
    cells = list(csv.DictReader(io.StringIO(table.getvalue())))
    assert [(cell["seq"], cell["key"]) for cell in cells] == [(str(row.seq), row.key) for row in rows]
    found = pq.read_table(io.BytesIO(parquet.getvalue())).to_pylist()
    assert [row["vector"] for row in found] == [None if r.vector is None else unpack_vector(r.vector) for r in rows]


def test_the_view_has_a_row_for_an_item_and_task(store: Store, store_url: str) -> None:
    """Plain SQL sees the same fields as the store's own readers, on both databases."""
    rows = mixed(store)
    names = ("seq", "task", "envelope", "state", "key", "model", "model_revision", "precision", "tokens", "batch")
    times = ("queued_at", "batched_at", "computed_at", "stored_at")

    found = sql(store_url, f"SELECT {', '.join((*names, 'output', 'vector'))} FROM item_results WHERE job = 'job'")

    read = {
        (row.seq, row.task): (*row[:10], row.output if row.output is None else loaded(row.output), row.vector)
        for row in found
    }
    assert len(found) == len(read) == len(rows)
    assert read == {(row.seq, row.task): (*(getattr(row, n) for n in names), row.output, row.vector) for row in rows}
    timed = sql(store_url, f"SELECT seq, task, {', '.join(times)} FROM item_results ORDER BY seq, task")
    assert {tuple(row[:2]): pytest.approx(row[2:], abs=1e-6) for row in timed} == {
        (row.seq, row.task): tuple(getattr(row, name) for name in times) for row in rows
    }


def loaded(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def test_a_purge_deletes_the_chunks_and_says_how_many_results(store: Store, store_url: str) -> None:
    """Inputs alone first, which no longer can be replayed."""
    rows = mixed(store)
    assert store.retention.purge(finished_before=200.0, keep_results=True).payloads == 3
    assert store.results("job") == rows

    assert store.retention.purge(finished_before=200.0).results == len(rows)

    assert sql(store_url, "SELECT count(*) FROM result_chunks") == [(0,)]


def test_inputs_are_dropped_where_nothing_failed(store: Store) -> None:
    """`drop_inputs` looks at the same end of an envelope, whichever way its results are stored."""
    accepted(store)
    store.transact(Transaction(chunks=chunks_of(answers(range(ITEMS))), done=["e0"], drop_inputs=True))
    assert store.inputs(["e0"]) == {}


# --- packing ---

_SCORES = st.floats(allow_nan=False, allow_infinity=False)
_PAIRS = st.builds(lambda label, score: {"label": label, "score": score}, st.sampled_from(["a", "ü", ""]), _SCORES)
_OUTPUTS = st.lists(_PAIRS, max_size=3)


@settings(max_examples=50, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
@given(
    outputs=st.lists(_OUTPUTS, min_size=LEAST, max_size=LEAST + 4),
    keys=st.lists(st.none() | st.sampled_from(["", "k"]), min_size=LEAST + 4, max_size=LEAST + 4),
    gap=st.integers(1, 3),
)
def test_what_is_packed_is_read_again(outputs: list[Any], keys: list[str | None], gap: int) -> None:
    """Exactly: the same labels, numbers and keys."""
    rows = [labelled(100 + gap * n, output=own, key=keys[n]) for n, own in enumerate(outputs)]
    [chunk] = chunks_of(rows)
    assert list(ChunkResults(row_of(chunk, 7.0))) == stored(rows)


@pytest.mark.parametrize(
    "change",
    [
        {"output": [{"label": "a", "score": 1}]},
        {"output": [{"label": "a", "score": 0.5, "more": 1}]},
        {"output": {"label": "a"}},
        {"output": [{"answer": "a", "score": 0.5}]},
        {"output": [{"label": 3, "score": 0.5}]},
        {"vector": b"1234"},
        {"model_revision": "r2"},
        {"seq": 0},
    ],
)
def test_results_that_are_not_alike_or_not_simple_stay_rows(change: dict[str, Any]) -> None:
    """One of them is enough for all of its task."""
    rows = [labelled(seq) for seq in range(LEAST)]
    rows[3] = replace(rows[3], **change)
    assert packed(rows) == ([], rows)
