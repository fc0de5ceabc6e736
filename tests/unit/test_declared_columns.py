"""Tables and windows of sensor values by the columns that a model declares; what does not fit is named."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from producers.client.request import NewItem
from producers.sources import Row, Source
from producers.wire.errors import InvalidInput

PLAN = {"enum": ["1", "3+", None]}
CHURN = {"type": "object", "properties": {"age": {"type": ["number", "null"]}, "plan": PLAN}}
CHANNELS = {name: {"type": "array", "items": {"type": ["number", "null"]}} for name in ("x", "y")}
MOTION = {"type": "object", "properties": CHANNELS}


def pairs(rows: list[Row]) -> list[tuple[str | None, object]]:
    return [(row.key, row.input) if isinstance(row, NewItem) else (None, str(row)) for row in rows]


def read(path: Path, content: str, modality: str, declared: dict[str, Any], **options: Any) -> list[Row]:
    path.write_text(content, encoding="utf-8", newline="")
    return list(Source(path, modality, declared=declared, **options).rows())


def test_a_tables_columns_are_the_models(tmp_path: Path) -> None:
    """As Excel saves it: a mark, semicolons, an id, a label, gaps. A number is a word where the model has words."""
    table = "\ufeffcustomer;age;plan;churn\r\n7;44;1;yes\r\n8;;3+;no\r\n9;NaN; ;no\r\n"
    assert pairs(read(tmp_path / "a.csv", table, "row", CHURN, key_column="customer")) == [
        ("7", {"age": 44.0, "plan": "1"}),
        ("8", {"age": None, "plan": "3+"}),
        ("9", {"age": None, "plan": None}),
    ]


def test_rows_that_do_not_fit_are_named(tmp_path: Path) -> None:
    """A short row and a word among numbers cost only themselves; a column that is missing costs the file."""
    found = pairs(read(tmp_path / "a.csv", 'age,plan\n4,1\n5\n"1,5",1\ninf,1\n6,3+\n', "row", CHURN))
    assert [key for key, _ in found] == ["2", None, None, None, "6"]
    assert "a.csv:3: has 1 columns where the header has 2" in str(found[1][1])
    assert "a.csv:4: age: is '1,5', in a column of numbers" in str(found[2][1])
    assert "a.csv:5: age: is 'inf'" in str(found[3][1])
    with pytest.raises(InvalidInput, match="has no column 'age'; columns here: Age, plan; the model's: age, plan"):
        read(tmp_path / "b.csv", "Age,plan\n4,1\n", "row", CHURN)
    with pytest.raises(InvalidInput, match="no worker has described the model yet; start a worker, or name each"):
        read(tmp_path / "b.csv", "age,plan\n4,1\n", "row", {})
    named = read(tmp_path / "b.csv", "age,plan\n4,gold\n", "row", {}, input_column=["age", "plan"])
    assert pairs(named) == [("2", {"age": 4.0, "plan": "gold"})]


def test_other_formats_keep_their_types(tmp_path: Path) -> None:
    """JSON's texts stay texts; a database's decimals are numbers; objects in one column still work."""
    lines = '{"age": "4", "plan": "1", "churn": 0}\n{"row": {"age": 5, "plan": null}}\n'
    assert pairs(read(tmp_path / "a.jsonl", lines, "row", CHURN)) == [
        ("1", {"age": "4", "plan": "1"}),
        ("2", {"age": 5, "plan": None}),
    ]
    features = read(tmp_path / "b.jsonl", '{"features": {"age": 5, "plan": "1"}}\n', "row", CHURN)
    assert pairs(features) == [("1", {"age": 5, "plan": "1"})]
    pq.write_table(pa.table({"age": [Decimal("4.5")], "plan": ["1"]}), tmp_path / "a.parquet")
    rows = list(Source(tmp_path / "a.parquet", "row", declared=CHURN).rows())
    assert pairs(rows) == [("1", {"age": 4.5, "plan": "1"})]


STEPS = "window,t,x,y\na,0,1,2\na,1,3,\nb,0,5,6\n"


def test_rows_of_sensor_values_become_windows(tmp_path: Path) -> None:
    """By their id, or a file each; a model's channels alone."""
    windows = [("a", {"x": [1.0, 3.0], "y": [2.0, None]}), ("b", {"x": [5.0], "y": [6.0]})]
    assert pairs(read(tmp_path / "a.csv", STEPS, "series", MOTION, key_column="window")) == windows
    whole = {"x": [1.0, 3.0, 5.0], "y": [2.0, None, 6.0]}
    assert pairs(read(tmp_path / "a.csv", STEPS, "series", MOTION)) == [(str(tmp_path / "a.csv"), whole)]
    table = pa.table({"id": ["a", "a", "b"], "x": [1, 3, 5], "y": [2, None, 6]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert pairs(list(Source(tmp_path / "a.parquet", "series", declared=MOTION).rows())) == windows
    lines = '{"id": "a", "x": [1, 3], "y": [2, null]}\n{"series": [[5], [6]]}\n'
    assert pairs(read(tmp_path / "a.jsonl", lines, "series", MOTION)) == [
        ("a", {"x": [1, 3], "y": [2, None]}),
        ("2", [[5], [6]]),
    ]


def test_the_id_of_a_window_may_be_bytes_of_a_text(tmp_path: Path) -> None:
    for ids, keys in (([b"a", b"a", b"b"], ["a", "b"]), ([b"a", b"a", b"\xff"], [None])):
        table = pa.table({"window": pa.array(ids, pa.binary(1)), "x": [1.0, 3.0, 5.0], "y": [2.0, 4.0, 6.0]})
        pq.write_table(table, tmp_path / "a.parquet")
        found = pairs(list(Source(tmp_path / "a.parquet", "series", declared=MOTION, key_column="window").rows()))
        assert [key for key, _ in found] == keys
    assert "a.parquet:3: has bytes that are not UTF-8 as its window; cast the column to text" in str(found[0][1])


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ("b,1,z,6\n", "a.csv:5: x: is 'z', in a column of numbers"),
        ("b\n", "a.csv:5: has 1 columns where the header has 4"),
        ("a,2,7,8\nb,1,5,6\n", "a.csv:5: goes on with window 'a', which begins at "),
        (",1,5,6\n", "a.csv:5: has no window; each row needs the id of its window"),
    ],
)
def test_a_bad_row_costs_its_window(tmp_path: Path, bad: str, problem: str) -> None:
    """A series with a gap in it is another series, and so is one in two pieces. The others are whole."""
    found = read(tmp_path / "a.csv", STEPS + bad + "c,0,5,6\nd,0,5,6\n", "series", MOTION, key_column="window")
    errors = [str(row) for row in found if isinstance(row, InvalidInput)]
    assert problem in errors[0]
    assert {row.key for row in found if isinstance(row, NewItem)} <= {"a", "b", "c", "d"}
    assert [row for row in found if isinstance(row, NewItem)][-1].key == "d"
    assert "b" not in {row.key for row in found if isinstance(row, NewItem)} or bad.startswith("a,")


def test_steps_in_json_lines_may_lack_a_channel(tmp_path: Path) -> None:
    """Each row has columns of its own there."""
    lines = ['{"id": "a", "x": 1, "y": 2}', '{"id": "a", "x": 1}', '{"id": "b", "x": 1, "y": 2}', '{"x": 1, "y": 2}']
    lines += ['{"id": "c", "x": 1, "y": 2}', '{"id": "d", "x": 1, "y": null}']
    found = pairs(read(tmp_path / "a.jsonl", "\n".join(lines), "series", MOTION))
    assert [key for key, _ in found] == [None, None, None, "d"]
    assert "a.jsonl:2: is no step of a series" in str(found[0][1])
    assert "a.jsonl:4: has no id" in str(found[2][1])
