"""The rows of a training's part in an Arrow file: mapped into memory, and decoded where they are computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from producers.wire.atomic_files import atomically
from workers.models.interface.model import Array
from workers.training.loop.schedule import Place
from workers.training.recipes.labelled_rows import LabelledRow

_CHUNK = 1024
_TASKS = b"tasks"


class StoredRows:
    """Rows in a file. A stream has the rows with labels of the same tasks. Only the file's name is pickled.

    `decoded_bytes` are the bytes of all rows that this process has decoded.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.decoded_bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "decoded_bytes": 0}

    def at(self, places: Sequence[Place]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield each row's origin and columns."""
        origins, rows = self._table.column("origin"), self._table.column("row")
        for stream, number in places:
            place = int(self.streams[stream][number])
            encoded = rows[place].as_buffer()
            self.decoded_bytes += encoded.size
            yield origins[place].as_py(), msgspec.msgpack.decode(encoded)

    def sizes(self, places: Sequence[Place]) -> list[int]:
        """Return the rows' costs, without reading the rows."""
        return [int(self._sizes[self.streams[stream][number]]) for stream, number in places]

    @cached_property
    def streams(self) -> list[Array]:
        """The places in the file of each stream's rows."""
        numbers = self._table.column("stream").to_numpy()
        return [np.flatnonzero(numbers == number) for number in range(int(numbers.max(initial=-1)) + 1)]

    @property
    def tasks(self) -> list[list[str]]:
        """The tasks of each stream."""
        return msgspec.json.decode(self._table.schema.metadata[_TASKS], type=list[list[str]])

    @property
    def bytes(self) -> int:
        """The bytes of all rows."""
        import pyarrow.compute

        return int(pyarrow.compute.sum(pyarrow.compute.binary_length(self._table.column("row"))).as_py() or 0)

    @cached_property
    def _sizes(self) -> Array:
        sizes: Array = self._table.column("size").to_numpy()
        return sizes

    @cached_property
    def _table(self) -> Any:
        import pyarrow

        return pyarrow.ipc.open_file(pyarrow.memory_map(str(self.path))).read_all()


def write(path: Path, rows: Sequence[LabelledRow], sizes: Sequence[int]) -> StoredRows:
    """Write rows with their costs."""
    import pyarrow

    types = {"origin": pyarrow.string(), "row": pyarrow.large_binary(), "size": pyarrow.int64()}
    names = list(dict.fromkeys(tuple(row.labels) for row in rows))
    streams = {tasks: number for number, tasks in enumerate(names)}
    schema = pyarrow.schema([*types.items(), ("stream", pyarrow.int32())], {_TASKS: msgspec.json.encode(names)})
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomically(path) as part, pyarrow.OSFile(str(part), "wb") as sink, pyarrow.ipc.new_file(sink, schema) as file:
        for start in range(0, len(rows), _CHUNK):
            some = rows[start : start + _CHUNK]
            columns = (
                [row.origin for row in some],
                [msgspec.msgpack.encode(row.columns) for row in some],
                sizes[start : start + _CHUNK],
                [streams[tuple(row.labels)] for row in some],
            )
            arrays = [pyarrow.array(own, field.type) for own, field in zip(columns, schema, strict=True)]
            file.write_batch(pyarrow.record_batch(arrays, schema=schema))
    return StoredRows(path)
