"""The queries in the documents run on both databases."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy
import psycopg
import pytest
from sqlalchemy import text

from results_store.records import ResultState, Transaction
from results_store.sql.chunks.packed_rows import packed
from results_store.sql.columns import pack_vector
from results_store.store import Store
from tests.end_to_end.documents import DOCUMENTS, ROOT, blocks
from tests.integration.rows import batch, new_envelope, result, submit

#: The page with the queries for operators.
PAGE = ROOT / "docs" / "operations" / "metrics.md"

_SQL = re.compile(r"^```sql\n(.*?)^```", re.MULTILINE | re.DOTALL)


def queries() -> list[tuple[str, str]]:
    return [
        (f"{path.relative_to(ROOT)}:{text_[: found.start()].count(chr(10)) + 1}", found[1])
        for path in DOCUMENTS
        for text_ in [Path(path).read_text(encoding="utf-8")]
        for found in _SQL.finditer(text_)
    ]


def test_the_vectors_of_a_job_are_read_as_described(store: Store) -> None:
    """Two lines of docs/operations/metrics.md, whichever way the vectors are stored."""
    programs = [block for block in blocks(PAGE) if block.language == "python"]
    [lines] = [block.text for block in programs if "FROM item_results" in block.text]
    submit(store, 2, items=10)
    vectors = [result(seq, output=None, vector=pack_vector([seq, 0.5]), envelope=f"e{seq // 10}") for seq in range(20)]
    chunks, _ = packed(vectors[:10])
    store.transact(Transaction(results=vectors[10:], chunks=chunks))
    with store._database.read() as connection:
        cursor = connection.connection.cursor()
        found: dict[str, Any] = {"connection": cursor, "numpy": numpy, "job": "job"}
        exec(lines, found)
        cursor.close()
    assert found["vectors"].tolist() == [[seq, 0.5] for seq in range(20)]


def test_postgresql_makes_numbers_of_a_vector(postgresql_url: str) -> None:
    """The function in docs/operations/metrics.md for pgvector's type; each number is the same to the last bit."""
    [function] = [block.text for block in blocks(PAGE) if block.language == "postgresql"]
    numbers = numpy.random.default_rng(0).integers(0, 2**32, 2000, "u4").view("<f4")
    numbers = numpy.append(numbers[numpy.isfinite(numbers)], numpy.array([0.0, -0.5, 1e-45, 3.4028235e38], "<f4"))
    with psycopg.connect(postgresql_url, autocommit=True) as connection:
        connection.execute(function.encode())
        [[found]] = connection.execute("SELECT argosy_floats(%s)", [numbers.tobytes()]).fetchall()
    assert numpy.array(found, "<f4").tobytes() == numbers.astype("<f4").tobytes()


@pytest.mark.parametrize("query", [sql for _, sql in queries()], ids=[place for place, _ in queries()])
def test_a_query_finds_something(store: Store, query: str) -> None:
    """A reader copies it as it stands."""
    submit(store, 2)
    error = {"kind": "ModelError", "message": "broke"}
    failed = result(0, state=ResultState.FAILED, output=None, error=error)
    store.commit([failed], done=["e0"], batches=[batch("b0")])
    store.add_envelopes([new_envelope("later")])
    with store._database.read() as connection:
        assert connection.execute(text(query.replace(":", r"\:"))).all()
