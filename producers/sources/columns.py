"""Choose the input column and the key column of a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from producers.wire.errors import InvalidInput
from producers.wire.forms import FIELDS

#: The default columns for the input and for the key. The first that exists is used.
INPUT_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "text": ("input", "text", "sentence", "review", "content"),
    "image": ("input", "image", "path", "file", "url"),
    "audio": ("input", "audio", "path", "file", "url"),
    "video": ("input", "video", "path", "file", "url"),
    "series": ("input", "series", "channels"),
    "row": ("input", "row"),
    "seed": ("input", "seed"),
}
KEY_COLUMNS = ("id", "key")

#: Rows of JSON may all have different columns; at most this many sets of columns are remembered.
_REMEMBERED = 1024


@dataclass(frozen=True, slots=True)
class ColumnChoice:
    """The columns to read. Several inputs become an object. Without a key column, the row's number is the key.

    With `named`, a single input also becomes an object, unless it is one already.
    """

    inputs: tuple[str, ...]
    key: str | None
    named: bool = False

    def value(self, row: Mapping[str, Any]) -> Any:
        if len(self.inputs) > 1:
            return {name: row[name] for name in self.inputs}
        [name] = self.inputs
        return {name: row[name]} if self.named and not isinstance(row[name], dict | list) else row[name]


@dataclass(frozen=True, slots=True)
class Chooser:
    """Finds input and key among a row's columns: the named columns, or else the default ones.

    `declared` are the columns of the model, for tasks whose input is a row of a table or a series.
    """

    modality: str
    inputs: Sequence[str] = ()
    key: str | None = None
    declared: Sequence[str] = ()
    _known: dict[tuple[str, ...], ColumnChoice] = field(default_factory=dict)

    def __call__(self, columns: Sequence[str], row: str, file: str) -> ColumnChoice:
        """Return the choice for these columns. Raises InvalidInput naming the `row`, or the `file` for the key."""
        names = tuple(columns)
        found = self._known.get(names)
        if found is None:
            inputs = self._inputs(names, row)
            named = self.modality == "row" and inputs in (tuple(self.inputs), tuple(self.declared))
            found = ColumnChoice(inputs, self._key(names, file), named)
            if len(self._known) < _REMEMBERED:
                self._known[names] = found
        return found

    def is_guess(self, column: str) -> bool:
        """Return whether a column is the input only because a table has no other."""
        usual = INPUT_COLUMNS.get(self.modality, INPUT_COLUMNS["text"])
        return column not in (*self.inputs, *self.declared, *usual)

    def _inputs(self, columns: Sequence[str], where: str) -> tuple[str, ...]:
        there = ", ".join(columns) or "none"
        for name in self.inputs:
            if name not in columns:
                raise InvalidInput(where, f"has no column {name!r}", f"columns here: {there}")
        if self.inputs:
            return tuple(self.inputs)
        fields = FIELDS.get(self.modality, ())
        if fields and all(name in columns for name in fields):
            return fields  # the input is an object, with a column for each of its fields
        if self.declared and set(self.declared) <= set(columns):
            return tuple(self.declared)
        for name in INPUT_COLUMNS.get(self.modality, INPUT_COLUMNS["text"]):
            if name in columns:
                return (name,)
        if len(columns) == 1 and columns[0] not in (*KEY_COLUMNS, self.key) and not self._known:
            return (columns[0],)  # as in the first row; another one later on may be an error's message
        raise self._none(columns, where)

    def _none(self, columns: Sequence[str], where: str) -> InvalidInput:
        there = ", ".join(columns) or "none"
        missing = next((name for name in self.declared if name not in columns), None)
        if missing is not None:
            known = ", ".join(self.declared)
            return InvalidInput(where, f"has no column {missing!r}", f"columns here: {there}; the model's: {known}")
        if self.modality == "row":
            problem = "does not say which columns are the input, and no worker has described the model yet"
            return InvalidInput(where, problem, f"start a worker, or name each with --input-column: {there}")
        return InvalidInput(where, "does not say which column is the input", f"name it with --input-column: {there}")

    def _key(self, columns: Sequence[str], where: str) -> str | None:
        if self.key is None:
            return next((name for name in KEY_COLUMNS if name in columns and name not in self.inputs), None)
        if self.key in columns:
            return self.key
        raise InvalidInput(where, f"has no column {self.key!r}", f"columns here: {', '.join(columns)}")
