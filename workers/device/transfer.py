"""Frames between the worker's parent process and its device process: a small header and raw arrays, never pickle.

A frame is two lengths (header bytes, body bytes), a MessagePack header, and the arrays' bytes one after another;
the header's ``arrays`` lists name, dtype and shape of each.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from typing import Any, TypeAlias

import msgspec
import numpy as np

from workers.models.interface.model import Array, Arrays

Header: TypeAlias = dict[str, Any]

_LENGTHS = struct.Struct("<IQ")

#: A frame of at most this size is copied and sent at once: the other end wakes once.
_TOGETHER_BYTES = 64 * 1024


def send(sock: socket.socket, header: Header, arrays: Mapping[str, Array] | None = None) -> None:
    """Send one frame. Raises OSError if the other end is closed."""
    contiguous = {name: np.asarray(array, order="C") for name, array in (arrays or {}).items()}
    layout = [(name, array.dtype.str, array.shape) for name, array in contiguous.items()]
    head = msgspec.msgpack.encode({**header, "arrays": layout})
    size = sum(array.nbytes for array in contiguous.values())
    parts = [array.reshape(-1).view(np.uint8).data for array in contiguous.values() if array.nbytes]
    start = _LENGTHS.pack(len(head), size) + head
    if size <= _TOGETHER_BYTES:
        sock.sendall(b"".join((start, *parts)))
        return
    sock.sendall(start)
    for part in parts:
        sock.sendall(part)


def receive(sock: socket.socket) -> tuple[Header, Arrays] | None:
    """Receive one frame, or None if the other end has closed or died."""
    lengths = _read(sock, _LENGTHS.size)
    if lengths is None:
        return None
    head_bytes, body_bytes = _LENGTHS.unpack(lengths)
    head = _read(sock, head_bytes)
    body = _read(sock, body_bytes)
    if head is None or body is None:
        return None
    header: Header = msgspec.msgpack.decode(head)
    arrays: Arrays = {}
    offset = 0
    for name, dtype, shape in header.pop("arrays"):
        count = int(np.prod(shape, dtype=np.int64))
        array = np.frombuffer(body, dtype=np.dtype(dtype), count=count, offset=offset).reshape(shape)
        arrays[name] = array
        offset += array.nbytes
    return header, arrays


def _read(sock: socket.socket, size: int) -> bytearray | None:
    buffer = bytearray(size)
    view = memoryview(buffer)
    while view:
        try:
            received = sock.recv_into(view)
        except ConnectionError:
            return None
        if not received:
            return None
        view = view[received:]
    return buffer
