"""Write joined rows as JSON Lines, CSV or Parquet. The file gets its name once it is complete."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from producers.client.request import Request
from producers.joining.rows import (
    CHANGED,
    Columns,
    Joined,
    Layout,
    Reasons,
    as_json,
    format_of,
    join,
    output_of,
    plain_value,
    revision_of,
)
from producers.sources.cells import Cell
from producers.wire.atomic_files import atomically
from producers.wire.errors import InvalidInput
from results_store.export.spreadsheet import Cells
from results_store.export.text_export import write_lines, write_table

if TYPE_CHECKING:
    from producers.sources import Source
    from results_store.records import Result


def write_joined(
    source: Source,
    request: Request,
    results: Iterable[Result],
    path: Path,
    cells: Cells | None = None,
    *,
    revisions: bool = False,
    fingerprint: str | None = None,
) -> int:
    """Write each row of the source with a column per task and a column for errors; return the number of rows.

    With `revisions`, a further column per task has the revision of the model that computed the row.

    The format is that of the file's name: ``.parquet``, ``.csv`` or ``.jsonl``. In CSV and Parquet an output is JSON
    text, except that a vector in Parquet is a list of numbers. `cells` counts or escapes formulas in CSV.

    `fingerprint` is that of the source before its submission, if it has one. Raises InvalidInput if the source has
    another one, also at the end, and if a key does not match; without keys nothing else tells that a row has changed.
    """
    kind = format_of(path)
    _check_unchanged(source, fingerprint)
    tasks = [task.name for task in request.tasks]
    schema = source.arrow_schema() if kind == "parquet" else None
    types: Mapping[str, str] = {} if schema is not None else _scanned(source)
    layout = Layout.of(schema.names if schema is not None else types, tasks, revisions=revisions)
    rows = join(source.records(), results, tasks, Reasons(source, request))
    with atomically(path) as part, part.open("wb") as file:
        if kind == "parquet":
            from producers.joining.joined_parquet import write_parquet

            vectors = {task.name for task in request.tasks if task.kind.output == list[float]}
            count = write_parquet(rows, layout, schema, types, vectors, file)
        else:
            with io.TextIOWrapper(file, "utf-8", errors="replace", newline="") as text:
                if kind == "csv":
                    count = write_table(text, layout.names, (_cells(row, layout) for row in rows), cells)
                else:
                    count = write_lines(text, (_line(row, layout) for row in rows))
        _check_unchanged(source, fingerprint)
    return count


def check_columns(source: Source, path: Path) -> None:
    """Raise InvalidInput now if the source's columns could not be written later."""
    schema = source.arrow_schema(check=True) if format_of(path) == "parquet" else None
    if schema is not None:
        from producers.joining.joined_parquet import check_schema

        check_schema(schema)


def check_output(path: Path) -> None:
    """Raise InvalidInput or ConfigurationError now if the output could not be written later."""
    if format_of(path) == "parquet":
        import producers.joining.joined_parquet  # noqa: F401 - raises if pyarrow is missing
    folder = path.absolute().parent
    if not folder.is_dir():
        raise InvalidInput("output", f"is in {path.parent}, which is not a folder", "make it, or check the path")
    if not os.access(folder, os.W_OK):
        raise InvalidInput("output", f"is in {path.parent}, where this user may not write", "name another folder")


def _check_unchanged(source: Source, fingerprint: str | None) -> None:
    if fingerprint is not None and source.fingerprint() != fingerprint:
        raise InvalidInput(source.name, "differs in a name, a size or a time", CHANGED)


def _scanned(source: Source) -> Mapping[str, str]:
    columns = Columns()
    for record in source.records():
        columns.add(record.columns)
    return columns.types


def _line(row: Joined, layout: Layout) -> str:
    outputs = {name: output_of(row.results.get(task)) for task, name in layout.tasks.items()}
    revisions = {name: revision_of(row.results.get(task)) for task, name in layout.revisions.items()}
    return as_json({**row.columns, **outputs, **revisions, layout.error: row.error})


def _cells(row: Joined, layout: Layout) -> list[Any]:
    given = [_cell(row.columns.get(name)) for name in layout.columns]
    outputs = (output_of(row.results.get(task)) for task in layout.tasks)
    made = ["" if output is None else as_json(output) for output in outputs]
    revisions = [revision_of(row.results.get(task)) or "" for task in layout.revisions]
    return [*given, *made, *revisions, row.error or ""]


def _cell(value: Any) -> Any:
    if isinstance(value, bytes | Cell):
        value = plain_value(value)
    return as_json(value) if isinstance(value, dict | list | tuple | bool) else value
