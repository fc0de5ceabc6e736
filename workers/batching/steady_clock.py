"""The clock of the waits and deadlines inside a worker, which no step of the machine's clock moves."""

from __future__ import annotations

import time

_AHEAD_S = time.time() - time.monotonic()


def steady_time() -> float:
    """Return the Unix time as if the machine's clock had not been set since this process began."""
    return time.monotonic() + _AHEAD_S


def machine_time(steady: float) -> float:
    """Return a time of the steady clock by the machine's clock, to be shown beside times of other machines."""
    return time.time() - (steady_time() - steady)
