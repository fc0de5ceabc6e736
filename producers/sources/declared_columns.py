"""Rows of tables, and windows of sensor values, by the columns that a model declares as a JSON Schema."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from producers.sources.file_reading import Raw
from producers.sources.media import PATH
from producers.sources.unique import Unique
from producers.wire.errors import InputTooLarge, InvalidInput
from producers.wire.validation import table_cells

#: The schema of a channel's values.
_NUMBERS = {"type": ["number", "null"]}


def columns_of(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schemas of a model's columns by name, from the schema of its input."""
    found: Mapping[str, Any] = schema.get("properties", {})
    return found


def is_step(row: Mapping[str, Any], channels: Sequence[str]) -> bool:
    """Return whether a row holds a value of each channel, and not a list of its values."""
    return all(name in row and not isinstance(row[name], list) for name in channels)


def typed_row(values: Any, declared: Mapping[str, Any], origin: str, *, text: bool) -> Any:
    """Return a row's values as the model's columns hold them. Raises InvalidInput for a word in a column of numbers.

    The cells of a file of `text` are all texts; of a column that no model declares, the numbers among them are numbers.
    """
    if not isinstance(values, dict):
        return values
    return {name: _typed(value, declared.get(name), f"{origin}: {name}", text=text) for name, value in values.items()}


def _typed(value: Any, schema: Mapping[str, Any] | None, where: str, *, text: bool) -> Any:
    if isinstance(value, Decimal):  # databases export numbers as decimals
        return float(value)
    if not text or not isinstance(value, str):
        return value
    if schema is not None and not table_cells.is_number(schema):
        return table_cells.word(value)
    try:
        return table_cells.number(value)
    except ValueError:
        if schema is None:
            return table_cells.word(value)
        return _refuse(value, where)


def _refuse(cell: str, where: str) -> Any:
    problem = f"is {cell[:60]!r}, in a column of numbers"
    raise InvalidInput(where, problem, "write numbers like 0.5, and leave unknown ones empty")


@dataclass(slots=True)
class _Window:
    """Consecutive rows of a table with the same id, and the values of each channel in them."""

    number: int
    id: str | None
    channels: dict[str, list[float | None]]
    problem: InvalidInput | None = None
    size: int = 0


@dataclass(frozen=True, slots=True)
class Windows:
    """Turns the rows of a table into series: each row holds a value of each of the `channels`.

    Consecutive rows with the same `id_column` are a window; without such a column, the whole file is one. A bad row
    costs its window, because a series with a gap is another series.
    """

    name: str
    channels: Sequence[str]
    id_column: str | None
    most_values: int

    def __call__(self, rows: Iterator[Raw]) -> Iterator[Raw]:
        """Yield a window's first line, and its channels with its id or its file's name, or its error."""
        window: _Window | None = None
        seen = Unique()
        bad: InvalidInput | None = None
        try:
            for number, row in rows:
                if isinstance(row, InvalidInput):
                    bad = row  # of which window, it does not say
                    if window is not None:
                        window.problem = window.problem or bad
                    continue
                id_ = None if self.id_column is None else str(row[self.id_column])
                if window is None or id_ != window.id:
                    if window is not None:
                        yield self._done(window)
                    window = _Window(number, id_, {name: [] for name in self.channels}, bad)
                    before = None if id_ is None else seen.first(id_, f"{self.name}:{number}")
                    if before is not None:
                        problem = f"goes on with {self.id_column} {id_!r}, which begins at {before}"
                        window.problem = InvalidInput(f"{self.name}:{number}", problem, "sort the rows by this column")
                bad = None
                self._add(window, number, row)
            if window is not None:
                yield self._done(window)
            elif bad is not None:
                yield 1, bad
        finally:
            seen.close()

    def _add(self, window: _Window, number: int, row: Mapping[str, Any]) -> None:
        window.size += len(self.channels)
        if window.problem is None and window.size > self.most_values:
            problem = f"is a window of over {self.most_values:,} values"
            remedy = "send it in parts" if self.id_column else "name the column that tells windows apart: --id-column"
            window.problem = InputTooLarge(f"{self.name}:{window.number}", problem, remedy)
        if window.problem is not None:
            window.channels.clear()
            return
        try:
            for name, values in window.channels.items():
                values.append(_typed(row[name], _NUMBERS, f"{self.name}:{number}: {name}", text=True))
        except InvalidInput as error:
            window.problem = error

    def _done(self, window: _Window) -> Raw:
        if window.problem is not None:
            return window.number, window.problem
        return window.number, {self.id_column or PATH: window.id or self.name, **window.channels}
