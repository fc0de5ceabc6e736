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
    "seed": ("input", "seed"),
}
KEY_COLUMNS = ("id", "key")

#: Rows of JSON may all have different columns; at most this many sets of columns are remembered.
_REMEMBERED = 1024


@dataclass(frozen=True, slots=True)
class ColumnChoice:
    """The columns to read. Several inputs become an object. Without a key column, the row's number is the key."""

    inputs: tuple[str, ...]
    key: str | None

    def value(self, row: Mapping[str, Any]) -> Any:
        if len(self.inputs) == 1:
            return row[self.inputs[0]]
        return {name: row[name] for name in self.inputs}


@dataclass(frozen=True, slots=True)
class Chooser:
    """Finds input and key among a row's columns: the named columns, or else the default ones."""

    modality: str
    inputs: Sequence[str] = ()
    key: str | None = None
    _known: dict[tuple[str, ...], ColumnChoice] = field(default_factory=dict)

    def __call__(self, columns: Sequence[str], row: str, file: str) -> ColumnChoice:
        """Return the choice for these columns. Raises InvalidInput naming the `row`, or the `file` for the key."""
        names = tuple(columns)
        found = self._known.get(names)
        if found is None:
            found = ColumnChoice(self._inputs(names, row), self._key(names, file))
            if len(self._known) < _REMEMBERED:
                self._known[names] = found
        return found

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
        for name in INPUT_COLUMNS.get(self.modality, INPUT_COLUMNS["text"]):
            if name in columns:
                return (name,)
        if len(columns) == 1:
            return (columns[0],)
        raise InvalidInput(where, "does not say which column is the input", f"name it with --input-column: {there}")

    def _key(self, columns: Sequence[str], where: str) -> str | None:
        if self.key is None:
            return next((name for name in KEY_COLUMNS if name in columns and name not in self.inputs), None)
        if self.key in columns:
            return self.key
        raise InvalidInput(where, f"has no column {self.key!r}", f"columns here: {', '.join(columns)}")
