"""The refusals of Redis (full, read-only, MISCONF, NOPERM …): logged once, and a longer wait after each."""

from __future__ import annotations

import logging
from time import monotonic

from producers.wire.publisher import remedy

logger = logging.getLogger(__name__)

#: Seconds until Redis is asked again: doubled after each refusal, up to the longest.
FIRST_WAIT_S = 0.25
LONGEST_WAIT_S = 4.0


class Refusals:
    """The refusals of one kind of command. The log names the `work` that needs the command."""

    def __init__(self, work: str) -> None:
        self._work = work
        self._advice = ""
        self._wait_s = 0.0
        self._ask_at = 0.0

    @property
    def waiting(self) -> bool:
        """Whether it is too early to ask again."""
        return monotonic() < self._ask_at

    def refused(self, error: Exception) -> None:
        """Note a refusal. A refusal for a new reason is logged."""
        if (advice := remedy(error)) != self._advice:
            self._advice = advice
            logger.warning("%s: Redis refuses: %s; %s", self._work, str(error).rstrip("."), advice)
        self._wait_s = min(LONGEST_WAIT_S, self._wait_s * 2 or FIRST_WAIT_S)
        self._ask_at = monotonic() + self._wait_s

    def accepted(self) -> None:
        """Note an accepted command."""
        if self._advice:
            logger.warning("%s: Redis accepts again", self._work)
            self._advice, self._wait_s, self._ask_at = "", 0.0, 0.0
