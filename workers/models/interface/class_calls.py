"""Calls of a user's own class in the worker's parent process. A call that hangs costs its item, not the thread.

Python cannot end a thread. So a call runs in a companion of the calling thread, which is given up after a limit: the
caller goes on, and the companion ends whenever its call does.
"""

from __future__ import annotations

import ctypes
import queue
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

from results_store.loops.loop import doing
from workers.models.interface.model import Model, tried
from workers.models.interface.returned import WrongReturn, is_own, wrong

#: While this many calls of a class hang, it is not called again.
MOST_HUNG = 8

#: After this many seconds a call counts as slow, and `meanwhile` is entered.
SLOW_AFTER_S = 1.0

#: The most seconds in which the thread that gives up a call goes on.
_MARGIN_S = 60.0

#: A wait is counted in parts of this many seconds: of the time in which the whole process is stopped, one part counts.
_PART_S = 0.25

#: A call is begun this many times if its thread ends.
_TRIES = 3

_Task = tuple[Callable[..., Any], tuple[Any, ...]]


class ClassHung(WrongReturn):
    """A call of a class's method did not end within its limit."""


class _ThreadEnded(Exception):
    """The thread of a call ended by an exception from outside, such as of a machine without memory."""


class _Companion:
    """A thread that makes the calls of another thread."""

    def __init__(self) -> None:
        """Start the thread. Raises RuntimeError if the system gives none."""
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Any] = queue.SimpleQueue()
        arguments = (self._tasks, self._results)  # without a reference to this object, whose end ends the thread
        self._thread = threading.Thread(target=_work, args=arguments, name="argosy class call", daemon=True)
        self._thread.start()

    def begin(self, call: Callable[..., Any], *arguments: Any) -> None:
        self._tasks.put((call, arguments))

    def result(self, timeout_s: float) -> Any:
        """Return the result or the exception of the call. Raises queue.Empty if it goes on, and _ThreadEnded."""
        for _ in range(max(1, round(timeout_s / _PART_S))):
            was_alive = self._thread.is_alive()  # before the look: a thread that has ended puts no result any more
            with suppress(queue.Empty):
                return self._results.get(timeout=min(_PART_S, timeout_s) if was_alive else 0)
            if not was_alive:
                raise _ThreadEnded
        raise queue.Empty

    def give_up(self) -> threading.Thread:
        """End the thread, which is returned, at its next line of Python; a wait in C, such as a sleep, ends first."""
        if ident := self._thread.ident:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(SystemExit))
        return self._thread

    def __del__(self) -> None:
        self._tasks.put(None)


def _work(tasks: queue.SimpleQueue[_Task | None], results: queue.SimpleQueue[Any]) -> None:
    while (task := tasks.get()) is not None:
        call, arguments = task
        results.put(tried(call, *arguments))
        del task, call, arguments


@dataclass(slots=True)
class ClassCalls:
    """Calls methods of models. Thread-safe. Argosy's own classes are called in the calling thread."""

    limit_s: float
    _hung: dict[type, list[threading.Thread]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _here: threading.local = field(default_factory=threading.local)

    def call(
        self,
        model: Model,
        method: str,
        call: Callable[..., Any],
        *arguments: Any,
        meanwhile: Callable[[], AbstractContextManager[object]] = nullcontext,
        here: bool = False,
    ) -> Any:
        """Return the result of a call of `method`, or its exception, which is ClassHung after the limit.

        A slow call is awaited in the context `meanwhile`. A call `here` has no limit.
        """
        if here or not is_own(model):
            return tried(call, *arguments)
        hung = self._hung.get(type(model), [])
        if len(hung) >= MOST_HUNG and sum(thread.is_alive() for thread in hung) >= MOST_HUNG:
            problem = f"nothing in {MOST_HUNG} earlier calls, which still run; mend it and restart the worker"
            return ClassHung(str(wrong(model, method, problem)))
        for _ in range(_TRIES):
            companion = getattr(self._here, "companion", None) or tried(_Companion)
            if not isinstance(companion, _Companion):  # the system gives no thread now
                break
            self._here.companion = companion
            companion.begin(call, *arguments)
            try:
                with suppress(queue.Empty):
                    return companion.result(min(SLOW_AFTER_S, self.limit_s))
                with doing(f"{type(model).__name__}.{method}", self.limit_s + _MARGIN_S), meanwhile():
                    return companion.result(max(0.001, self.limit_s - SLOW_AFTER_S))
            except _ThreadEnded:
                del self._here.companion
            except queue.Empty:
                del self._here.companion
                self._keep_hung(type(model), companion.give_up())
                return ClassHung(str(wrong(model, method, f"nothing within {self.limit_s:g} s; it hangs")))
        return tried(call, *arguments)

    def _keep_hung(self, class_: type, thread: threading.Thread) -> None:
        """Count a thread that hangs, with those of other calls that hang meanwhile."""
        with self._lock:
            alive = [each for each in self._hung.get(class_, ()) if each.is_alive()]
            self._hung[class_] = [*alive, thread]

    def for_many(
        self,
        model: Model,
        method: str,
        *columns: Any,
        fixed: tuple[Any, ...] = (),
        meanwhile: Callable[[], AbstractContextManager[object]] = nullcontext,
        here: bool = False,
    ) -> list[Any]:
        """Return the entries that a method returns for several items, an exception for each entry that it lacks.

        The method is called with `fixed` and the `columns`, which have an entry for each item. After a call that hangs
        each item is tried alone. A list of another length fails all items: no result may move to a neighbour.
        """
        count = len(columns[0])
        made = self.call(model, method, getattr(model, method), *fixed, *columns, meanwhile=meanwhile, here=here)
        if isinstance(made, ClassHung) and count > 1:
            alone = ([column[number : number + 1] for column in columns] for number in range(count))
            return [self.for_many(model, method, *own, fixed=fixed, meanwhile=meanwhile)[0] for own in alone]
        if isinstance(made, Exception):
            return [made] * count
        if not isinstance(made, list | tuple) or len(made) != count:
            found = len(made) if isinstance(made, list | tuple) else f"{type(made).__name__}, not a list,"
            return [ValueError(f"{type(model).__name__}.{method} returned {found} for {count}")] * count
        return [*made]
