"""The answer of a decoding process: bytes of arrays in shared memory, and a MessagePack description. Never pickle.

A hostile file may take over the process that decodes it, so nothing in an answer can run code in the worker.
"""

from __future__ import annotations

import os
import struct
from typing import Any, Literal

import msgspec
import numpy as np

#: A message on the socket: the lengths of the two parts in shared memory. Of a request: the pickled call, the file. Of
#: an answer: the arrays, the description.
LENGTHS = struct.Struct("<QQ")

_ARRAY = 1
_KINDS = "biuf"


class DecodedAnswer(msgspec.Struct):
    """The end of a call. `outcome` says how to read `value`: a result, or the parts of an error."""

    outcome: Literal["made", "large", "refused", "memory", "misconfigured", "failed"]
    value: Any


def write(memory: int, answer: DecodedAnswer) -> bytes:
    """Write an answer into shared memory, and return the message about it."""
    size = 0

    def stored(array: object) -> msgspec.msgpack.Ext:
        nonlocal size
        if not isinstance(array, np.ndarray):
            raise TypeError(f"a decoded value must be an array or plain, not {type(array).__name__}")
        start, size = size, size + array.nbytes
        write_at(memory, np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, start)
        return msgspec.msgpack.Ext(_ARRAY, msgspec.msgpack.encode((start, array.dtype.str, array.shape)))

    described = msgspec.msgpack.encode(answer, enc_hook=stored)
    write_at(memory, memoryview(described), size)
    return LENGTHS.pack(size, len(described))


def read(memory: int, message: bytes, most_bytes: int) -> DecodedAnswer:
    """Return an answer from shared memory. Raises ValueError if it is not an answer."""
    size, described = LENGTHS.unpack(message)
    if size + described > most_bytes:
        raise ValueError(f"an answer of {size + described:,} bytes")

    def taken(code: int, layout: memoryview) -> np.ndarray[Any, Any]:
        start, dtype, shape = msgspec.msgpack.decode(layout, type=tuple[int, str, tuple[int, ...]])
        kind, count = np.dtype(dtype), int(np.prod(shape, dtype=np.int64))
        if (
            code != _ARRAY
            or kind.kind not in _KINDS
            or min((start, *shape)) < 0
            or start + count * kind.itemsize > size
        ):
            raise ValueError(f"an answer with the array {layout.tobytes()!r}")
        array = np.empty(shape, kind)
        read_at(memory, array.reshape(-1).view(np.uint8).data, start)
        return array

    content = bytearray(described)
    read_at(memory, memoryview(content), size)
    return msgspec.msgpack.Decoder(DecodedAnswer, ext_hook=taken).decode(content)


def write_at(memory: int, content: memoryview, start: int) -> None:
    """Write all of `content` into shared memory."""
    while content:
        written = os.pwrite(memory, content, start)
        content, start = content[written:], start + written


def read_at(memory: int, content: memoryview, start: int) -> None:
    """Fill `content` from shared memory. Raises ValueError if there is less."""
    while content:
        if not (found := os.preadv(memory, [content], start)):
            raise ValueError("an answer that ends early")
        content, start = content[found:], start + found
