"""The periodic duties of a node, each in its own thread, so that a slow duty never delays a lease."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping

logger = logging.getLogger(__name__)


class PeriodicDuties:
    """Runs duties periodically until stopped. A duty that fails is logged and tried again next time."""

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, duties: Mapping[str, tuple[float, Callable[[], object]]]) -> None:
        """Start the duties: name → (seconds between runs, function)."""
        for name, (every_s, duty) in duties.items():
            thread = threading.Thread(target=self._repeat, args=(name, every_s, duty), name=name)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """Stop after the current runs."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _repeat(self, name: str, every_s: float, duty: Callable[[], object]) -> None:
        while not self._stopping.wait(every_s):
            try:
                duty()
            except Exception as error:  # noqa: BLE001 - the broker or the store may be back next time
                logger.warning("%s: %s: %s", name, type(error).__name__, error)
