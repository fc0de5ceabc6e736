"""Texts of strangers in CSV: exact for programs, or harmless in a spreadsheet and exact after one step."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers.client.request import Request
from producers.joining import write_joined
from producers.sources import Source
from producers.wire.catalogue import Catalogue
from results_store.export.spreadsheet import Cells, is_formula
from results_store.export.text_export import write_table
from results_store.records import Result, ResultState

FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1+1", '=HYPERLINK("x";"y")']  # noqa: RUF001
NONE = ["", "a=b", "1-2", "-5", "+3.25", "-1e-9", " =1", "a;=1", "'quoted", '[{"label":"=1"}]', 5, -5, -0.5, None]


def table(rows: list[list[Any]], *, escaped: bool) -> tuple[list[list[str]], Cells]:
    out, cells = io.StringIO(newline=""), Cells(escaped=escaped)
    write_table(out, rows[0], rows[1:], cells)
    return list(csv.reader(io.StringIO(out.getvalue(), newline=""))), cells


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_is_found(text: str) -> None:
    assert is_formula(text)
    read, cells = table([[text], [text]], escaped=True)
    assert read == [[f"'{text}"]] * 2
    assert cells.formulas == 2


@pytest.mark.parametrize("cell", NONE)
def test_numbers_and_other_texts_are_none(cell: object) -> None:
    assert not is_formula(cell)


@given(st.lists(st.lists(st.text(st.characters(codec="utf-8")), min_size=2, max_size=2), min_size=1))
def test_every_text_comes_back_exactly(rows: list[list[str]]) -> None:
    """As it is by default; if escaped, by removing one apostrophe."""
    assert table(rows, escaped=False)[0] == rows
    read, _ = table(rows, escaped=True)
    assert [[cell.removeprefix("'") for cell in row] for row in read] == rows
    assert not [cell for row in read for cell in row if is_formula(cell)]


def test_no_cell_begins_inside_another() -> None:
    """Where a spreadsheet splits at semicolons, each text stays in its quotes."""
    out = io.StringIO(newline="")
    write_table(out, ["a", "b"], [["x;=1+1", -5]], Cells(escaped=True))
    assert out.getvalue() == '"a","b"\r\n"x;=1+1",-5\r\n'


def test_joined_rows_are_escaped_in_all_columns(tmp_path: Path) -> None:
    """Names and values of the source's columns, and errors; numbers stay numbers."""
    catalogue = Catalogue({}).with_models({"m": {"tasks": {"topic": "text-classification"}}}, where="fleet.toml")
    request = Request.check(catalogue, "topic", priority="bulk")
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps({"id": "@a", "text": "=1+1", "=head": -5}) + "\n", encoding="utf-8")
    failed = Result(
        job="j",
        seq=0,
        key="@a",
        task="topic",
        envelope="e",
        state=ResultState.FAILED,
        error={"kind": "E", "message": "=x"},
    )
    cells = Cells(escaped=True)
    write_joined(Source(source, "text"), request, [failed], tmp_path / "out.csv", cells)
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        read = list(csv.reader(file))
    assert read == [["id", "text", "'=head", "topic", "error"], ["'@a", "'=1+1", "-5", "", "topic: E: =x"]]
    assert cells.formulas == 3
    write_joined(Source(source, "text"), request, [failed], tmp_path / "exact.csv")
    assert "@a,=1+1,-5,,topic: E: =x" in (tmp_path / "exact.csv").read_text("utf-8")
