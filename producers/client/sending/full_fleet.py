"""The waits of a submission while the fleet is full: as long as advised, and longer each time. Pure."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from producers.wire.errors import InvalidInput, Overloaded
from producers.wire.forms import as_float

FIRST_S, LONGEST_S = 0.25, 15.0


@dataclass(slots=True)
class OverloadWait:
    """The waits of a chunk. `limit_s` limits their sum; with 0 the first refusal is final."""

    limit_s: float = math.inf
    clock: Callable[[], float] = time.monotonic
    _began_at: float | None = None
    _next_s: float = field(default_factory=lambda: FIRST_S)

    def wait_s(self, refusal: Overloaded) -> float:
        """Return the wait before the next attempt. Raises the refusal if the wait would exceed `limit_s`."""
        now = self.clock()
        if self._began_at is None:
            self._began_at = now
        advised_s = refusal.retry_after_s or 0.0
        # spread the attempts: a full fleet refuses many at once
        wait_s = max(advised_s, self._next_s) * random.uniform(1.0, 1.25)  # noqa: S311 - not a secret
        self._next_s = min(2 * self._next_s, LONGEST_S)
        if now + wait_s - self._began_at > self.limit_s:
            raise refusal
        return wait_s


def checked(patience_s: object) -> float:
    """Return `patience_s` as a number. Raises InvalidInput."""
    if patience_s is None:
        return math.inf
    given = as_float(patience_s)
    if given is None or not given >= 0:
        raise InvalidInput(
            "patience_s", f"must be 0 or more seconds, not {patience_s!r:.80}", "leave it out to wait without limit"
        )
    return given
