"""Tables as spreadsheets, databases and corpora write them: each row is right, or an error that names its line."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow.csv import WriteOptions, write_csv

from producers.sources import Source
from producers.sources.delimited import tab_separated
from producers.sources.file_reading import Meter, Reading
from producers.wire.errors import InvalidInput
from tests.unit.test_sources import pairs, read

CELLS = st.lists(
    st.sampled_from(["a", "b c", '"', '""', '"q"', ",", ";", "|", "\t", "\n", "\r\n", "é", "'"]), max_size=6
).map("".join)


def written(rows: list[tuple[str, str]], **dialect: Any) -> bytes:
    made = io.StringIO(newline="")
    writer = csv.writer(made, **dialect)
    writer.writerow(("id", "text"))
    writer.writerows(rows)
    return made.getvalue().encode()


@given(
    st.lists(CELLS, min_size=1, max_size=8),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    st.sampled_from(",;|\t"),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["", "\ufeff", "\n\n", "\ufeff\r\n"]),
    st.booleans(),
)
def test_whatever_writes_csv_its_rows_come_back(
    cells: list[str], quoting: int, separator: str, end: str, before: str, ended: bool
) -> None:
    """No row is lost, joined with another or changed, down to the line ends within a cell."""
    rows = [(str(number), cell) for number, cell in enumerate(cells)]
    with tempfile.TemporaryDirectory() as folder:
        table = before.encode() + written(rows, quoting=quoting, delimiter=separator, lineterminator=end)
        assert pairs(read(Path(folder, "a.csv"), table if ended else table.removesuffix(end.encode()))) == rows


@given(
    st.lists(CELLS, min_size=1, max_size=8),
    st.sampled_from(["needed", "all_valid"]),
    st.sampled_from(",;|\t"),
)
def test_rows_that_arrow_writes_come_back(cells: list[str], quoting: str, separator: str) -> None:
    rows = [(str(number), cell) for number, cell in enumerate(cells)]
    table = pa.table({"id": [key for key, _ in rows], "text": cells})
    made = io.BytesIO()
    write_csv(table, made, WriteOptions(quoting_style=quoting, delimiter=separator))
    with tempfile.TemporaryDirectory() as folder:
        assert pairs(read(Path(folder, "a.csv"), made.getvalue())) == rows


@given(
    st.lists(
        st.sampled_from(["a", "caf\u00e9", "\u65e5\u672c", "\u201cx\u201d", 'a "b"\n\u00e9', "\u20ac, 5"]), min_size=1
    ),
    st.sampled_from(
        ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "shift-jis", "gb18030", "koi8-r"]
    ),
    st.sampled_from(["a.csv", "a.tsv", "a.jsonl", "a.txt"]),
)
def test_in_no_encoding_a_row_is_read_wrong(cells: list[str], encoding: str, name: str) -> None:
    """A row is right, or an error that names its line, or the file is refused."""
    known = (cell.encode(encoding, "replace").decode(encoding) for cell in cells)
    rows = [(str(number), cell) for number, cell in enumerate(known, 1)]
    if name == "a.txt":
        rows = [(key, cell.replace("\n", " ")) for key, cell in rows]
        text = "".join(f"{cell}\n" for _, cell in rows)
    elif name == "a.jsonl":
        text = "".join(f"{json.dumps({'id': key, 'text': cell}, ensure_ascii=False)}\n" for key, cell in rows)
    else:
        text = written(rows, delimiter="\t" if name == "a.tsv" else ",").decode()
    with tempfile.TemporaryDirectory() as folder, suppress(InvalidInput):
        found = pairs(read(Path(folder, name), text.encode(encoding)))
        assert [row for row in found if row[0]] == [row for row in rows if row in found]
        assert len(found) == len(rows)
        if encoding.startswith("utf-8"):
            assert found == rows


@given(
    st.lists(CELLS.filter(lambda cell: not ("\t" in cell and "\n" in cell)), min_size=1, max_size=8),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_whatever_writes_tab_separated_values_its_rows_come_back(cells: list[str], quoting: int) -> None:
    rows = [(str(number), cell) for number, cell in enumerate(cells)]
    with tempfile.TemporaryDirectory() as folder:
        table = written(rows, quoting=quoting, delimiter="\t")
        assert pairs(read(Path(folder, "a.tsv"), table)) == rows


@given(st.lists(st.sampled_from(['"one', 'two"', 'a "b" c', '"', "plain", '"quoted"']), min_size=1, max_size=8))
def test_a_corpus_without_quoting_keeps_its_marks(cells: list[str]) -> None:
    """The registered type of tab-separated values has no quoting; most corpora are written so."""
    rows = [(str(number), cell) for number, cell in enumerate(cells)]
    with tempfile.TemporaryDirectory() as folder:
        table = "id\ttext\n" + "".join(f"{key}\t{cell}\n" for key, cell in rows)
        assert pairs(read(Path(folder, "a.tsv"), table)) == rows


@pytest.mark.parametrize(
    "table",
    ["id;text\n1;one\n", "id|text\n1|one\n", "id\ttext\n1\tone\n", "sep=;\nid;text\n1;one\n", "\n \nid,text\n1,one\n"],
)
def test_the_header_tells_the_separator(tmp_path: Path, table: str) -> None:
    """A whole line is never computed as a text. Blank lines before the header are no header."""
    assert pairs(read(tmp_path / "a.csv", table)) == [("1", "one")]


@pytest.mark.parametrize(
    ("table", "error"),
    [
        (
            'id,text\n1,"he said "hi" and\nmore, of it"\n2,ok\n',
            "a.csv:2: is not CSV: ',' expected after '\"'; lines up to 3 may belong to it, and are left out; double the",
        ),
        (b'id,text\n1,"caf\xe9\nmore, of it"\n2,ok\n', "a.csv:2: is not UTF-8 (byte 0xe9 at place 7); convert"),
        (b'id,text\n1,"cafe\nm\xe9re, of it"\n2,ok\n', "a.csv:3: is not UTF-8 (byte 0xe9 at place 2); convert"),
        ('id,text\n1,"x" y\n2,ok\n', "a.csv:2: is not CSV: ',' expected after '\"'; double the"),
    ],
)
def test_no_row_comes_out_of_the_middle_of_a_cell(tmp_path: Path, table: bytes | str, error: str) -> None:
    """After an error reading goes on behind the whole record."""
    (_, found), last = pairs(read(tmp_path / "a.csv", table))
    assert str(found).removeprefix(f"{tmp_path}/").startswith(error)
    assert last == ("2", "ok")


def test_a_mark_that_is_never_closed_names_the_line_where_it_opens(tmp_path: Path) -> None:
    """Its last line would be of no use to somebody who looks for it."""
    table = 'id,text\n1,fine\n2,"never closed\n' + "".join(f"{n},row {n}\n" for n in range(3, 60))
    first, (_, error) = pairs(read(tmp_path / "a.csv", table))
    assert first == ("1", "fine")
    assert "a.csv:3: opens a quotation mark that is never closed; lines up to 60 belong to it" in str(error)
    with pytest.raises(ValueError, match=r"a\.csv:3: opens a quotation mark that is not closed within 100 bytes"):
        read(tmp_path / "a.csv", table, line_bytes=100)


def test_a_cell_may_be_long(tmp_path: Path) -> None:
    """The csv module's own limit is that of 1995."""
    assert pairs(read(tmp_path / "a.csv", f"id,text\n1,{'x' * 200_000}\n")) == [("1", "x" * 200_000)]


