"""Results beside the rows of their source: what is missing says so, and why."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from producers.client.request import Request
from producers.joining import check_columns, write_joined
from producers.sources import Source
from producers.wire.catalogue import Catalogue
from producers.wire.errors import InvalidInput
from results_store.records import Result, ResultState

CATALOGUE = Catalogue({}).with_models({"m": {"tasks": {"topic": "text-classification"}}}, where="fleet.toml")
REQUEST = Request.check(CATALOGUE, "topic", priority="bulk")


def result(seq: int, key: str, **changes: object) -> Result:
    given = {"job": "job", "task": "topic", "envelope": "e", "state": ResultState.SUCCEEDED, "output": key.upper()}
    return Result(**{"seq": seq, "key": key, **given, **changes})  # type: ignore[arg-type]


def joined(folder: Path, rows: list[dict[str, object]], results: list[Result]) -> list[dict[str, object]]:
    source = folder / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert write_joined(Source(source, "text"), REQUEST, results, folder / "out.jsonl") == len(rows)
    return [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]


def test_a_source_that_is_longer_than_its_job_says_so_in_each_further_row(tmp_path: Path) -> None:
    """Rows that were never submitted must not look complete, nor rows that were refused."""
    rows = [{"id": key, "text": text} for key, text in (("a", "one"), ("b", ""), ("c", "three"), ("d", "four"))]
    error = {"kind": "ModelError", "message": "broke"}
    results = [result(0, "a"), result(2, "c", state=ResultState.FAILED, output=None, error=error)]
    found = joined(tmp_path, rows, results)
    assert [(row["id"], row["topic"]) for row in found] == [("a", "A"), ("b", None), ("c", None), ("d", None)]
    assert found[0]["error"] is None
    assert "empty" in str(found[1]["error"])
    assert found[2]["error"] == "topic: ModelError: broke"
    assert found[3]["error"] == "no result; was this row submitted?"


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_the_revision_stands_beside_each_answer_if_it_is_asked_for(tmp_path: Path, suffix: str) -> None:
    """After a change of the model, a file may hold answers of both; a source's own column keeps its name."""
    (tmp_path / "in.jsonl").write_text('{"id": "a", "text": "t", "topic_revision": "mine"}\n{"id": "b", "text": "t"}\n')
    out = tmp_path / f"out.{suffix}"
    source, results = Source(tmp_path / "in.jsonl", "text"), [result(0, "a", model_revision="m@1")]
    write_joined(source, REQUEST, results, out, revisions=True)
    if suffix == "parquet":
        rows = pq.read_table(out).to_pylist()
    elif suffix == "csv":
        rows = list(csv.DictReader(out.read_text().splitlines()))
    else:
        rows = [json.loads(line) for line in out.read_text().splitlines()]
    found = [[row.get(name) or None for name in ("topic_revision", "topic_revision_")] for row in rows]
    assert found == [["mine", "m@1"], [None, None]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([2**60 + 1, 5], [2**60 + 1, 5]),
        ([2**53, 0.5], [2.0**53, 0.5]),
        ([2**60 + 1, 0.5], [str(2**60 + 1), "0.5"]),
        ([5, 2**64 + 1], ["5", str(2**64 + 1)]),
        ([10**30, None], [str(10**30), None]),
    ],
)
def test_no_digit_of_a_number_is_lost_in_parquet(tmp_path: Path, values: list[object], expected: list[object]) -> None:
    """A column whose numbers no type of Parquet holds is text."""
    source = tmp_path / "in.jsonl"
    source.write_text(
        "".join(json.dumps({"id": key, "text": "x", "n": n}) + "\n" for key, n in zip("ab", values, strict=True))
    )
    write_joined(Source(source, "text"), REQUEST, [result(0, "a"), result(1, "b")], tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet")["n"].to_pylist() == expected


def test_a_source_that_has_changed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="changed since its submission"):
        joined(tmp_path, [{"id": "b", "text": "one"}], [result(0, "a")])
    with pytest.raises(InvalidInput, match="ends before row 1"):
        joined(tmp_path, [{"id": "a", "text": "one"}], [result(0, "a"), result(1, "b")])


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_rows_without_ids_that_have_changed_are_not_joined(tmp_path: Path, suffix: str, when: str) -> None:
    """Their line numbers are those of other rows."""
    path, out = tmp_path / "in.jsonl", tmp_path / f"out.{suffix}"
    path.write_text('"one"\n"two"\n')
    source, results = Source(path, "text"), [result(0, "1"), result(1, "2")]
    fingerprint = source.fingerprint()
    assert write_joined(source, REQUEST, results, out, fingerprint=fingerprint) == 2
    out.unlink()

    def stored() -> Iterator[Result]:
        for row in results:
            yield row
            path.write_text('"zero"\n"one"\n"two"\n')

    if when == "before":
        path.write_text('"zero"\n"one"\n"two"\n')
    with pytest.raises(InvalidInput, match=r"in\.jsonl: differs in .*; the file has changed since its submission"):
        write_joined(source, REQUEST, stored(), out, fingerprint=fingerprint)
    assert [file.name for file in tmp_path.iterdir()] == ["in.jsonl"]


