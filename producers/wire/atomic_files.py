"""Files that are there whole or not at all: each is written beside its place and takes its name at the end."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec


@contextmanager
def atomically(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Give a path to write to. The file replaces `path` once the block ends, and is removed if the block raises.

    Several may write at the same time: the last one to end stays. `durable` waits until the disk has the content.
    """
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield part
        if durable:
            with part.open("rb") as file:
                os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        if error.filename == str(part):
            error.filename = str(path)  # the name that people know
        raise
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, value: object, *, durable: bool = False) -> None:
    """Write a value as indented JSON, `atomically`."""
    with atomically(path, durable=durable) as part:
        part.write_bytes(msgspec.json.format(msgspec.json.encode(value)) + b"\n")
