"""The access of a process to the Celery tables: shared by its threads, with their writes in common transactions.

Celery makes a backend per thread. With a connection per backend, many threads would poll for SQLite's lock. So all
backends of a process and URL share a `CeleryResults`. It has no thread of its own: a thread that gets the lock writes
for all waiting threads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from results_store.celery_results import celery_rows
from results_store.celery_results.celery_rows import ChordPart, TaskRow
from results_store.errors import StoreUnavailable
from results_store.sql.columns import clock
from results_store.sql.database import Database, Weight, open_current
from results_store.sql.retention import remove_celery_results

#: Writes per transaction.
GROUP = 1000


@dataclass(slots=True, eq=False)
class _Write:
    """A thread's write request and its outcome."""

    row: TaskRow | None = None
    part: ChordPart | None = None
    settled: bool = False
    completes: bool = False
    error: Exception | None = None


class CeleryResults:
    """Thread-safe. Every method raises StoreUnavailable when the database cannot be reached in time.

    The thread that claimed a complete chord has `claim_s` to send its body, before another copy of the last part may.
    """

    def __init__(self, url: str, *, timeout_s: float = 30.0, claim_s: float = 60.0) -> None:
        self._database = Database(url, timeout_s=timeout_s)
        self._claim_s = claim_s
        self._waiting: list[_Write] = []
        self._claims: dict[str, float] = {}  # by chord: written by a transaction whose outcome is not known
        self._entrance = threading.Lock()
        self._turn = threading.Lock()

    def open(self) -> None:
        """Connect and check the schema. Raises SchemaMismatch, with the command to run."""
        open_current(self._database)

    def close(self) -> None:
        self._database.close()

    # --- tasks ---

    def store(self, row: TaskRow) -> None:
        """Store the task's state, then return. A stored success stays."""
        self._settle(_Write(row=row))

    def tasks(self, ids: Collection[str]) -> list[TaskRow]:
        """Return the stored states of these tasks, in a single query."""
        with self._database.read() as connection:
            return celery_rows.tasks(connection, ids)

    def forget(self, id_: str) -> None:
        with self._database.write(Weight.NOTE) as connection:
            celery_rows.forget_task(connection, id_)

    # --- groups ---

    def save_group(self, id_: str, members: str) -> None:
        with self._database.write(Weight.RESULTS) as connection:
            celery_rows.put_group(connection, id_, members)

    def group(self, id_: str) -> tuple[str, float] | None:
        """Return a saved group's members and the time it was saved."""
        with self._database.read() as connection:
            return celery_rows.group(connection, id_)

    def forget_group(self, id_: str) -> None:
        with self._database.write(Weight.NOTE) as connection:
            celery_rows.forget_group(connection, id_)

    # --- chords ---

    def set_chord_size(self, id_: str, size: int) -> None:
        with self._database.write(Weight.RESULTS) as connection:
            celery_rows.set_chord_size(connection, id_, size)

    def add_to_chord(self, id_: str) -> None:
        with self._database.write(Weight.RESULTS) as connection:
            celery_rows.add_to_chord(connection, id_)

    def return_part(self, part: ChordPart) -> bool:
        """Count a part once; return whether the chord is complete and the caller must send its body.

        It is then nobody else's for `claim_s`; call `finish_chord` when it is sent.
        """
        return self._settle(_Write(part=part)).completes

    def chord_parts(self, id_: str) -> list[tuple[str, str, str]]:
        """Return (task, state, result) of a chord's header, in its order."""
        with self._database.read() as connection:
            return celery_rows.chord_parts(connection, id_)

    def finish_chord(self, id_: str) -> None:
        with self._database.write(Weight.RESULTS) as connection:
            celery_rows.finish_chord(connection, id_)

    # --- expiry ---

    def clean_up(self, *, kept_s: float, chords_kept_s: float) -> int:
        """Delete older finished tasks and groups, and older chords; return the number of rows."""
        return remove_celery_results(self._database, clock() - kept_s, clock() - chords_kept_s)

    # --- the common transaction ---

    def _settle(self, write: _Write) -> _Write:
        with self._entrance:
            self._waiting.append(write)
        with self._turn:
            while not write.settled:
                with self._entrance:
                    group, self._waiting = self._waiting[:GROUP], self._waiting[GROUP:]
                if not group:
                    raise StoreUnavailable("a thread was stopped while it wrote for others of its process; try again")
                self._write(group)
        if write.error is not None:
            raise write.error
        return write

    def _write(self, group: Sequence[_Write]) -> None:
        try:
            completed = self._commit(group)
        except Exception as error:  # noqa: BLE001 - the other callers of the group wait for any error
            if len(group) > 1 and not isinstance(error, StoreUnavailable):
                for write in group:  # an invalid write must not fail the other ones
                    self._write([write])
                return
            for write in group:
                write.error, write.settled = error, True
            return
        for write in reversed(group):  # of two copies of a part, one sends the body
            if write.part is not None and (write.part.chord, write.part.task) in completed:
                completed.remove((write.part.chord, write.part.task))
                write.completes = True
            write.settled = True

    def _commit(self, group: Sequence[_Write]) -> set[tuple[str, str]]:
        with self._database.write(Weight.RESULTS) as connection:
            celery_rows.put_tasks(connection, [write.row for write in group if write.row is not None])
            parts = [write.part for write in group if write.part is not None]
            claims = celery_rows.return_parts(connection, parts, self._claim_s, self._claims)
            # the connection may break at the commit, which is then applied or not: the next try knows its own claim
            self._claims |= {chord: until for (chord, _), until in claims.items()}
        for chord, _ in claims:
            del self._claims[chord]
        return set(claims)


_shared: dict[tuple[int, str], CeleryResults] = {}
_sharing = threading.Lock()


def shared(url: str) -> CeleryResults:
    """Return this process's `CeleryResults` for `url`, opened on the first call.

    A forked child gets its own, because it must not use its parent's connections and locks.
    """
    with _sharing:
        here = (os.getpid(), url)
        if here not in _shared:
            opened = CeleryResults(url)
            opened.open()
            _shared[here] = opened
        return _shared[here]


def close_shared(url: str) -> None:
    """Close this process's connections to `url`, if any; the next call of `shared` opens them again."""
    with _sharing:
        opened = _shared.pop((os.getpid(), url), None)
    if opened is not None:
        opened.close()


def _fork_safe() -> None:
    # a thread of the parent may have held the lock at the fork, and no thread of the child would release it
    global _sharing  # noqa: PLW0603 - a fork copies module state
    _sharing = threading.Lock()


os.register_at_fork(after_in_child=_fork_safe)
