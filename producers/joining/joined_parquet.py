"""Joined rows as Parquet, with the types of the source. Needs pyarrow: ``pip install 'argosy[parquet]'``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import groupby
from typing import IO, Any

from producers.joining.rows import Joined, Layout, as_json, output_of, revision_of
from producers.sources.cells import Cell
from producers.wire.errors import InvalidInput
from results_store.export.parquet_export import GROUP_ROWS, vectors_of, write_groups  # without pyarrow it says so

# isort: split
import pyarrow as pa
import pyarrow.parquet as pq

#: A row group ends at `GROUP_ROWS`, or at about this many bytes of text and media.
GROUP_BYTES = 32 * 1024 * 1024

_TYPES = {"boolean": pa.bool_(), "integer": pa.int64(), "long": pa.int64(), "number": pa.float64()}


def write_parquet(
    rows: Iterable[Joined],
    layout: Layout,
    schema: Any,
    types: Mapping[str, str],
    vectors: AbstractSet[str],
    file: IO[bytes],
) -> int:
    """Write rows and return their number.

    `schema` is the source's Arrow schema; without it, `types` are its columns' JSON types. `vectors` are the tasks
    whose output is a vector.
    """
    given = [(name, _TYPES.get(types[name], pa.string())) for name in layout.columns] if schema is None else schema
    of_task = {task: pa.list_(pa.float32()) if task in vectors else pa.string() for task in layout.tasks}
    made = [(name, of_task[task]) for task, name in layout.tasks.items()]
    texts = [(name, pa.string()) for name in (*layout.revisions.values(), layout.error)]
    whole = pa.schema([*given, *made, *texts])

    def revision(group: Sequence[Joined], task: str) -> Any:
        return pa.array([revision_of(row.results.get(task)) for row in group], pa.string())

    def columns(group: Sequence[Joined]) -> list[Any]:
        return [
            *(_given(group, whole.field(name), types.get(name)) for name in layout.columns),
            *(_made(group, task, of_task[task]) for task in layout.tasks),
            *(
                pa.array([revision_of(row.results.get(task)) for row in group], pa.string())
                for task in layout.revisions
            ),
            pa.array([row.error for row in group], pa.string()),
        ]

    return write_groups(file, whole, _groups(rows), columns)


def check_schema(schema: Any) -> None:
    """Raise InvalidInput, which names the column, if Parquet does not have its type."""
    for field in schema:
        try:
            pq.write_table(pa.schema([field]).empty_table(), pa.BufferOutputStream())
        except pa.ArrowException as error:
            problem = f"is {field.type}, which Parquet does not have"
            raise InvalidInput(f"column {field.name}", problem, "cast the column, or write .jsonl") from error


def _groups(rows: Iterable[Joined]) -> Iterator[list[Joined]]:
    group: list[Joined] = []
    size = 0
    for row in rows:
        group.append(row)
        size += sum(len(value) for value in row.columns.values() if isinstance(value, str | bytes | dict))
        if len(group) >= GROUP_ROWS or size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _given(group: Sequence[Joined], field: Any, type_: str | None) -> Any:
    values = [row.columns.get(field.name) for row in group]
    if type_ == "json":
        values = [value if value is None or isinstance(value, str) else as_json(value) for value in values]
    if any(isinstance(value, Cell) for value in values):
        return _taken_over(values, field.type)
    return pa.array(values, field.type)


def _taken_over(values: Sequence[Any], type_: Any) -> Any:
    """Return an array of cells and other values, of which the cells take no way through Python's values."""
    parts = []
    for column, cells in groupby(values, lambda value: value.column if isinstance(value, Cell) else None):
        if column is None:
            parts.append(pa.array(list(cells), type_))
            continue
        taken = column.take(pa.array([cell.place for cell in cells]))
        if pa.types.is_dictionary(taken.type) and taken.type != type_:
            taken = taken.dictionary_decode()
        parts.append(taken if taken.type == type_ else taken.cast(type_))
    return pa.chunked_array(parts, type_)


def _made(group: Sequence[Joined], task: str, type_: Any) -> Any:
    results = [row.results.get(task) for row in group]
    if pa.types.is_list(type_):
        if all(row is None or row.output is None for row in results):
            return vectors_of([None if row is None else row.vector for row in results])
        return pa.array([output_of(row) for row in results], type_)
    outputs = (output_of(row) for row in results)
    return pa.array([None if output is None else as_json(output) for output in outputs], type_)
