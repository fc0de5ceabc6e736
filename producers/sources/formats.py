"""Read the rows of a file, a function per format, in constant memory.

An unreadable row is yielded as an InvalidInput, and reading goes on. A file that is wrong as a whole raises.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from io import BufferedReader
from itertools import chain
from typing import Any, cast

import msgspec

from producers.sources.delimited import comma_separated, tab_separated
from producers.sources.file_reading import Raw, Reader, Reading
from producers.sources.lines import lines
from producers.wire.errors import InputTooLarge, InvalidInput

#: The largest JSON list, in bytes: it is read as a whole.
_LIST_BYTES = 256 * 1024 * 1024

#: The most blank bytes before a JSON list.
_BLANKS = 64

#: The numbers that Python's own writers put into JSON.
_NO_JSON = re.compile(r"-?\bInfinity\b|\bNaN\b")

#: The first half of a character outside Unicode's basic plane, without the second.
_HALF = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])")

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
    return _json_lines(lines(reading), reading)


def json(reading: Reading) -> Iterator[Raw]:
    """Read a JSON list of objects or strings, or JSON Lines: databases write both with this suffix."""
    if cast(BufferedReader, reading.file).peek(_BLANKS)[:_BLANKS].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        yield from _json_list(reading)
        return
    each = lines(reading)
    first = next(each, None)
    if first is None:
        return
    if isinstance(first[1], str) and isinstance(_value(first[1], first[0], reading), InvalidInput):
        raise reading.wrong(1, "is neither a JSON list nor JSON Lines", "write each item as an element or as a line")
    yield from _json_lines(chain([first], each), reading)


def _json_list(reading: Reading) -> Iterator[Raw]:
    whole = reading.file.read(_LIST_BYTES + 1)
    if len(whole) > _LIST_BYTES:
        problem = f"is a JSON list of over {_LIST_BYTES:,} bytes"
        raise InputTooLarge(reading.name, problem, "convert it to JSON Lines: jq -c '.[]'")
    reading.meter.done = len(whole)
    value = _value(whole.removeprefix(b"\xef\xbb\xbf"), 1, reading)
    if isinstance(value, InvalidInput):
        raise value
    for number, element in enumerate(value, 1):
        yield number, _columns(element, number, reading)


def _json_lines(each: Iterable[tuple[int, str | InvalidInput]], reading: Reading) -> Iterator[Raw]:
    for number, line in each:
        if isinstance(line, InvalidInput):
            yield number, line
        elif line.strip():
            value = _value(line, number, reading)
            yield number, value if isinstance(value, InvalidInput) else _columns(value, number, reading)


def _value(text: str | bytes, number: int, reading: Reading) -> Any:
    """Return the value of a JSON text, or its error."""
    try:
        return msgspec.json.decode(text)
    except RecursionError:
        return reading.wrong(number, "is JSON nested too deeply", "flatten it")
    except msgspec.DecodeError as error:
        shown = text if isinstance(text, str) else text.decode("utf-8", "replace")
        if half := _HALF.search(shown):
            return reading.wrong(number, f"has {half[0]}, half of a character", "write the whole character")
        if found := _NO_JSON.search(shown):
            return reading.wrong(number, f"has {found[0]}, which is not JSON", "write null, or leave the field out")
        return reading.wrong(number, f"is not JSON: {error}", "each line must be one JSON value")


def _columns(value: Any, number: int, reading: Reading) -> Mapping[str, Any] | InvalidInput:
    if isinstance(value, dict):
        return value
    if isinstance(value, str):
        return {INPUT: value}
    return reading.wrong(number, f"is {type(value).__name__}", "each line must be an object or a string")


def parquet(reading: Reading) -> Iterator[Raw]:
    """Read Parquet, some thousand rows at a time."""
    from producers.sources import arrow

    return arrow.parquet(reading)


def arrow_ipc(reading: Reading) -> Iterator[Raw]:
    """Read Arrow's own format, a file or a stream."""
    from producers.sources import arrow

    return arrow.ipc(reading)


#: The readers by the name of their format.
FORMATS: Mapping[str, Reader] = {
    "text": text,
    "json": json,
    "jsonl": jsonl,
    "csv": comma_separated,
    "tsv": tab_separated,
    "parquet": parquet,
    "arrow": arrow_ipc,
}
