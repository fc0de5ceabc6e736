"""The types of messages, built before several threads use them.

msgspec builds its description of a struct at the struct's first use. A thread that uses the struct while another one
builds it crashes the process (segmentation fault, msgspec 0.22).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress

import msgspec

_lock = threading.Lock()
_built: set[type[msgspec.Struct]] = set()


def build_struct_types() -> None:
    """Build the descriptions of all structs that are imported by now: 6 ms for those of a client. Thread-safe."""
    with _lock:
        for struct in _subclasses(msgspec.Struct):
            if struct not in _built:
                _built.add(struct)
                with suppress(Exception):  # a struct that is never read, or of somebody else
                    msgspec.json.Decoder(struct)


def _subclasses(struct: type[msgspec.Struct]) -> Iterator[type[msgspec.Struct]]:
    for own in struct.__subclasses__():
        yield own
        yield from _subclasses(own)
