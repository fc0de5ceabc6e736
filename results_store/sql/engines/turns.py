"""The turns of the processes that write to an SQLite file."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: The interval at which a process looks whether it is next, and the longest wait for that: the next may stand still.
LOOK_EVERY_S = 0.001
LONGEST_S = 1.0


class Turns:
    """A lock beside SQLite's own: its holder is the next to write.

    SQLite has no queue. A process that finds the file locked sleeps up to 100 ms and looks again, so a process that
    writes all the time would starve it. Here only the next process looks at SQLite's lock, and the others wait for it.
    Without the lock's file, as in a folder that only SQLite's owner may write, SQLite's own wait applies.
    """

    def __init__(self, database: Path) -> None:
        self._path = Path(f"{database}-turns")
        self._file: int | None = None

    @contextmanager
    def next(self) -> Iterator[None]:
        """Be the next, or after `LONGEST_S` one of many."""
        file = self._opened()
        mine = file is not None and _locked(file)
        try:
            yield
        finally:
            if file is not None and mine:
                with suppress(OSError):  # it was closed meanwhile
                    fcntl.flock(file, fcntl.LOCK_UN)

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        """Close the file without a word, as SQLite's connections do. At the interpreter's end, `os` may be gone."""
        if self._file is not None:
            close(self._file)

    def _opened(self) -> int | None:
        if self._file is None:
            with suppress(OSError):
                self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        return self._file


def _locked(file: int) -> bool:
    deadline = time.monotonic() + LONGEST_S
    while time.monotonic() < deadline:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(LOOK_EVERY_S)
        except OSError:  # a file system without locks; it was closed meanwhile
            return False
        else:
            return True
    return False
