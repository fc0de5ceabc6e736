"""Read the rows of a file, a function per format, in constant memory.

An unreadable row is yielded as an InvalidInput, and reading goes on. A file that is wrong as a whole raises.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from producers.sources.delimited import comma_separated, tab_separated
from producers.sources.file_reading import Raw, Reader, Reading
from producers.sources.lines import lines
from producers.wire.errors import InvalidInput

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
