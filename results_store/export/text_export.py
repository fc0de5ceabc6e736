"""Export a job's results as JSON Lines or CSV, streamed: memory holds a page, whatever the size of the job."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from typing import Any, TextIO

from results_store.export.spreadsheet import Cells
from results_store.records import Result
from results_store.sql.columns import compact_json, unpack_vector
from results_store.store import Store

_FIELDS = tuple(field.name for field in fields(Result) if field.name != "vector")

CSV_COLUMNS = (
    "seq",
    "key",
    "task",
    "state",
    "output",
    "error_kind",
    "error_message",
    "model",
    "model_revision",
    "precision",
    "queued_at",
    "stored_at",
)


def stream(store: Store, job: str, *, page: int = 1000) -> Iterator[Result]:
    """Yield a job's results in (seq, task) order. Complete once the job is finished. Raises UnknownJob."""
    store.job(job)
    after: tuple[int, str] | None = None
    while results := store.results(job, after=after, limit=page):
        yield from results
        after = (results[-1].seq, results[-1].task)


def write_jsonl(store: Store, job: str, out: TextIO) -> int:
    """Write a JSON object per result, with all fields; return the number of results. A vector is a list in `output`."""
    return write_lines(out, (compact_json(plain(result)) for result in stream(store, job)))


def write_csv(store: Store, job: str, out: TextIO, cells: Cells | None = None) -> int:
    """Write a header and a line per result; return the number of results. `output` is JSON text.

    Open `out` with ``newline=""``.
    """
    return write_table(out, CSV_COLUMNS, map(_cells, stream(store, job)), cells)


def _cells(result: Result) -> list[Any]:
    row = plain(result)
    error, output = row["error"] or {}, row["output"]
    row |= {"error_kind": error.get("kind"), "error_message": error.get("message")}
    row["output"] = "" if output is None else compact_json(output)
    return [row[name] for name in CSV_COLUMNS]


def write_lines(out: TextIO, lines: Iterable[str]) -> int:
    """Write lines, and return how many."""
    count = 0
    for count, line in enumerate(lines, 1):  # noqa: B007 - the count is returned
        out.write(line)
        out.write("\n")
    return count


def write_table(out: TextIO, names: Sequence[str], rows: Iterable[Sequence[Any]], cells: Cells | None = None) -> int:
    """Write a header and rows as CSV; return how many rows. `cells` counts or escapes formulas."""
    cells = cells or Cells()
    writer = csv.writer(out, quoting=csv.QUOTE_NONNUMERIC if cells.escaped else csv.QUOTE_MINIMAL)
    writer.writerow(cells.row(names))
    count = 0
    for count, row in enumerate(rows, 1):  # noqa: B007 - the count is returned
        writer.writerow(cells.row(row))
    return count


def plain(result: Result) -> dict[str, Any]:
    """Return the result as JSON values; a vector becomes the `output`, as a list of numbers.

    Nine digits are enough to restore the same float32, and half as many as Python would print.
    """
    row = {name: getattr(result, name) for name in _FIELDS}
    if result.vector is not None:
        row["output"] = [float(f"{number:.9g}") for number in unpack_vector(result.vector)]
    return row
