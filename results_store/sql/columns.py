"""Values in the form that SQLite and PostgreSQL accept."""

from __future__ import annotations

import json
import sys
from array import array
from collections.abc import Callable, Collection
from typing import Any, Final

from sqlalchemy import ARRAY, ColumnElement, Connection, Double, ScalarSelect, Text, any_, bindparam, func, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.elements import KeyedColumnElement
from sqlalchemy.sql.functions import FunctionElement

from results_store.errors import InvalidRow

#: JSON without spaces, in the bytes that the store has always kept: `msgspec` writes 1e-07 as 1e-7, and NaN as null.
compact_json: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
#: The same; raises ValueError for NaN and infinity.
strict_json: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode

#: The store's clock in Unix seconds, by dialect. All machines share it, unlike their own clocks. On SQLite it is the
#: clock of the machine.
CLOCK: Final = {
    "sqlite": "((julianday('now') - 2440587.5) * 86400.0)",
    "postgresql": "CAST(extract(epoch FROM clock_timestamp()) AS float8)",
}


class _Clock(FunctionElement[float]):
    name = "store_clock"
    type = Double()
    inherit_cache = True


@compiles(_Clock)
def _clock(_element: _Clock, compiler: Any, **_: Any) -> str:
    return CLOCK[compiler.dialect.name]


def clock() -> ScalarSelect[float]:
    """Return the store's time, once for all rows of a statement. Otherwise PostgreSQL would use no index for it."""
    return select(_Clock()).scalar_subquery()


def given_or_clock(name: str = "_now") -> ScalarSelect[float]:
    """Return the time in the parameter `name`, or the store's time if that is None."""
    return select(func.coalesce(bindparam(name, type_=Double()), _Clock())).scalar_subquery()


def among(connection: Connection, column: KeyedColumnElement[Any], values: Collection[Any]) -> ColumnElement[bool]:
    """Return ``column IN values`` for any number of values, as a single parameter in a constant statement."""
    return _among(connection.dialect.name, column, None, as_list(connection, values))


def listed(dialect: str, column: KeyedColumnElement[Any], name: str) -> ColumnElement[bool]:
    """Return `among` for a statement that is built once. Its values are the parameter `name`, made by `as_list`."""
    return _among(dialect, column, name, None)


def as_list(connection: Connection, values: Collection[Any]) -> Any:
    """Return values as a single parameter in each database's form."""
    return json.dumps(list(values)) if connection.dialect.name == "sqlite" else list(values)


def _among(dialect: str, column: KeyedColumnElement[Any], name: str | None, value: Any) -> ColumnElement[bool]:
    given = {"value": value} if name is None else {}
    if dialect == "sqlite":
        values = func.json_each(bindparam(name, type_=Text, **given)).table_valued("value")
        return column.in_(select(values.c.value))
    return column == any_(bindparam(name, type_=ARRAY(column.type), **given))


def text(value: str | None) -> str | None:
    """Return a text that both databases can hold: NUL and lone surrogates become U+FFFD."""
    if value is None or (value.isascii() and "\0" not in value):
        return value
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "\ufffd")


def json_text(value: Any, field: str) -> str | None:
    """Return `value` as JSON text, or None for SQL's NULL. Raises InvalidRow, naming `field`, for a non-JSON value."""
    if value is None:
        return None
    try:
        encoded = strict_json(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRow(f"{field}: not a JSON value: {error}") from error
    if "\\u0000" in encoded or text(encoded) != encoded:
        return strict_json(cleaned(value))
    return encoded


def json_of(value: Any, default: Callable[[Any], Any] | None = None) -> str:
    """Return a value as JSON, with null for the numbers that JSON does not have; `default` converts other types."""
    try:
        if default is None:
            return strict_json(value)
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=default, allow_nan=False)
    except ValueError:
        return strict_json(json.loads(json.dumps(value, default=default), parse_constant=lambda name: None))


def cleaned(value: Any) -> Any:
    """Return a JSON value whose texts both databases can hold."""
    if isinstance(value, str):
        return text(value)
    if isinstance(value, dict):
        return {cleaned(name): cleaned(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [cleaned(inner) for inner in value]
    return value


def pack_vector(numbers: Collection[float]) -> bytes:
    """Return `numbers` as little-endian float32 bytes."""
    packed = array("f", numbers)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack_vector(packed: bytes) -> list[float]:
    """Return the exact numbers of float32 bytes."""
    numbers = array("f", packed)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()
