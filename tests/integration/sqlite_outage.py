"""A database that is away: the file of an SQLite store has another name for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def away(store_url: str) -> Iterator[None]:
    """Take the file of a store away until the block ends."""
    file = Path(store_url.removeprefix("sqlite:///"))
    aside = file.rename(file.with_suffix(".aside"))
    try:
        yield
    finally:
        aside.rename(file)
