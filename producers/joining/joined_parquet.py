"""Joined rows as Parquet, with the types of the source. Needs pyarrow: ``pip install 'argosy[parquet]'``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import IO, Any

from producers.joining.rows import Joined, Layout, as_json, output_of
from producers.wire.errors import ConfigurationError
from results_store.export.parquet_export import vectors_of

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as error:
    remedy = "pip install 'argosy[parquet]', or choose .csv or .jsonl"
    raise ConfigurationError(f"Parquet needs pyarrow; {remedy}") from error

#: A row group is full at this many rows, or about this many bytes of text and media.
GROUP_ROWS, GROUP_BYTES = 10_000, 32 * 1024 * 1024

_TYPES = {"boolean": pa.bool_(), "integer": pa.int64(), "number": pa.float64()}


def write_parquet(
    rows: Iterable[Joined],
    layout: Layout,
    schema: Any,
    types: Mapping[str, str],
    vectors: AbstractSet[str],
    file: IO[bytes],
) -> int:
    """Write rows; `schema` is the source's, or `types` its columns' JSON types; `vectors` are the tasks that give one."""
    given = [(name, _TYPES.get(types[name], pa.string())) for name in layout.columns] if schema is None else schema
    of_task = {task: pa.list_(pa.float32()) if task in vectors else pa.string() for task in layout.tasks}
    made = [(name, of_task[task]) for task, name in layout.tasks.items()]
    whole = pa.schema([*given, *made, (layout.error, pa.string())])
    written = 0
    with pq.ParquetWriter(file, whole, compression="zstd") as writer:
        for group in _groups(rows):
            columns = [
                *(
                    _given(group, field, types.get(field.name))
                    for field in [whole.field(name) for name in layout.columns]
                ),
                *(_made(group, task, of_task[task]) for task in layout.tasks),
                pa.array([row.error for row in group], pa.string()),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=whole), row_group_size=GROUP_ROWS)
            written += len(group)
    return written


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
    return pa.array(values, field.type)


def _made(group: Sequence[Joined], task: str, type_: Any) -> Any:
    results = [row.results.get(task) for row in group]
    if pa.types.is_list(type_):
        if all(row is None or row.output is None for row in results):
            return vectors_of([None if row is None else row.vector for row in results])
        return pa.array([output_of(row) for row in results], type_)
    outputs = (output_of(row) for row in results)
    return pa.array([None if output is None else as_json(output) for output in outputs], type_)
