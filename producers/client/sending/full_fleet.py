"""How a submission of many waits while the fleet is full: as long as it is told, else longer each time. Pure."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from producers.wire.errors import InvalidInput, Overloaded

FIRST_S, LONGEST_S = 0.25, 15.0


@dataclass(slots=True)
class Patience:
    """Counts the waiting of one chunk. `limit_s` is for all its waits together; 0 takes the first refusal as final."""

    limit_s: float = math.inf
    clock: Callable[[], float] = time.monotonic
    _began_at: float | None = None
    _next_s: float = field(default_factory=lambda: FIRST_S)

    def wait_s(self, refusal: Overloaded) -> float:
        """Return how long to wait before the next attempt. Raises the refusal once the patience is at its end."""
        now = self.clock()
        if self._began_at is None:
            self._began_at = now
        advised_s = refusal.retry_after_s or 0.0
        # a fleet that is full refuses many at once: they must not all come back at once
        wait_s = max(advised_s, self._next_s) * random.uniform(1.0, 1.25)  # noqa: S311 - not a secret
        self._next_s = min(2 * self._next_s, LONGEST_S)
        if now + wait_s - self._began_at > self.limit_s:
            raise refusal
        return wait_s


def checked(patience_s: object) -> float:
    """Return a `patience_s` as a number. Raises InvalidInput."""
    if patience_s is None:
        return math.inf
    if isinstance(patience_s, bool) or not isinstance(patience_s, int | float) or not patience_s >= 0:
        raise InvalidInput("patience_s", f"must be 0 or more seconds, not {patience_s!r}", "leave it out to wait on")
    return float(patience_s)
