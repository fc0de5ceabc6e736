"""Read the rows of a file, a function per format, in constant memory.

An unreadable row is yielded as an InvalidInput, and reading goes on. A file that is wrong as a whole raises.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from producers.sources.file_reading import Raw, Reader, Reading
from producers.wire.errors import InputTooLarge, InvalidInput

#: Name of the only column of a source without columns.
INPUT = "input"


def text(reading: Reading) -> Iterator[Raw]:
    """Read plain text: an item per line."""
    for number, line in lines(reading):
        if isinstance(line, InvalidInput):
            yield number, line
        elif line.strip():
            yield number, {INPUT: line}


def jsonl(reading: Reading) -> Iterator[Raw]:
    """Read JSON Lines: an object or a string per line."""
    decode = msgspec.json.Decoder().decode
    for number, line in lines(reading):
        if isinstance(line, InvalidInput):
            yield number, line
        elif line.strip():
            try:
                value = decode(line)
            except msgspec.DecodeError as error:
                yield number, reading.wrong(number, f"is not JSON: {error}", "each line must be one JSON value")
                continue
            yield number, _columns(value, number, reading)


def _columns(value: Any, number: int, reading: Reading) -> Mapping[str, Any] | InvalidInput:
    if isinstance(value, dict):
        return value
    if isinstance(value, str):
        return {INPUT: value}
    return reading.wrong(number, f"is {type(value).__name__}", "each line must be an object or a string")


def comma_separated(reading: Reading) -> Iterator[Raw]:
    """Read CSV with a header."""
    yield from _table(reading, ",")


def tab_separated(reading: Reading) -> Iterator[Raw]:
    """Read tab-separated values with a header."""
    yield from _table(reading, "\t")


def _table(reading: Reading, delimiter: str) -> Iterator[Raw]:
    decoded = _Decoded(reading)
    table = csv.reader(decoded, delimiter=delimiter, strict=True)
    columns = _header(table, reading)
    if not columns:
        return
    reading.columns(columns)
    while (cells := _next_record(table, decoded, reading)) is not None:
        number = decoded.number
        if isinstance(cells, InvalidInput):
            yield number, cells
        elif len(cells) != len(columns):
            counts = f"has {len(cells)} columns where the header has {len(columns)}"
            yield number, reading.wrong(number, counts, "quote cells that contain the separator")
        else:
            yield number, dict(zip(columns, cells, strict=True))


def _header(table: Iterator[list[str]], reading: Reading) -> list[str]:
    try:
        columns = next(table, [])
    except (csv.Error, InvalidInput) as error:
        problem = f"no header can be read: {error}"
        raise reading.wrong(1, problem, "the first line names the columns") from error
    twice = next((name for name in columns if columns.count(name) > 1), None)
    if twice is not None:
        raise reading.wrong(1, f"names the column {twice!r} twice", "give each column its own name")
    return columns


def _next_record(table: Iterator[list[str]], lines: _Decoded, reading: Reading) -> list[str] | InvalidInput | None:
    try:
        while (cells := next(table, None)) == []:  # an empty line
            pass
        return cells
    except InvalidInput as error:
        return error
    except csv.Error as error:
        return reading.wrong(lines.number, f"is not CSV: {error}", "check the quotes")


class _Decoded:
    """A file's lines for the csv module. An iterator class, because a generator cannot continue after an error."""

    def __init__(self, reading: Reading) -> None:
        self._lines = lines(reading)
        self.number = 0

    def __iter__(self) -> _Decoded:
        return self

    def __next__(self) -> str:
        self.number, line = next(self._lines)
        if isinstance(line, InvalidInput):
            raise line
        return line + "\n"


def lines(reading: Reading) -> Iterator[tuple[int, str | InvalidInput]]:
    """Yield each line's number, and its text without the line end or its error."""
    number = 0
    most = reading.line_bytes
    while raw := reading.file.readline(most):
        number += 1
        reading.meter.done += len(raw)
        if len(raw) == most and not raw.endswith(b"\n"):
            while (rest := reading.file.readline(most)) and not rest.endswith(b"\n"):
                pass
            where = f"{reading.name}:{number}"
            yield number, InputTooLarge(where, f"is longer than {most:,} bytes", "split the line")
            continue
        yield number, _decoded(raw, number, reading)


def _decoded(raw: bytes, number: int, reading: Reading) -> str | InvalidInput:
    if number == 1 and raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return reading.wrong(number, "is UTF-16", "convert the file: iconv -f UTF-16 -t UTF-8")
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8 (byte {raw[error.start]:#04x} at place {error.start + 1})"
        return reading.wrong(number, problem, "convert the file, e.g. iconv -f LATIN1 -t UTF-8")


def parquet(reading: Reading) -> Iterator[Raw]:
    """Read Parquet, some thousand rows at a time."""
    from producers.sources import arrow

    return arrow.parquet(reading)


def arrow_ipc(reading: Reading) -> Iterator[Raw]:
    """Read Arrow's own format, a file or a stream."""
    from producers.sources import arrow

    return arrow.ipc(reading)


#: The readers by the format of `--format` or of the file's suffix. Any other file is plain text.
FORMATS: Mapping[str, Reader] = {
    "text": text,
    "jsonl": jsonl,
    "csv": comma_separated,
    "tsv": tab_separated,
    "parquet": parquet,
    "arrow": arrow_ipc,
}

SUFFIXES: Mapping[str, str] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".arrows": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
