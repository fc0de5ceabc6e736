"""Check that each key comes once, in constant memory: the keys lie in a temporary database."""

from __future__ import annotations

import sqlite3

CACHE_KIB = 8192


class Unique:
    """Remembers keys and their places. Close it after use."""

    def __init__(self) -> None:
        self._seen: sqlite3.Connection | None = None

    def first(self, key: str, origin: str) -> str | None:
        """Store a key; return its earlier place, or None if the key is new."""
        seen = self._seen or self._open()
        raw = key.encode("utf-8", "surrogatepass")  # JSON can contain half a surrogate pair
        if seen.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (raw, origin)).rowcount:
            return None
        return str(seen.execute("SELECT origin FROM seen WHERE key = ?", (raw,)).fetchone()[0])

    def close(self) -> None:
        if self._seen is not None:
            self._seen.close()

    def _open(self) -> sqlite3.Connection:
        self._seen = sqlite3.connect("", isolation_level=None)  # a nameless file, deleted on close
        for setting in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{CACHE_KIB}"):
            self._seen.execute(f"PRAGMA {setting}")
        self._seen.execute("CREATE TABLE seen (key BLOB PRIMARY KEY, origin TEXT) WITHOUT ROWID")
        self._seen.execute("BEGIN")
        return self._seen
