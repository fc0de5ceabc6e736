"""A loop that runs for good: a named thread that survives every exception, and notes its progress.

The threads on which others wait are loops. In a worker, a watchdog (`workers.node.watchdog`) reads their progress.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress

logger = logging.getLogger(__name__)

#: The longest wait of an idle loop: each loop takes a turn at least this often.
TICK_S = 2.0

#: A loop pauses after a failed turn, so that a lasting fault does not take a core.
PAUSE_S = 0.1


class ThreadProgress:
    """The progress of a thread: its last turn, and the work or the wait that it began then.

    `state` is the time of that turn (monotonic), the name of the work or the wait, and its limit in seconds, if it has
    its own. It is replaced as a whole, so any thread may read it.
    """

    __slots__ = ("name", "state")

    def __init__(self, name: str) -> None:
        self.name = name
        self.state: tuple[float, str, float | None] = (time.monotonic(), "", None)

    def note(self, doing: str = "", limit_s: float | None = None) -> None:
        """Note a turn. `doing` names work or a wait that may take longer than usual, at most `limit_s`."""
        self.state = (time.monotonic(), doing, limit_s)


_here = threading.local()


def watch_here(progress: ThreadProgress | None) -> None:
    """Make this the progress of the calling thread, which `note` and `doing` change."""
    _here.progress = progress


def watched_here() -> ThreadProgress | None:
    """Return the progress of the calling thread, if it has one."""
    return getattr(_here, "progress", None)


def note(doing: str = "", limit_s: float | None = None) -> None:
    """Note a turn of the calling thread, if it has a progress."""
    if (progress := watched_here()) is not None:
        progress.note(doing, limit_s)


class doing:  # noqa: N801 - used like a function, and a class costs half of a generator
    """Note work or a wait of the calling thread that takes at most `limit_s`, for a ``with`` statement."""

    __slots__ = ("_before", "_limit_s", "_name", "_progress")

    def __init__(self, name: str, limit_s: float) -> None:
        self._name = name
        self._limit_s = limit_s

    def __enter__(self) -> None:
        self._progress = watched_here()
        if self._progress is not None:
            self._before = self._progress.state
            self._progress.note(self._name, self._limit_s)

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.note(*self._before[1:])


class Loop:
    """A thread that calls `turn` until it returns False. A turn waits for work for at most TICK_S.

    An exception of a turn, of whatever kind, is logged and given to `failed`. The next turn follows, unless `failed`
    returns False.
    """

    def __init__(
        self,
        name: str,
        turn: Callable[[], object],
        *,
        failed: Callable[[BaseException], object] = lambda _: None,
    ) -> None:
        self.progress = ThreadProgress(name)
        self._name = name
        self._turn = turn
        self._failed = failed
        self._thread: threading.Thread | None = None
        self._over = False

    def start(self) -> None:
        """Start the thread, also again if it died. Raises RuntimeError if the system gives no thread."""
        if self.alive:
            return
        thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self.progress.note()
        self._over = False
        thread.start()
        self._thread = thread

    @property
    def started(self) -> bool:
        return self._thread is not None

    @property
    def alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    @property
    def over(self) -> bool:
        """Whether a turn has ended the loop."""
        return self._over

    @property
    def died(self) -> bool:
        """Whether the thread ended although no turn has ended the loop."""
        return self.started and not self._over and not self.alive

    def join(self, timeout_s: float | None = None) -> None:
        """Wait until the thread has ended."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        watch_here(self.progress)
        while not self._over:
            with suppress(BaseException):  # raised by the handler of another error
                self._take_turns()

    def _take_turns(self) -> None:
        try:
            while True:
                self.progress.note()
                if self._turn() is False:
                    self._over = True
                    return
        except BaseException as error:  # also SystemExit: others wait for this thread
            logger.exception("the thread %s failed", self._name)
            self._over = self._failed(error) is False
        time.sleep(PAUSE_S)