UNCHANGED = {
    "nanoseconds": pa.array([1], pa.timestamp("ns")),
    "time": pa.array([5], pa.time64("ns")),
    "infinity": pa.array([2**63 - 1], pa.timestamp("us")),
    "list": pa.array([[1_700_000_000_000_000_001]], pa.list_(pa.timestamp("ns"))),
    "dictionary": pa.array([5], pa.timestamp("us")).dictionary_encode(),
    "uuid": pa.ListArray.from_arrays([0, 1], pa.array([bytes(16)], pa.uuid())),
    "decimal": pa.array([Decimal("1.50")]),
    "unknown zone": pa.array([1], pa.timestamp("us", "Mars/Phobos")),
    "two fields of one name": pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]),
}


@pytest.mark.parametrize("name", UNCHANGED)
@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_a_column_that_is_not_read_comes_back(tmp_path: Path, name: str, suffix: str) -> None:
    """Python has no value like it; the job is computed, and its rows are not lost for a column of no concern."""
    table = pa.table({"text": ["a"], "other": UNCHANGED[name]})
    pq.write_table(table, tmp_path / "in.parquet")
    out = tmp_path / f"out.{suffix}"
    assert write_joined(Source(tmp_path / "in.parquet", "text"), REQUEST, [result(0, "1")], out) == 1
    if suffix == "parquet":
        assert pq.read_table(out)["other"].equals(pq.read_table(tmp_path / "in.parquet")["other"])


@pytest.mark.parametrize("type_", [pa.binary(), pa.binary(2)])
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_bytes_are_base64_where_there_is_text_alone(tmp_path: Path, type_: Any, suffix: str) -> None:
    table = pa.table(
        {"text": ["a"], "other": pa.array([b"\xff\0"], type_), "list": pa.array([[b"ab"]], pa.list_(type_))}
    )
    pq.write_table(table, tmp_path / "in.parquet")
    out = tmp_path / f"out.{suffix}"
    write_joined(Source(tmp_path / "in.parquet", "text"), REQUEST, [result(0, "1")], out)
    with out.open(newline="") as file:
        (row,) = csv.DictReader(file) if suffix == "csv" else map(json.loads, file)
    assert row["other"] == "/wA="
    assert row["list"] == ('["YWI="]' if suffix == "csv" else ["YWI="])


@pytest.mark.parametrize(
    "column", [pa.array(["x"], pa.string_view()), pa.array([["x"]], pa.list_(pa.string_view())), pa.array([b"x"])]
)
def test_the_texts_of_polars_come_back(tmp_path: Path, column: Any) -> None:
    """It writes views, on which Arrow computes little."""
    table = pa.table({"text": ["a"], "other": column})
    with pa.ipc.new_file(tmp_path / "in.arrow", table.schema) as writer:
        writer.write_table(table)
    assert write_joined(Source(tmp_path / "in.arrow", "text"), REQUEST, [result(0, "1")], tmp_path / "o.parquet") == 1
    assert pq.read_table(tmp_path / "o.parquet")["other"].to_pylist() == column.to_pylist()


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (pa.array(["x"]), pa.array(["y"]).dictionary_encode(), ["x", "y"]),
        (pa.array(["x"]).dictionary_encode(), pa.array(["y"]), ["x", "y"]),
        (pa.array([Decimal("1.50")]), pa.array([Decimal("1.5001")]), [Decimal("1.5000"), Decimal("1.5001")]),
        (pa.nulls(1), pa.array(["y"]).dictionary_encode(), [None, "y"]),
        (pa.array([1]), pa.array([1.5]), [1.0, 1.5]),
    ],
)
def test_columns_of_several_files_keep_their_values(
    tmp_path: Path, first: Any, second: Any, expected: list[Any]
) -> None:
    """A row group may hold rows of both."""
    for name, column in (("a", first), ("b", second)):
        pq.write_table(pa.table({"id": [name], "text": ["t"], "other": column}), tmp_path / f"{name}.parquet")
    source, out = Source(f"{tmp_path}/?.parquet", "text"), tmp_path / "out.parquet"
    check_columns(source, out)
    assert write_joined(source, REQUEST, [result(0, "a"), result(1, "b")], out) == 2
    assert pq.read_table(out)["other"].to_pylist() == expected


