"""An index as a safetensors file: passages with their vectors, written without holding them in memory.

`vectors` `(passages, width)` are float32 of length 1. `passages` are bytes, a JSON object per passage; `bounds` are the
offsets of these objects. The metadata are the `format`, the `encoder` (the revision of the model of the vectors) and
the `edition`.
"""

from __future__ import annotations

import json
import shutil
import sys
from array import array
from dataclasses import dataclass
from pathlib import Path

from producers.wire.atomic_files import atomically
from producers.wire.kinds.retrieval import INDEX_FILE, INDEX_FORMAT

_BOUND_BYTES, _NUMBER_BYTES = 8, 4


@dataclass(frozen=True, slots=True)
class Contents:
    """The content of an index: a file of passages with its `bounds`, and a file of vectors with their `width`."""

    passages: Path
    bounds: array[int]
    vectors: Path
    width: int
    encoder: str
    edition: str


def write(contents: Contents, out: Path) -> Path:
    """Write the index into the folder `out` and return its file. A concurrent reader sees the old file whole."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / INDEX_FILE
    with atomically(file) as part, part.open("wb") as written:
        written.write(_header(contents))
        written.write(_little_endian(contents.bounds))
        for path in (contents.vectors, contents.passages):
            with path.open("rb") as read:
                shutil.copyfileobj(read, written)
    return file


def _header(contents: Contents) -> bytes:
    rows, ends = len(contents.bounds) - 1, [0]
    shapes = {  # the widest numbers first, so that all tensors are aligned
        "bounds": ("I64", [rows + 1], _BOUND_BYTES * (rows + 1)),
        "vectors": ("F32", [rows, contents.width], _NUMBER_BYTES * rows * contents.width),
        "passages": ("U8", [contents.bounds[-1]], contents.bounds[-1]),
    }
    header: dict[str, object] = {
        "__metadata__": {"format": INDEX_FORMAT, "encoder": contents.encoder, "edition": contents.edition}
    }
    for name, (kind, shape, size) in shapes.items():
        ends.append(ends[-1] + size)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": ends[-2:]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(8, "little") + encoded


def _little_endian(bounds: array[int]) -> bytes:
    if sys.byteorder == "big":
        bounds = array("q", bounds)
        bounds.byteswap()
    return bounds.tobytes()
