"""A file being read: its bytes, its progress, and the errors of its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeAlias

from producers.wire.errors import InvalidInput

#: A row's number in its file, and its columns or its error.
Raw: TypeAlias = tuple[int, Mapping[str, Any] | InvalidInput]


#: The reader skips a longer line: a broken file must not fill the memory.
LINE_BYTES = 16 * 1024 * 1024


@dataclass(slots=True)
class Meter:
    """The amount of a file that has been read, in bytes or rows. `total` is 0 if unknown."""

    done: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class Reading:
    """A file being read: its name, its bytes, its progress meter, and a check of a table's columns.

    `columns` raises InvalidInput if the input is not among a table's columns.
    """

    name: str
    file: BinaryIO
    meter: Meter
    columns: Callable[[list[str]], None]
    line_bytes: int = LINE_BYTES

    def wrong(self, number: int, problem: str, remedy: str) -> InvalidInput:
        return InvalidInput(f"{self.name}:{number}", problem, remedy)


def repeated(names: Iterable[str]) -> str | None:
    """Return a name that comes twice, or None."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


Reader: TypeAlias = Callable[[Reading], Iterator[Raw]]
