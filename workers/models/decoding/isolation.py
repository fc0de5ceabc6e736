"""The call that decodes a file: in a decoding process if the calling thread has a place there, else in this process.

A worker gives the threads that prepare items such a place. Training, tests and offline use have none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from results_store.loops.loop import watch_here, watched_here

_Made = TypeVar("_Made")


class DecodingInterrupted(BaseException):
    """The worker stops before a file is decoded. It is no fault of the item, so no `except Exception` may stop it."""


class LargeFile(BaseException):
    """A file needs much memory, and may not take it beside other large files. No `except Exception` may stop it."""


class ThreadTurn(Protocol):
    """The turn of a thread to compute (`workers.envelope.preparation_turns`)."""

    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...
    def decoding(self) -> AbstractContextManager[None]: ...
    def another(self) -> ThreadTurn: ...


class Decoders(Protocol):
    """The decoding processes (`workers.models.decoding.decoder_pool`)."""

    @property
    def size(self) -> int: ...
    @property
    def crowded(self) -> bool: ...
    def decode(
        self, place: DecodingPlace, function: Callable[..., _Made], data: bytes, args: tuple[Any, ...]
    ) -> _Made: ...


@dataclass(frozen=True, slots=True)
class DecodingPlace:
    """The right of a thread to decode in processes: for a priority and a tenant, and with the thread's turn."""

    pool: Decoders
    owner: tuple[int, str]
    turn: ThreadTurn


#: Pixels from which a picture is large: decoding it may take hundreds of megabytes.
LARGE_PIXELS = 32_000_000

_place: ContextVar[DecodingPlace | None] = ContextVar("decoding_place", default=None)
_large_files: ContextVar[bool] = ContextVar("large_files", default=True)


@contextmanager
def decoding_at(place: DecodingPlace | None) -> Iterator[None]:
    """Let this thread decode at a place."""
    before = _place.set(place)
    try:
        yield
    finally:
        _place.reset(before)


@contextmanager
def large_files(allowed: bool) -> Iterator[None]:
    """Let this thread decode large files, or have it raise LargeFile for them."""
    before = _large_files.set(allowed)
    try:
        yield
    finally:
        _large_files.reset(before)


def check_memory(pixels: int) -> None:
    """Raise LargeFile for a picture of so many pixels if this thread may not decode large files."""
    if pixels >= LARGE_PIXELS and not _large_files.get():
        raise LargeFile


def is_apart() -> bool:
    """Return whether this thread decodes in another process."""
    return _place.get() is not None


def decode(function: Callable[..., _Made], data: bytes, *args: Any) -> _Made:
    """Return `function(data, *args)`, a file's content.

    The function must be importable, its arguments picklable, and its result arrays, plain values, or lists and tuples
    of these; tuples become lists. Raises the function's InvalidInput, and InputTooLarge over the limits of time and
    memory.
    """
    place = _place.get()
    return function(data, *args) if place is None else place.pool.decode(place, function, data, args)


def each(function: Callable[..., _Made], rows: Sequence[tuple[Any, ...]]) -> list[_Made]:
    """Return `function(*row)` for each row; several rows at once if this thread decodes in other processes.

    If files of other envelopes keep the processes busy, more threads would only compete for the interpreter.
    """
    place, progress = _place.get(), watched_here()
    if place is None or len(rows) < 2 or place.pool.crowded:
        return [function(*row) for row in rows]

    def own(row: tuple[Any, ...]) -> _Made:
        watch_here(progress)
        turn = place.turn.another()
        with turn, decoding_at(replace(place, turn=turn)):
            return function(*row)

    with place.turn.decoding(), ThreadPoolExecutor(min(len(rows), place.pool.size), "argosy preparing") as threads:
        try:
            found = threads.map(own, rows)
        except RuntimeError as error:  # the system gives no thread: no fault of an item
            raise DecodingInterrupted from error
        return [*found]
