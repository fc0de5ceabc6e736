"""Failures that are tried again, and when: inputs that are away for a moment, and errors that a task's policy names."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

#: The errors that a policy may name.
Retriable = Literal[
    "BlobsUnavailable",
    "DeviceHung",
    "DeviceLost",
    "InputUnavailable",
    "LoadingFailed",
    "ModelError",
    "OutOfMemory",
    "WrongOutput",
]

#: A wait is spread by this part, so that what failed together does not come back together.
_SPREAD = 0.25


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a failed result is tried again. Times are seconds.

    A momentary fault is always tried again, the kinds in `errors` too. The wait doubles from `first_wait_s` up to
    `longest_wait_s`. Results are final `within_s` after their first failure (0: at once), and after `max_attempts`
    attempts, counting the first (0: no bound).
    """

    errors: tuple[Retriable, ...] = ()
    max_attempts: int = 0
    within_s: float = 600.0
    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0

    def __post_init__(self) -> None:
        if self.max_attempts < 0:
            raise ValueError("`max_attempts` must be 0 (no bound) or more")
        if not 0 <= self.within_s < math.inf:
            raise ValueError("`within_s` must be 0 or more")
        if not 0 < self.first_wait_s <= self.longest_wait_s < math.inf:
            raise ValueError("`first_wait_s` must be over 0, and `longest_wait_s` at least as long")

    def covers(self, error: Mapping[str, Any]) -> bool:
        """Return whether a result with this error may be tried again."""
        return bool(error.get("momentary")) or error.get("kind") in self.errors

    def wait_s(self, failures: int, left_s: float, wished_s: float) -> float | None:
        """Return the wait after so many failures, or None if the result is final.

        `left_s` is the time until the result's end, and `wished_s` the wait that a host has asked for.
        """
        if 0 < self.max_attempts <= failures:
            return None
        usual_s: float = min(self.longest_wait_s, self.first_wait_s * 2 ** min(failures - 1, 60))
        spread = random.uniform(0, _SPREAD)  # noqa: S311 - no secret
        # the last tries come closer together, so that the end is not reached within a long wait
        wait_s: float = max(min(usual_s, left_s / 2) * (1 - spread), wished_s * (1 + spread))
        return wait_s if wait_s < left_s and left_s > self.first_wait_s else None


class RetrySettings(RetryPolicy, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The policy of all tasks, and for some `tasks` the settings that differ."""

    tasks: dict[str, dict[str, Any]] = {}

    def __post_init__(self) -> None:
        super().__post_init__()
        for task in self.tasks:
            try:
                self.of(task)
            except msgspec.ValidationError as error:
                raise ValueError(f"`tasks.{task}`: {error}") from error

    def of(self, task: str) -> RetryPolicy:
        """Return a task's policy."""
        own = self.tasks.get(task)
        if own is None:
            return self
        general = {name: getattr(self, name) for name in RetryPolicy.__struct_fields__}
        return msgspec.convert(general | own, RetryPolicy)
