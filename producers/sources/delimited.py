"""Read CSV and tab-separated tables in constant memory.

A record may span lines. An error costs its record alone, and no row comes out of the middle of a cell.
"""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from producers.sources.file_reading import Raw, Reading, repeated
from producers.sources.lines import decoded, physical_lines
from producers.wire.errors import InvalidInput

#: A record's first line, and its cells or its error.
_Record: TypeAlias = tuple[int, list[str] | InvalidInput]

#: The separators of a CSV file. Spreadsheets write `;` where the comma is the decimal sign.
_SEPARATORS = ",;|\t"

#: The line that some spreadsheets write before the header.
_DECLARED = re.compile(r'"?sep=(.)"?\s*$', re.IGNORECASE)

_QUOTED = re.compile(r'"(?:[^"]|"")*"?')

#: The most lines and characters that are read ahead to find the end of a record.
_AHEAD_LINES, _AHEAD_CHARACTERS = 1_000, 1_000_000

_MARKS = "double the quotation marks within a cell"


def comma_separated(reading: Reading) -> Iterator[Raw]:
    """Read CSV with a header. The separator is the header's: a comma, a semicolon, a bar or a tab."""
    lines = _Lines(reading)
    header = lines.header()
    declared = _DECLARED.match(header)
    if declared:
        next(lines)
        lines.header()
    separator = declared[1] if declared else max(_SEPARATORS, key=_QUOTED.sub("", header).count)
    return _table(_quoted_records(lines, separator, reading), reading)


def tab_separated(reading: Reading) -> Iterator[Raw]:
    """Read tab-separated values with a header.

    If all of the header's cells are quoted, the cells are quoted as CSV's are. Else a cell counts as quoted if it holds
    doubled marks, a separator or a line end, and any other quotation mark is a character of its cell. Lines that have
    the header's number of cells each are rows, although a quoted cell could span them. In a table of one column nothing
    tells these apart, and such lines are refused.
    """
    lines = _Lines(reading)
    header = lines.header().rstrip("\r\n")
    if header and all(map(_is_closed, header.split("\t"))):
        return _table(_quoted_records(lines, "\t", reading), reading)
    return _table(_tab_records(lines, header.count("\t") + 1), reading)


def _table(records: Iterator[_Record], reading: Reading) -> Iterator[Raw]:
    number, columns = next(records, (0, []))
    if not columns:
        yield 1, reading.wrong(1, "has no header", "the first line names the columns")
        return
    if isinstance(columns, InvalidInput):
        raise reading.wrong(number, f"no header can be read: it {columns.problem}", "the first line names the columns")
    twice = repeated(columns)
    if twice is not None:
        raise reading.wrong(number, f"names the column {twice!r} twice", "give each column its own name")
    reading.columns(columns)
    headers = (columns, [f"\ufeff{columns[0]}", *columns[1:]]) if len(columns) > 1 else ()
    for number, cells in records:
        if isinstance(cells, InvalidInput):
            yield number, cells
        elif cells in headers:
            yield number, reading.wrong(number, "is the header again, as in joined files", "take the line out")
        elif len(cells) != len(columns):
            counts = f"has {len(cells)} columns where the header has {len(columns)}"
            yield number, reading.wrong(number, counts, "quote cells that contain the separator")
        else:
            yield number, dict(zip(columns, cells, strict=True))


class _Lines:
    """A file's lines with their ends, for the csv module. A class, because a generator cannot go on after an error.

    `begin` starts a record; `first` and `last` are then the numbers of its lines, and `damage` is the error of a line
    that is not UTF-8.
    """

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._lines: Iterator[tuple[int, bytes | InvalidInput]] = physical_lines(reading)
        self._waiting: deque[tuple[int, bytes | InvalidInput]] = deque()
        csv.field_size_limit(max(csv.field_size_limit(), reading.line_bytes))
        self.begin()

    def begin(self) -> None:
        self.first = self.last = self._size = 0
        self.damage: InvalidInput | None = None

    def header(self) -> str:
        """Return the first line that is not blank, without taking it; "" if there is none.

        Raises InvalidInput if it cannot be read.
        """
        while (line := self._taken()) is not None:
            text = line[1] if isinstance(line[1], InvalidInput) else decoded(line[1], line[0], self._reading)
            if isinstance(text, InvalidInput):
                problem = f"no header can be read: it {text.problem}"
                raise self._reading.wrong(line[0], problem, text.remedy)
            if text.strip():
                self.put_back([line])
                return text
        return ""

    def wrong(self, problem: str, remedy: str) -> InvalidInput:
        return self._reading.wrong(self.first, problem, remedy)

    def put_back(self, lines: Sequence[tuple[int, bytes | InvalidInput]]) -> None:
        self._waiting.extendleft(reversed(lines))

    def _taken(self) -> tuple[int, bytes | InvalidInput] | None:
        return self._waiting.popleft() if self._waiting else next(self._lines, None)

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._taken()
        if line is None:
            raise StopIteration
        number, raw = line
        self.first, self.last = self.first or number, number
        if isinstance(raw, InvalidInput):
            raise raw
        self._size += len(raw)
        if self._size > self._reading.line_bytes:
            problem = f"opens a quotation mark that is not closed within {self._reading.line_bytes:,} bytes"
            raise _EndlessRecord(f"{self._reading.name}:{self.first}", problem, _MARKS)
        text = decoded(raw, number, self._reading)
        if isinstance(text, InvalidInput):
            self.damage = self.damage or text
            return raw.decode("utf-8", "surrogateescape")
        return text

    def take(self, read: Sequence[tuple[int, bytes | InvalidInput]]) -> None:
        """Make lines that were read ahead a part of the record."""
        for number, raw in read:
            text = decoded(raw, number, self._reading) if isinstance(raw, bytes) else raw
            self.damage = self.damage or (text if isinstance(text, InvalidInput) else None)
            self.last = number

    def ahead(self) -> Iterator[tuple[int, bytes | InvalidInput]]:
        """Take lines within the bounds of reading ahead; the caller puts them back."""
        size = 0
        for _ in range(_AHEAD_LINES):
            line = self._taken() if size <= _AHEAD_CHARACTERS else None
            if line is None:
                break
            size += len(line[1]) if isinstance(line[1], bytes) else 0
            yield line

    def leave_damage(self, fits: re.Pattern[str]) -> None:
        """Take the lines that may belong to a damaged record.

        The next line with a quotation mark tells. If its cells are well formed, it and the lines before it are records;
        else a cell of the damaged record ends in it.
        """
        read: list[tuple[int, bytes | InvalidInput]] = []
        for line in self.ahead():
            read.append(line)
            if isinstance(line[1], bytes) and b'"' in line[1]:
                text = line[1].decode("utf-8", "replace").rstrip("\r\n")
                if fits.fullmatch(text):
                    break
                self.last = line[0]
                read.clear()
        self.put_back(read)


