"""Read the rows of a file, a function per format, in constant memory.

An unreadable row is yielded as an InvalidInput, and reading goes on. A file that is wrong as a whole raises.
"""

from __future__ import annotations

import json as python_json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from io import BufferedReader
from itertools import chain
from typing import Any, cast

import msgspec

from producers.sources.delimited import comma_separated, tab_separated
from producers.sources.file_reading import Raw, Reader, Reading, repeated
from producers.sources.lines import decoded, lines
from producers.wire.errors import InputTooLarge, InvalidInput

#: The largest JSON list, in bytes: it is read as a whole.
_LIST_BYTES = 256 * 1024 * 1024

#: The bytes that may come before a JSON list, and the number of bytes that tell a list from lines.
_BLANKS, _BEGINNING = "\ufeff \t\r\n", 4096

_NOT_JSON = "is not JSON: "
_NEITHER = ("is neither a JSON list nor JSON Lines", "write each item as an element or as a line, e.g. by jq -c .")

#: The numbers that Python's own writers put into JSON.
_NO_JSON = re.compile(r"-?\bInfinity\b|\bNaN\b")

#: The end of a name in an object. A text may hold it, too.
_NAME_END = re.compile(r'"\s*:')

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
    """Read JSON Lines, an object or a string per line, or a JSON list of them: writers mix up the suffixes."""
    if _is_list(cast(BufferedReader, reading.file).peek(_BEGINNING)):
        yield from _json_list(reading)
        return
    each = (line for line in lines(reading) if isinstance(line[1], InvalidInput) or line[1].strip())
    first = next(each, None)
    if first is not None and isinstance(first[1], str) and first[1].strip() in ("{", "["):
        raise reading.wrong(first[0], *_NEITHER)
    yield from _json_lines(chain([first] if first else [], each), reading)


def json(reading: Reading) -> Iterator[Raw]:
    """Read a JSON list of objects or strings, or JSON Lines: databases write both with this suffix."""
    rows = jsonl(reading)
    first = next(rows, None)
    if first is None:
        return
    if isinstance(first[1], InvalidInput) and first[1].problem.startswith(_NOT_JSON):
        raise reading.wrong(first[0], *_NEITHER)
    yield from chain([first], rows)


def _is_list(beginning: bytes) -> bool:
    """Return whether a file that begins so is a JSON list, and not lines of which the first is one."""
    line, _, more = beginning.decode("utf-8", "replace").lstrip(_BLANKS).partition("\n")
    if not line.startswith("[") or not more.strip():
        return line.startswith("[")
    try:
        msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError):
        return True
    return False


def _json_list(reading: Reading) -> Iterator[Raw]:
    whole = reading.file.read(_LIST_BYTES + 1)
    if len(whole) > _LIST_BYTES:
        problem = f"is a JSON list of over {_LIST_BYTES:,} bytes"
        raise InputTooLarge(reading.name, problem, "convert it to JSON Lines: jq -c '.[]'")
    reading.meter.done = len(whole)
    text = decoded(whole, 1, reading)
    if isinstance(text, InvalidInput):
        raise text
    value = _value(text.lstrip(_BLANKS), 1, reading, "check that the list is complete")
    if isinstance(value, InvalidInput):
        raise value
    for number, element in enumerate(value, 1):
        yield number, _columns(element, number, reading)


def _json_lines(each: Iterable[tuple[int, str | InvalidInput]], reading: Reading) -> Iterator[Raw]:
    for number, line in each:
        if isinstance(line, InvalidInput):
            yield number, line
        else:
            value = _value(line, number, reading)
            yield number, value if isinstance(value, InvalidInput) else _columns(value, number, reading)


def _value(text: str, number: int, reading: Reading, remedy: str = "each line must be one JSON value") -> Any:
    """Return the value of a JSON text, or its error."""
    try:
        value = msgspec.json.decode(text)
    except RecursionError:
        return reading.wrong(number, "is JSON nested too deeply", "flatten it")
    except msgspec.DecodeError as error:
        if _half_pair(text):
            return reading.wrong(number, "has half of a surrogate pair (like \\ud83d)", "write the whole character")
        found = _NO_JSON.search(text)
        if found:
            return reading.wrong(number, f"has {found[0]}, which is not JSON", "write null, or leave the field out")
        return reading.wrong(number, f"{_NOT_JSON}{error}", remedy)
    name = _repeated_name(text, value)
    if name is None:
        return value
    return reading.wrong(number, f"has an object with the field {name!r} twice", "give each field its own name")


def _repeated_name(text: str, value: Any) -> str | None:
    """Return a name that an object has twice: a reader of JSON takes the last of these fields alone."""
    found: list[str] = []

    def check(pairs: list[tuple[str, Any]]) -> None:
        name = repeated(name for name, _ in pairs)
        if name is not None:
            found.append(name)

    with suppress(ValueError, RecursionError):
        if sum(1 for _ in _NAME_END.finditer(text)) != _names(value):
            python_json.loads(text, object_pairs_hook=check)
    return found[0] if found else None


def _names(value: Any) -> int:
    """Return the number of names in nested objects, or less if a list holds objects beside other values."""
    if isinstance(value, dict):
        return len(value) + sum(_names(own) for own in value.values() if isinstance(own, dict | list))
    return sum(map(_names, value)) if isinstance(value, list) and value and isinstance(value[0], dict | list) else 0


def _half_pair(text: str) -> bool:
    """Return whether a JSON text is refused only because of an escape that is no character."""
    try:
        whole = python_json.dumps(python_json.loads(text), ensure_ascii=False)
    except (ValueError, RecursionError):
        return False
    return any("\ud800" <= sign <= "\udfff" for sign in whole)


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


#: The readers whose cells are all texts.
TEXT_TABLES = (comma_separated, tab_separated)

#: The readers that check the columns before they return the rows.
ARROW_TABLES = (parquet, arrow_ipc)

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
