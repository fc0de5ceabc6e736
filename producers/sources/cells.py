"""A table's cells that Python values would not carry back: times in nanoseconds, decimals, dictionaries, extensions."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from producers.wire.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Cell:
    """A place in an Arrow array. Joined into Parquet, it is taken over as it is."""

    column: Any
    place: int

    def python(self) -> Any:
        """Return the value. Raises ValueError, OverflowError or another error if Python has none like it."""
        return self.column[self.place].as_py()

    def plain(self) -> Any:
        """Return the value for JSON: a text, if Python has no value like it."""
        return _plain(self.column[self.place])

    def __str__(self) -> str:
        return str(self.plain())


def input_of(value: Any, origin: str) -> Any:
    """Return a value with Python's own values in place of cells. Raises InvalidInput."""
    if isinstance(value, dict):
        return {name: input_of(own, origin) for name, own in value.items()}
    if not isinstance(value, Cell):
        return value
    try:
        return value.python()
    except Exception as error:  # Arrow's types have errors of their own
        problem = f"is {value.column.type}, which cannot be read here: {error}"
        raise InvalidInput(origin, problem, "cast the column to text or numbers") from error


def id_of(value: Any) -> Any:
    """Return an id without cells, and as text if it is bytes of UTF-8. Other bytes stay bytes."""
    plain = value.plain() if isinstance(value, Cell) else value
    if isinstance(plain, bytes):
        with suppress(UnicodeDecodeError):
            return plain.decode()
    return plain


def _plain(scalar: Any) -> Any:
    with suppress(Exception):  # Arrow's types have errors of their own
        return scalar.as_py()
    kind = str(scalar.type)
    if kind.startswith("struct"):
        return {name: _plain(scalar[place]) for place, name in enumerate(field.name for field in scalar.type)}
    if kind.startswith(("list", "large_list", "fixed_size_list")):
        return [_plain(value) for value in scalar.values]
    if kind.startswith("map"):
        return [[_plain(pair[0]), _plain(pair[1])] for pair in scalar.values]
    return _text(scalar)


def _text(scalar: Any) -> str:
    with suppress(Exception):
        return str(scalar.cast("string").as_py())
    with suppress(Exception):  # a time in an unknown zone
        return f"{scalar.cast(f'timestamp[{scalar.type.unit}]').cast('string').as_py()}Z"
    return f"a value of the type {scalar.type}"
