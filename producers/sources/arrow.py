"""Read rows from Parquet and Arrow files, a batch at a time. Needs pyarrow: ``pip install 'argosy[parquet]'``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from typing import Any, cast

from producers.sources.cells import Cell
from producers.sources.file_reading import Meter, Raw, Reading, repeated
from producers.sources.places import Place, told
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
    """Return a Parquet file's rows, after a check of its columns."""
    if not reading.file.seekable():
        raise InvalidInput(reading.name, "is Parquet in a compressed file", "unpack it; Parquet is compressed itself")
    with _translated(reading):
        file = pq.ParquetFile(reading.file, buffer_size=BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True)
        _check_names(reading, file.schema_arrow.names)
        reading.meter.total = file.metadata.num_rows
    return _rows(reading, file.iter_batches(batch_size=BATCH_ROWS, use_threads=False))


def ipc(reading: Reading) -> Iterator[Raw]:
    """Return the rows of an Arrow file or of an Arrow stream, after a check of its columns."""
    with _translated(reading):
        opened = _opened(reading)
        _check_names(reading, opened.schema.names)
    return _rows(reading, _portions(opened))


def _check_names(reading: Reading, names: list[str]) -> None:
    name = repeated(names)
    if name is not None:
        raise InvalidInput(reading.name, f"names the column {name!r} twice", "give each column its own name")
    reading.columns(names)


def common_schema(places: Iterable[tuple[Place, str]]) -> Any:
    """Return a schema that fits the rows of all these files, each given with its format. Raises InvalidInput.

    All its columns may be null, as they are in a row that cannot be read.
    """
    common: Any = None
    for place, format_ in places:
        with place.open() as file:
            reading = Reading(place.name, file, Meter(), lambda names: None)
            with _translated(reading):
                schema = (pq.read_schema(file) if format_ == "parquet" else _opened(reading).schema).remove_metadata()
        schema = pa.schema([field.with_type(_stored(field.type)).with_nullable(True) for field in schema])
        common = schema if common is None else _unified(common, schema, place.name)
    return common


def check_values(places: Iterable[tuple[Place, str]], schema: Any) -> None:
    """Raise InvalidInput, which names file and column, if a value does not fit the type that all files have in common.

    Only columns of another type are read: whole numbers beside others, times of different units.
    """
    for place, format_ in places:
        with place.open() as file:
            reading = Reading(place.name, file, Meter(), lambda names: None)
            with _translated(reading):
                opened = pq.ParquetFile(file) if format_ == "parquet" else _opened(reading)
                own = opened.schema_arrow if format_ == "parquet" else opened.schema
                cast_to = {field.name: schema.field(field.name).type for field in own}
                names = [field.name for field in own if not _stored(field.type).equals(cast_to[field.name])]
                batches = opened.iter_batches(columns=names) if format_ == "parquet" else _portions(opened)
                for batch in batches if names else ():
                    for name in names:
                        _check_cast(batch.column(name), cast_to[name], f"{place.name}: column {name}")


def _check_cast(column: Any, type_: Any, where: str) -> None:
    decoded = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
    try:
        with suppress(pa.ArrowNotImplementedError):  # the values go through Python
            decoded.cast(type_)
    except pa.ArrowInvalid as error:
        problem = f"does not fit the other files' type {type_}: {' '.join(str(error).split())}"
        raise InvalidInput(where, problem, "give each column one type in all files") from error


def _unified(common: Any, schema: Any, name: str) -> Any:
    for one, other in ((common, schema), (_decoded(common), _decoded(schema))):
        try:
            return pa.unify_schemas([one, other], promote_options="permissive")
        except pa.ArrowException as error:
            problem = " ".join(str(error).split())
    raise InvalidInput(name, f"does not fit the files before it: {problem}", "give each column one type in all files")


def _stored(type_: Any) -> Any:
    """Return a type that Parquet has, for Polars' categories."""
    views = pa.types.is_dictionary(type_) and pa.types.is_string_view(type_.value_type)
    return pa.string() if views else type_


def _decoded(schema: Any) -> Any:
    """Return the schema with the values' types in place of dictionaries."""
    types = [field.type.value_type if pa.types.is_dictionary(field.type) else field.type for field in schema]
    return pa.schema([field.with_type(type_) for field, type_ in zip(schema, types, strict=True)])


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
        bad: dict[int, InvalidInput] = {}
        columns = [
            _values(column, name, bad, reading, number) for name, column in zip(names, batch.columns, strict=True)
        ]
        for place, cells in enumerate(zip(*columns, strict=True)):
            number += 1
            reading.meter.done = number
            yield number, bad.get(place) or dict(zip(names, cells, strict=True))


def _values(column: Any, name: str, bad: dict[int, InvalidInput], reading: Reading, before: int) -> list[Any]:
    """Return a column's values, and add the errors of its texts that are not UTF-8 to `bad`, by their place."""
    if _stored(column.type) != column.type:  # Arrow computes nothing on views of texts
        column = pa.DictionaryArray.from_arrays(column.indices, column.dictionary.cast(pa.string()))
    if not _is_plain(column.type):
        return [Cell(column, place) if value.is_valid else None for place, value in enumerate(column)]
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        values = []
        for place, value in enumerate(column):
            try:
                values.append(value.as_py())
            except UnicodeDecodeError as error:
                values.append(None)
                problem = f"is not UTF-8 in the column {name!r} ({error.reason})"
                bad[place] = reading.wrong(before + place + 1, problem, "write the column as UTF-8")
    return values


_PLAIN = (
    *("bool", "null", "float", "double", "halffloat"),
    *("string", "large_string", "string_view", "binary", "large_binary", "binary_view"),
)


def _is_plain(type_: Any) -> bool:
    """Return whether Python's values carry a type's values there and back."""
    if pa.types.is_list(type_) or pa.types.is_large_list(type_):
        return _is_plain(type_.value_type)
    if pa.types.is_struct(type_):
        names = [field.name for field in type_]
        return 0 < len(set(names)) == len(names) and all(_is_plain(field.type) for field in type_)
    return pa.types.is_integer(type_) or str(type_) in _PLAIN


@contextmanager
def _translated(reading: Reading, after: int = 0) -> Iterator[None]:
    """Turn pyarrow's errors into InvalidInput, which names the file and the last good row."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        behind = f" after row {after:,}" if after else ""
        what = " ".join(told(error).split())
        unknown = isinstance(error, pa.ArrowNotImplementedError)
        remedy = "cast or leave out the column of that type" if unknown else "check that the file is complete"
        raise InvalidInput(reading.name, f"cannot be read{behind}: {what}", remedy) from None
