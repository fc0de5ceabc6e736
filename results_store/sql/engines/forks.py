"""Calls at a fork, for objects with connections, threads or locks, which belong to the process that made them.

A forked child (multiprocessing's "fork", gunicorn's --preload) inherits sockets and open files that its parent still
uses, locks that no thread of the child will release, and none of its parent's threads.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import Literal, TypeAlias

When: TypeAlias = Literal["before", "parent", "child"]
Call: TypeAlias = Callable[[], None]

_calls: dict[When, set[weakref.WeakMethod[Call]]] = {"before": set(), "parent": set(), "child": set()}


def at_fork(when: When, method: Call) -> None:
    """Call a method of an object at each fork, as long as the object exists.

    `before` and after it in the `parent`: in the thread that forks. In the `child`: to start anew, with new locks, and
    without closing anything inherited.
    """
    calls = _calls[when]
    calls.add(weakref.WeakMethod(method, calls.discard))


def _run(when: When) -> None:
    for ref in list(_calls[when]):
        if (method := ref()) is not None:
            method()


@atexit.register
def _forget() -> None:
    """Drop all references while everything is alive. At the interpreter's end, their callbacks would print errors."""
    for calls in _calls.values():
        calls.clear()


os.register_at_fork(
    before=partial(_run, "before"), after_in_parent=partial(_run, "parent"), after_in_child=partial(_run, "child")
)


class ForkGate:
    """A context that a fork waits for. No thread enters it while the gate is closed."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._inside = 0
        self.closed = False

    def __enter__(self) -> None:
        with self._changed:
            while self.closed:
                self._changed.wait()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._inside -= 1
            if self.closed:
                self._changed.notify_all()

    def close(self, timeout_s: float) -> bool:
        """Let no thread enter, and wait until all have left; return whether they have."""
        with self._changed:
            while self.closed:  # another thread forks
                self._changed.wait()
            self.closed = True
            return self._changed.wait_for(lambda: not self._inside, timeout_s)

    def open(self) -> None:
        with self._changed:
            self.closed = False
            self._changed.notify_all()
