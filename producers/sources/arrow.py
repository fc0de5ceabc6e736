"""Read rows from Parquet and Arrow files, a batch at a time. Needs pyarrow: ``pip install 'argosy[parquet]'``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from typing import Any, cast

from producers.sources.file_reading import Meter, Raw, Reading
from producers.sources.places import Place
from producers.wire.errors import ConfigurationError, InvalidInput

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as error:
    remedy = "pip install 'argosy[parquet]', or convert the file to JSONL or CSV"
    raise ConfigurationError(f"Parquet and Arrow files need pyarrow; {remedy}") from error

#: Rows converted to Python objects at a time.
BATCH_ROWS = 2048

#: Bytes of a column that are read ahead. Without this limit pyarrow reads a row group's whole column.
BUFFER_BYTES = 1024 * 1024

_FILE_MAGIC = b"ARROW1"


def parquet(reading: Reading) -> Iterator[Raw]:
    """Yield a Parquet file's rows."""
    with _translated(reading):
        file = pq.ParquetFile(reading.file, buffer_size=BUFFER_BYTES, pre_buffer=False)
        reading.columns(file.schema_arrow.names)
        reading.meter.total = file.metadata.num_rows
    yield from _rows(reading, file.iter_batches(batch_size=BATCH_ROWS, use_threads=False))


def ipc(reading: Reading) -> Iterator[Raw]:
    """Yield the rows of an Arrow file or of an Arrow stream."""
    with _translated(reading):
        opened = _opened(reading)
        reading.columns(opened.schema.names)
    yield from _rows(reading, _portions(opened))


def common_schema(places: Iterable[tuple[Place, str]]) -> Any:
    """Return a schema that fits the rows of all these files, each given with its format. Raises InvalidInput."""
    common: Any = None
    for place, format_ in places:
        with place.open() as file:
            reading = Reading(place.name, file, Meter(), lambda names: None)
            with _translated(reading):
                schema = (pq.read_schema(file) if format_ == "parquet" else _opened(reading).schema).remove_metadata()
                common = schema if common is None else pa.unify_schemas([common, schema], promote_options="permissive")
    return common


def _opened(reading: Reading) -> Any:
    file = cast(BufferedReader, reading.file)
    magic = file.peek(len(_FILE_MAGIC))[: len(_FILE_MAGIC)]
    return pa.ipc.open_file(file) if magic == _FILE_MAGIC else pa.ipc.open_stream(file)


def _portions(opened: Any) -> Iterator[Any]:
    stored = (
        (opened.get_batch(number) for number in range(opened.num_record_batches))
        if hasattr(opened, "num_record_batches")
        else iter(opened)
    )
    for batch in stored:
        for start in range(0, batch.num_rows, BATCH_ROWS):
            yield batch.slice(start, BATCH_ROWS)


def _rows(reading: Reading, batches: Iterator[Any]) -> Iterator[Raw]:
    number = 0
    while True:
        with _translated(reading, after=number):
            batch = next(batches, None)
        if batch is None:
            return
        names = batch.schema.names
        columns = [_values(column) for column in batch.columns]
        for cells in zip(*columns, strict=True):
            number += 1
            reading.meter.done = number
            yield number, dict(zip(names, cells, strict=True))


def _values(column: Any) -> list[Any]:
    # Python has no type for a time in nanoseconds; an Arrow scalar keeps it unchanged
    if pa.types.is_temporal(column.type):
        return [value if value.is_valid else None for value in column]
    values: list[Any] = column.to_pylist()
    return values


@contextmanager
def _translated(reading: Reading, after: int = 0) -> Iterator[None]:
    """Turn pyarrow's errors into InvalidInput, which names the file and the last good row."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        behind = f" after row {after:,}" if after else ""
        what = " ".join(str(error).split())
        raise InvalidInput(
            reading.name, f"cannot be read{behind}: {what}", "check that the file is complete"
        ) from error
