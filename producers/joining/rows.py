"""Join results to their source rows: the source is read again beside the stored results.

Both come in the order of the rows, so memory holds a single row of each.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from producers.sources.cells import Cell
from producers.sources.media import Record
from producers.wire.errors import InvalidInput
from results_store.records import Result, ResultState
from results_store.sql.columns import json_of, text

if TYPE_CHECKING:
    from producers.client.request import Request
    from producers.sources import Source

#: Name of the column with a row's error, unless the source has such a column itself.
ERROR = "error"

#: The remedy for a source that is not the one that was submitted.
CHANGED = "the file has changed since its submission; `argosy results` writes the results alone"

FORMATS = ("parquet", "csv", "jsonl")


@dataclass(frozen=True, slots=True)
class Joined:
    """A row of the source, its results by task, and its error or None."""

    columns: Mapping[str, Any]
    results: Mapping[str, Result]
    error: str | None


@dataclass(frozen=True, slots=True)
class Layout:
    """The columns of the output: the source's, one or two per task, and the error's. All names differ.

    `tasks` has the column of each task's output, `revisions` that of the model's revision, if it is wanted.
    """

    columns: tuple[str, ...]
    tasks: Mapping[str, str]
    revisions: Mapping[str, str]
    error: str

    @classmethod
    def of(cls, columns: Iterable[str], tasks: Sequence[str], *, revisions: bool = False) -> Layout:
        taken = list(columns)
        names = {task: _free(task, taken) for task in tasks}
        taken_too = [*taken, *names.values()]
        revised = {task: _free(f"{task}_revision", taken_too) for task in tasks if revisions}
        return cls(tuple(taken), names, revised, _free(ERROR, [*taken_too, *revised.values()]))

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.columns, *self.tasks.values(), *self.revisions.values(), self.error)


def join(
    records: Iterable[Record],
    results: Iterable[Result],
    tasks: Sequence[str],
    why: Callable[[int, Record], str | None],
) -> Iterator[Joined]:
    """Yield each record with its results.

    `why` returns the reason for a record without results. Raises InvalidInput if records and results do not match.
    """
    of_items = groupby(results, attrgetter("seq"))
    seq, found = next(of_items, (None, iter(())))
    for place, record in enumerate(records):
        mine: dict[str, Result] = {}
        if place == seq:
            mine = {row.task: row for row in found}
            seq, found = next(of_items, (None, iter(())))
        _check(record, mine)
        yield Joined(record.columns, mine, _error(mine, tasks) or (None if mine else why(place, record)))
    if seq is not None:
        raise InvalidInput("source", f"ends before row {seq}, which has a result", "join it with the submitted file")


@dataclass(frozen=True, slots=True)
class Reasons:
    """The reason for a row without a result: checking the row again gives the error that refused it at submission."""

    source: Source
    request: Request

    def __call__(self, place: int, record: Record) -> str:
        try:
            item = self.source.item(record)
            if isinstance(item, InvalidInput):
                return str(item)
            self.request.item(place, item, field=record.origin)
        except InvalidInput as error:
            return str(error)
        return "no result; was this row submitted?"


@dataclass(slots=True)
class Columns:
    """The columns of rows without a schema, each with the JSON type that fits all its values."""

    types: dict[str, str] = field(default_factory=dict)

    def add(self, row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            before, now = self.types.get(name, "null"), _type(value)
            self.types[name] = now if before == "null" else before if now in (before, "null") else _both(before, now)


def format_of(path: Path) -> str:
    """Return the output format by the file's name. Raises InvalidInput."""
    suffix = path.suffix.lower().lstrip(".")
    if suffix not in FORMATS:
        raise InvalidInput("output", f"is called {path.name}", f"give it one of the suffixes .{', .'.join(FORMATS)}")
    return suffix


def plain_value(value: Any) -> Any:
    """Return a value that JSON does not have: bytes as base64, a cell of Arrow's, anything else as text."""
    if isinstance(value, Cell):
        value = value.plain()
        if not isinstance(value, bytes):
            return value
    return b64encode(value).decode() if isinstance(value, bytes) else str(value)


def as_json(value: Any) -> str:
    """Return a value as JSON, with null for the numbers that JSON does not have."""
    return json_of(value, plain_value)


def output_of(result: Result | None) -> Any:
    """Return a succeeded result's output, a vector as a list of numbers."""
    if result is None or result.state is not ResultState.SUCCEEDED:
        return None
    if result.vector is None:
        return result.output
    from results_store.export.text_export import plain

    return plain(result)["output"]


def revision_of(result: Result | None) -> str | None:
    """Return the revision of the model that computed a result."""
    return None if result is None else result.model_revision


def _free(name: str, taken: Sequence[str]) -> str:
    while name in taken:
        name = f"{name}_"
    return name


def _check(record: Record, mine: Mapping[str, Result]) -> None:
    for row in mine.values():
        if record.error is not None or row.key != text(record.key):
            raise InvalidInput(
                record.origin,
                f"has the key {record.key!r}, but the result in this place has {row.key!r}",
                CHANGED,
            )


def _error(mine: Mapping[str, Result], tasks: Sequence[str]) -> str | None:
    """Return the errors of the tasks that did not succeed. A task without a result is not done yet."""
    errors = []
    for task in tasks if mine else ():
        row = mine.get(task)
        if row is None:
            errors.append(f"{task}: not done yet")
        elif row.state is ResultState.FAILED:
            error = row.error or {}
            errors.append(f"{task}: {error.get('kind', 'Error')}: {error.get('message', 'no message')}")
        elif row.state is not ResultState.SUCCEEDED:
            errors.append(f"{task}: {row.state}")
    return "; ".join(errors) or None


#: The type of a column with two types; "json" for all others. A "long" has digits that a "number" would lose.
_OF_BOTH = {("integer", "number"): "number", ("integer", "long"): "long"}


def _type(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int) and abs(value) > 2**53:
        return "long" if -(2**63) <= value < 2**63 else "json"
    if isinstance(value, int):
        return "integer"
    return {float: "number", str: "string"}.get(type(value), "json")


def _both(one: str, other: str) -> str:
    return _OF_BOTH.get((min(one, other), max(one, other)), "json")
