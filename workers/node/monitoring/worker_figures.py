"""What only a worker's own memory knows, for metrics: it travels in the node's announcement, which is sent anyway.

Counters begin with the process; `started_at` tells a restart.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from results_store.writer import Writer
from workers.batching.batcher import Batcher
from workers.envelope.gate import EnvelopeInterrupted
from workers.node.held_envelopes import HeldEnvelopes
from workers.node.watchdog import Watchdog


class WorkerFigures:
    """The counters of a node's envelopes, and a look at its parts. Thread-safe."""

    def __init__(self, *, slots: int) -> None:
        self._slots = slots
        self._started_at = time.time()
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count how an envelope's run inside ends, unless it returns: see `ended`."""
        try:
            yield
        except EnvelopeInterrupted:
            self._count("envelopes_interrupted")
            raise
        except Exception:
            self._count("envelopes_failed")
            raise

    def ended(self, summary: Mapping[str, Any]) -> None:
        """Count the summary of an envelope's run."""
        self._count("envelopes_skipped" if "skipped" in summary else "envelopes_done")
        for name in ("postponed", "cached"):
            if number := summary.get(name):
                self._count(f"{name}_results", number)

    def _count(self, name: str, number: int = 1) -> None:
        with self._lock:
            self._counts[name] += number

    def now(
        self, held: HeldEnvelopes, batcher: Batcher, writers: Sequence[Writer], watchdog: Watchdog
    ) -> dict[str, float]:
        """Return the figures by name. Times are seconds."""
        with self._lock:
            counts = dict(self._counts)
        away = any(writer.unavailable_since is not None for writer in writers)
        return {
            **counts,
            "started_at": self._started_at,
            "slots": self._slots,
            "held_envelopes": len(held.now()),
            "waiting_items": sum(amount.rows for _, _, amount in batcher.amounts()),
            "writer_requests": sum(writer.waiting for writer in writers),
            "transactions": sum(writer.transactions for writer in writers),
            "transaction_s": round(sum(writer.transaction_s for writer in writers), 3),
            "store_away": float(away),
            "thread_lag_s": round(watchdog.lag_s, 3),
            "scheduling_lag_s": round(watchdog.late_s, 3),
            "cpu_s": round(time.process_time(), 2),
            **_resident_bytes(),
        }


def _resident_bytes() -> dict[str, float]:
    """Return this process's memory, where the system tells it."""
    with suppress(OSError, ValueError, IndexError):
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
        return {"resident_bytes": float(int(pages) * os.sysconf("SC_PAGE_SIZE"))}
    return {}
