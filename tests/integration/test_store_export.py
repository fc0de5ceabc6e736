"""What a user takes away: every result once, in order, readable by anything."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pyarrow.parquet as pq
import pytest

from results_store.errors import UnknownJob
from results_store.export import parquet_export
from results_store.export.parquet_export import write_parquet
from results_store.export.text_export import stream, write_csv, write_jsonl
from results_store.records import Result, ResultState
from results_store.sql.columns import pack_vector
from results_store.store import Store
from tests.integration.rows import result, submit


def fill(store: Store) -> None:
    submit(store, items=3)
    failed = {"kind": "InputTooLarge", "message": 'a "long"\nstory, really'}
    store.commit(
        [
            result(
                0, key="ä,1", output=[{"label": "sport", "score": 0.75}], queued_at=1.5, model="text", precision="bf16"
            ),
            result(1, "embedding", output=None, vector=pack_vector([0.1, -2.0])),
            result(2, state=ResultState.FAILED, output=None, error=failed),
        ],
        at=9.0,
    )


def test_jsonl_has_one_object_a_result(store: Store) -> None:
    """Vectors come as lists, errors with their kind; null where there is nothing."""
    fill(store)
    out = io.StringIO()

    assert write_jsonl(store, "job", out) == 3

    rows = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [(row["seq"], row["task"], row["state"]) for row in rows] == [
        (0, "topic", "succeeded"),
        (1, "embedding", "succeeded"),
        (2, "topic", "failed"),
    ]
    assert rows[0]["key"] == "ä,1"
    assert (rows[0]["output"], rows[0]["queued_at"]) == ([{"label": "sport", "score": 0.75}], 1.5)
    assert [row["precision"] for row in rows] == ["bf16", None, None]
    assert pack_vector(rows[1]["output"]) == pack_vector([0.1, -2.0])
    assert rows[2]["output"] is None
    assert rows[2]["error"]["kind"] == "InputTooLarge"


def test_csv_survives_commas_quotes_and_line_ends(store: Store) -> None:
    """A spreadsheet must read back what was stored."""
    fill(store)
    out = io.StringIO(newline="")

    assert write_csv(store, "job", out) == 3

    rows = list(csv.DictReader(io.StringIO(out.getvalue(), newline="")))
    assert rows[0]["key"] == "ä,1"
    assert json.loads(rows[0]["output"]) == [{"label": "sport", "score": 0.75}]
    assert len(json.loads(rows[1]["output"])) == 2
    assert (rows[2]["error_kind"], rows[2]["error_message"]) == ("InputTooLarge", 'a "long"\nstory, really')
    assert rows[2]["output"] == ""


def test_a_job_is_streamed_page_by_page(store: Store) -> None:
    """A million results must not have to fit into memory."""
    submit(store, items=25)
    store.commit([result(seq) for seq in range(25)])

    assert [r.seq for r in stream(store, "job", page=10)] == list(range(25))


def test_an_unknown_job_is_an_error_and_not_an_empty_file(store: Store) -> None:
    """A mistyped id must not look like a job without results."""
    with pytest.raises(UnknownJob, match="'nope'"):
        write_jsonl(store, "nope", io.StringIO())


# --- Parquet ---


def test_parquet_has_types_and_vectors_as_they_are_stored(store: Store) -> None:
    """Read by anything: numbers as numbers, a vector as a list of float32, null where there is nothing."""
    fill(store)
    out = io.BytesIO()

    assert write_parquet(store, "job", out) == 3

    table = pq.read_table(out)
    assert table.schema.equals(parquet_export.SCHEMA)
    rows = table.to_pylist()
    assert [(row["seq"], row["key"], row["task"], row["state"]) for row in rows] == [
        (0, "ä,1", "topic", "succeeded"),
        (1, None, "embedding", "succeeded"),
        (2, None, "topic", "failed"),
    ]
    assert json.loads(rows[0]["output"]) == [{"label": "sport", "score": 0.75}]
    assert [row["vector"] and pack_vector(row["vector"]) for row in rows] == [None, pack_vector([0.1, -2.0]), None]
    assert (rows[2]["error_kind"], rows[2]["error_message"]) == ("InputTooLarge", 'a "long"\nstory, really')
    assert (rows[0]["queued_at"], rows[0]["batched_at"], rows[0]["stored_at"]) == (1.5, None, 9.0)


def test_parquet_of_an_unfinished_job_is_a_file_without_rows(store: Store) -> None:
    """It has its columns all the same; a reader need not know of it."""
    submit(store)
    out = io.BytesIO()

    assert write_parquet(store, "job", out) == 0

    assert pq.read_table(out).schema.equals(parquet_export.SCHEMA)


def test_parquet_is_written_while_it_is_read(store: Store, store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory holds a row group, whatever the size of the job: each is out before the next is read."""
    monkeypatch.setattr(parquet_export, "GROUP_ROWS", 1000)
    submit(store, items=5000)
    store.commit([result(seq, "embedding", output=None, vector=pack_vector([seq, -seq])) for seq in range(5000)])
    out = io.BytesIO()
    written: list[int] = []

    class Watched(Store):
        def results(self, *given: Any, **options: Any) -> list[Result]:
            written.append(out.tell())
            return super().results(*given, **options)

    with Watched(store_url) as watched:
        write_parquet(watched, "job", out)

    assert written == sorted(set(written))
    file = pq.ParquetFile(out)
    assert [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)] == [1000] * 5
    assert file.read(["vector"])["vector"].to_pylist() == [[seq, -seq] for seq in range(5000)]