@pytest.mark.parametrize(
    ("first", "second", "type_"),
    [
        (pa.array([2**60 + 1]), pa.array([1.5]), "double"),
        (pa.array([10**12], pa.timestamp("s")), pa.array([1], pa.timestamp("ns")), r"timestamp\[ns\]"),
    ],
)
def test_a_value_that_does_not_fit_is_said_before_the_job(tmp_path: Path, first: Any, second: Any, type_: str) -> None:
    pq.write_table(pa.table({"text": ["a"], "n": first}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["a"], "n": second}), tmp_path / "b.parquet")
    message = rf"a\.parquet: column n: does not fit the other files' type {type_}: .*; give each column one type"
    with pytest.raises(InvalidInput, match=message):
        check_columns(Source(f"{tmp_path}/?.parquet", "text"), tmp_path / "out.parquet")


def test_numbers_that_json_does_not_have_are_null(tmp_path: Path) -> None:
    numbers = [float("nan"), float("inf")]
    pq.write_table(pa.table({"text": ["a"], "n": numbers[:1], "list": [numbers]}), tmp_path / "in.parquet")
    write_joined(Source(tmp_path / "in.parquet", "text"), REQUEST, [result(0, "1")], tmp_path / "out.jsonl")
    assert '"n":null,"list":[null,null],' in (tmp_path / "out.jsonl").read_text()


def test_the_categories_of_polars_come_back_as_texts(tmp_path: Path) -> None:
    categories = pa.DictionaryArray.from_arrays(pa.array([0], pa.uint32()), pa.array(["x"], pa.string_view()))
    table = pa.table({"text": ["a"], "other": categories})
    with pa.ipc.new_file(tmp_path / "in.arrow", table.schema) as writer:
        writer.write_table(table)
    source = Source(tmp_path / "in.arrow", "text")
    assert write_joined(source, REQUEST, [result(0, "1")], tmp_path / "out.parquet") == 1
    assert pq.read_table(tmp_path / "out.parquet")["other"].to_pylist() == ["x"]


def test_a_row_that_cannot_be_read_has_no_values_in_columns_that_always_have_some(tmp_path: Path) -> None:
    texts = pa.StringArray.from_buffers(2, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"\xffa"))
    schema = pa.schema([pa.field(name, type_, nullable=False) for name, type_ in (("text", "string"), ("n", "int64"))])
    pq.write_table(pa.Table.from_arrays([texts, pa.array([1, 2])], schema=schema), tmp_path / "in.parquet")
    source, out = Source(tmp_path / "in.parquet", "text"), tmp_path / "out.parquet"
    check_columns(source, out)
    assert write_joined(source, REQUEST, [result(1, "2")], out) == 2
    rows = pq.read_table(out).to_pylist()
    assert [(row["text"], row["n"], row["topic"]) for row in rows] == [(None, None, None), ("a", 2, '"2"')]
    assert "is not UTF-8 in the column 'text'" in rows[0]["error"]


@pytest.mark.parametrize("where", ["*.png", "?.*"])
def test_pictures_that_are_named_have_a_table_of_results(tmp_path: Path, where: str) -> None:
    """A pattern's pictures are a column of paths, as a folder's are, also beside a table."""
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    (tmp_path / "b.png").write_bytes(b"\x89PNG")
    pq.write_table(pa.table({"image": ["a.png"], "n": [1]}), tmp_path / "c.parquet")
    source, out = Source(f"{tmp_path}/{where}", "image"), tmp_path / "out.parquet"
    check_columns(source, out)
    write_joined(source, REQUEST, [result(0, "a.png"), result(1, "b.png")], out)
    rows = pq.read_table(out).to_pylist()
    assert [(row["path"], row["topic"]) for row in rows][:2] == [
        (f"{tmp_path}/a.png", '"A.PNG"'),
        (f"{tmp_path}/b.png", '"B.PNG"'),
    ]


def test_a_type_that_parquet_does_not_have_is_said_before_the_job(tmp_path: Path) -> None:
    union = pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])])
    table = pa.table({"text": ["a"], "other": union})
    with pa.ipc.new_file(tmp_path / "in.arrow", table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(InvalidInput, match=r"column other: is .*union.*, which Parquet does not have; cast the column"):
        check_columns(Source(tmp_path / "in.arrow", "text"), tmp_path / "out.parquet")
