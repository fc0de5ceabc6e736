"""Export a job's results as Parquet, a row group at a time. Needs pyarrow: ``pip install 'argosy[parquet]'``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import IO, Any, TypeVar

from results_store.errors import StoreError
from results_store.export.text_export import stream
from results_store.records import Result
from results_store.sql.columns import compact_json
from results_store.store import Store

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as error:
    raise StoreError("Parquet needs pyarrow; pip install 'argosy[parquet]', or choose jsonl or csv") from error

T = TypeVar("T")

#: Rows per group. Memory holds one group: about 15 MB of vectors with 384 numbers, 50 MB with 1,280.
GROUP_ROWS = 10_000

#: `output` is JSON text; a vector has its own column, exactly as stored.
SCHEMA = pa.schema(
    [
        ("seq", pa.int64()),
        ("key", pa.string()),
        ("task", pa.string()),
        ("state", pa.string()),
        ("output", pa.string()),
        ("vector", pa.list_(pa.float32())),
        ("error_kind", pa.string()),
        ("error_message", pa.string()),
        ("model", pa.string()),
        ("model_revision", pa.string()),
        ("precision", pa.string()),
        ("batch", pa.string()),
        ("queued_at", pa.float64()),
        ("batched_at", pa.float64()),
        ("computed_at", pa.float64()),
        ("stored_at", pa.float64()),
    ]
)


def write_parquet(store: Store, job: str, out: IO[bytes]) -> int:
    """Write a row per result, in (seq, task) order; return the number of rows. Raises UnknownJob."""
    results = stream(store, job)
    groups = iter(lambda: list(islice(results, GROUP_ROWS)), [])
    return write_groups(out, SCHEMA, groups, _columns)


def table_of(results: Sequence[Result]) -> Any:
    """Return an Arrow table with the columns of `SCHEMA`."""
    return pa.Table.from_arrays(_columns(results), schema=SCHEMA)


def write_groups(
    out: IO[bytes], schema: Any, groups: Iterable[Sequence[T]], columns: Callable[[Sequence[T]], list[Any]]
) -> int:
    """Write each group of at most `GROUP_ROWS` rows as a row group, by its `columns`; return how many rows."""
    count = 0
    with pq.ParquetWriter(out, schema, compression="zstd") as writer:
        for group in groups:
            writer.write_table(pa.Table.from_arrays(columns(group), schema=schema), row_group_size=GROUP_ROWS)
            count += len(group)
    return count


def _columns(group: Sequence[Result]) -> list[Any]:
    made = {
        "output": [None if result.output is None else compact_json(result.output) for result in group],
        "error_kind": [(result.error or {}).get("kind") for result in group],
        "error_message": [(result.error or {}).get("message") for result in group],
    }
    columns = []
    for field in SCHEMA:
        if field.name == "vector":
            columns.append(vectors_of([result.vector for result in group]))
        else:
            values = made.get(field.name) or [getattr(result, field.name) for result in group]
            columns.append(pa.array(values, field.type))
    return columns


def vectors_of(packed: Sequence[bytes | None]) -> Any:
    """Return the vectors as an Arrow array that shares their bytes, without Python objects for the numbers."""
    offsets: list[int | None] = []
    end = 0
    for vector in packed:
        offsets.append(None if vector is None else end)
        end += len(vector or b"") // 4
    numbers = pa.py_buffer(b"".join(vector for vector in packed if vector is not None))
    values = pa.Array.from_buffers(pa.float32(), end, [None, numbers])
    return pa.ListArray.from_arrays(pa.array([*offsets, end], pa.int32()), values)
