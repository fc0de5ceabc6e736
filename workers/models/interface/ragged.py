"""Pack outputs without a common shape (boxes, masks, texts) as rows of one array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from workers.models.interface.model import Array

_LENGTH_BYTES = 4


def pack(values: Sequence[Any]) -> Array:
    """Encode plain values as rows of bytes: a length, MessagePack, zeros up to the longest row."""
    encoded = [msgspec.msgpack.encode(value) for value in values]
    rows = np.zeros((len(encoded), _LENGTH_BYTES + max(map(len, encoded))), dtype=np.uint8)
    for row, content in zip(rows, encoded, strict=True):
        head = len(content).to_bytes(_LENGTH_BYTES, "little")
        row[: _LENGTH_BYTES + len(content)] = np.frombuffer(head + content, dtype=np.uint8)
    return rows


def unpack(row: Array) -> Any:
    """Decode a row into its value."""
    content = row.tobytes()
    length = int.from_bytes(content[:_LENGTH_BYTES], "little")
    return msgspec.msgpack.decode(content[_LENGTH_BYTES : _LENGTH_BYTES + length])
