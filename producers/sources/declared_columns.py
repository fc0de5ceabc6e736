"""Rows of tables, and windows of sensor values, by the columns that a model declares as a JSON Schema."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from producers.sources.cells import id_of
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
    typed = {}
    for name, value in values.items():
        try:
            typed[name] = _typed(value, declared.get(name), text=text)
        except ValueError as error:
            raise _no_number(value, f"{origin}: {name}") from error
    return typed


def _typed(value: Any, schema: Mapping[str, Any] | None, *, text: bool) -> Any:
    """Return a cell's value. Raises ValueError for a word in a column of numbers."""
    if isinstance(value, Decimal):  # databases export numbers as decimals
        return float(value)
    if not text or not isinstance(value, str):
        return value
    if schema is not None:
        return table_cells.number(value) if table_cells.is_number(schema) else table_cells.word(value)
    try:
        return table_cells.number(value)
    except ValueError:
        return table_cells.word(value)


def _no_number(cell: Any, where: str) -> InvalidInput:
    problem = f"is {str(cell)[:60]!r}, in a column of numbers"
    return InvalidInput(where, problem, "write numbers like 0.5, and leave unknown ones empty")


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
        bad: InvalidInput | None = None  # of which window, it does not say
        seen = Unique()
        try:
            for number, row in rows:
                error = self._fault(number, row)
                if error is not None or isinstance(row, InvalidInput):
                    bad = error
                    if window is not None:
                        window.problem = window.problem or bad
                    continue
                id_ = None if self.id_column is None else str(id_of(row[self.id_column]))
                if window is None or id_ != window.id:
                    if window is not None:
                        yield self._done(window)
                    window = _Window(
                        number, id_, {name: [] for name in self.channels}, bad or self._again(seen, id_, number)
                    )
                bad = None
                self._add(window, number, row)
            if window is not None:
                yield self._done(window)
            elif bad is not None:
                yield 1, bad
        finally:
            seen.close()

    def _fault(self, number: int, row: Mapping[str, Any] | InvalidInput) -> InvalidInput | None:
        """Return the error of a row that is no step of a window."""
        if isinstance(row, InvalidInput):
            return row
        id_ = None if self.id_column is None else id_of(row.get(self.id_column))
        if self.id_column is not None and id_ in (None, ""):
            problem, remedy = f"has no {self.id_column}", "each row needs the id of its window"
        elif isinstance(id_, bytes):
            problem, remedy = f"has bytes that are not UTF-8 as its {self.id_column}", "cast the column to text"
        elif not is_step(row, self.channels):
            problem, remedy = (
                "is no step of a series",
                f"each row needs a number for each of {', '.join(self.channels)}",
            )
        else:
            return None
        return InvalidInput(f"{self.name}:{number}", problem, remedy)

    def _again(self, seen: Unique, id_: str | None, number: int) -> InvalidInput | None:
        """Return the error of a window whose id has come before, with other windows in between."""
        before = None if id_ is None else seen.first(id_, f"{self.name}:{number}")
        if before is None:
            return None
        problem = f"goes on with {self.id_column} {id_!r}, which begins at {before}"
        return InvalidInput(f"{self.name}:{number}", problem, "sort the rows by this column")

    def _add(self, window: _Window, number: int, row: Mapping[str, Any]) -> None:
        window.size += len(self.channels)
        if window.problem is None and window.size > self.most_values:
            problem = f"is a window of over {self.most_values:,} values"
            remedy = "send it in parts" if self.id_column else "name the column that tells windows apart: --id-column"
            window.problem = InputTooLarge(f"{self.name}:{window.number}", problem, remedy)
        if window.problem is not None:
            window.channels.clear()
            return
        for name, values in window.channels.items():
            try:
                values.append(_typed(row[name], _NUMBERS, text=True))
            except ValueError:
                window.problem = _no_number(row[name], f"{self.name}:{number}: {name}")

    def _done(self, window: _Window) -> Raw:
        if window.problem is not None:
            return window.number, window.problem
        return window.number, {self.id_column or PATH: window.id or self.name, **window.channels}