class _EndlessRecord(InvalidInput):
    pass


def _quoted_records(lines: _Lines, separator: str, reading: Reading) -> Iterator[_Record]:
    table = csv.reader(lines, delimiter=separator, strict=True)
    fits = _well_formed(separator)
    while True:
        lines.begin()
        try:
            cells = next(table, None)
        except _EndlessRecord:
            raise
        except InvalidInput as error:  # of a line
            lines.leave_damage(fits)
            yield lines.first, error
        except csv.Error as error:
            yield lines.first, _damaged(lines, error, fits, reading)
        else:
            if cells is None:
                return
            if cells:
                yield lines.first, lines.damage or cells


def _damaged(lines: _Lines, error: csv.Error, fits: re.Pattern[str], reading: Reading) -> InvalidInput:
    if str(error) == "unexpected end of data":
        problem = f"opens a quotation mark that is never closed; lines up to {lines.last:,} belong to it"
        return reading.wrong(lines.first, problem, _MARKS)
    lines.leave_damage(fits)
    more = lines.last > lines.first
    with_it = f"; lines up to {lines.last:,} may belong to it, and are left out" if more else ""
    if str(error).startswith("new-line character"):
        problem = f"has a line end of CR alone, and may be several rows{with_it}"
        return reading.wrong(lines.first, problem, "quote the cell, or convert the file: tr '\\r' '\\n'")
    return reading.wrong(lines.first, f"is not CSV: {error}{with_it}", _MARKS)


def _well_formed(separator: str) -> re.Pattern[str]:
    """Return the pattern of a line that begins a record: marks only around cells; the last cell may go on."""
    other = f'[^"{re.escape(separator)}]*'
    end = re.escape(separator)
    return re.compile(f'(?!"(?:{end}|$))(?:(?:"(?:[^"]|"")*"|{other}){end})*(?:"(?:[^"]|"")*"?|{other})')


def _tab_records(lines: _Lines, width: int) -> Iterator[_Record]:
    while True:
        lines.begin()
        try:
            text = next(lines, None)
        except _EndlessRecord:
            raise
        except InvalidInput as error:
            yield lines.first, error
            continue
        if text is None:
            return
        if not text.strip("\r\n"):
            continue
        cells = text.rstrip("\r\n").split("\t")
        if '"' in text:
            cells = _unquoted(lines, text, cells, width)
        yield lines.first, lines.damage or cells


def _unquoted(lines: _Lines, text: str, literal: list[str], width: int) -> list[str]:
    """Return the cells of a line with quotation marks, and of the lines after it that belong to its record."""
    if len(literal) == width and all(not cell.startswith('"') or _is_closed(cell) for cell in literal):
        return [cell[1:-1].replace('""', '"') if _is_closed(cell) and '""' in cell else cell for cell in literal]
    read: list[tuple[int, bytes | InvalidInput]] = []

    def whole() -> Iterator[str]:
        yield text
        for line in lines.ahead():
            read.append(line)
            if isinstance(line[1], InvalidInput):
                return
            yield line[1].decode("utf-8", "surrogateescape")

    try:
        cells = next(csv.reader(whole(), delimiter="\t", strict=True))
    except csv.Error:
        cells = []
    records = len(literal) == width > 1 and all(
        raw.count(b"\t") + 1 == width for _, raw in read if isinstance(raw, bytes)
    )
    if len(cells) != width or records:
        lines.put_back(read)
        return literal
    lines.take(read)
    if width == 1 and read:
        problem = f"may be one quoted cell up to line {lines.last:,}, or a row per line"
        lines.damage = lines.damage or lines.wrong(problem, "quote the header and all cells, or none")
    return cells


def _is_closed(cell: str) -> bool:
    """Return whether a cell is quoted as CSV's cells are."""
    return len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', "")
