"""A site's clock: seconds that only go forward, also if the wall clock is set back. The cascade counts by it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Return the name of the machine's current start; empty where the kernel has none."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def boot_s() -> float:
    """Return the seconds since the machine's start, with those in which it slept."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class SiteClock:
    """Continues the clock of an earlier process from its note.

    While the machine runs, the kernel's clock bridges the time in between. The time for which it was off is not
    counted: only the wall clock could tell it, and that may be wrong until the link is back.
    """

    def __init__(
        self, noted: Mapping[str, Any], *, boot: str | None = None, seconds: Callable[[], float] = boot_s
    ) -> None:
        self._boot = boot_id() if boot is None else boot
        self._seconds = seconds
        now = seconds()
        same = bool(self._boot) and noted.get("boot") == self._boot
        passed = max(0.0, now - float(noted["boot_s"])) if same else 0.0
        self._offset = float(noted.get("at_s", 0.0)) + passed - now

    def now_s(self) -> float:
        """Return the site's time."""
        return self._offset + self._seconds()

    def note(self) -> dict[str, Any]:
        """Return the state from which the next process goes on."""
        return {"boot": self._boot, "boot_s": self._seconds(), "at_s": self.now_s()}