def test_a_record_of_several_lines_is_numbered_by_its_first(tmp_path: Path) -> None:
    table = 'text\n"one\ntwo"\nthree\n'
    assert pairs(read(tmp_path / "a.csv", table)) == [("2", "one\ntwo"), ("4", "three")]


def test_line_ends_of_cr_alone_are_refused(tmp_path: Path) -> None:
    """A whole file would be one item."""
    for name in ("a.csv", "a.txt"):
        with pytest.raises(ValueError, match="has line ends of CR alone; convert the file: tr"):
            read(tmp_path / name, "text\rone\rtwo\r")


def test_a_part_without_a_header_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\none\n")
    (tmp_path / "b.csv").touch()
    found = pairs(list(Source([tmp_path / "a.csv", tmp_path / "b.csv"], "text").rows()))
    assert "b.csv:1: has no header" in str(found[1][1])


def test_any_number_of_rows_may_put_lines_back() -> None:
    """Put back one around another, so many would overflow the stack."""
    count = 120_000
    file = io.BytesIO(b"id\ttext\n" + b'1\t"Stop," she said\n' * count)
    rows = tab_separated(Reading("a.tsv", file, Meter(), lambda names: None))
    assert sum(row == {"id": "1", "text": '"Stop," she said'} for _, row in rows) == count


def test_no_row_is_lost_where_reading_ahead_ends(tmp_path: Path) -> None:
    rows = [("0", '"never closed'), *((str(n), "x" * 300_000) for n in range(1, 8))]
    table = "id\ttext\n" + "".join(f"{id_}\t{text}\n" for id_, text in rows)
    assert pairs(read(tmp_path / "a.tsv", table)) == rows
