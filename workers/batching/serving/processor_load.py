"""The share of the processors' time that other programs take: it decides whether a measurement can be trusted."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

#: A measurement with more than this share taken by others is provisional.
BUSY = 0.15

#: With at most this share taken by others, a provisional measurement is repeated. The gap to `BUSY` keeps a steady load
#: in between from a measurement at every start.
QUIET = 0.05


@dataclass(frozen=True, slots=True)
class ProcessorTimes:
    """Seconds of processor time so far, of all processors that this process may use: in all, busy, and its own."""

    passed_s: float = 0.0
    busy_s: float = 0.0
    own_s: float = 0.0

    @classmethod
    def now(cls) -> ProcessorTimes:
        """Return the times; all are zero if the system does not tell them (not Linux)."""
        try:
            lines = Path("/proc/stat").read_text("ascii").splitlines()
        except OSError:
            return cls()
        names = {f"cpu{core}" for core in os.sched_getaffinity(0)}
        ticks_per_s = os.sysconf("SC_CLK_TCK")
        # user, nice, system, idle, iowait, irq, softirq, steal; guests are in user and nice already
        cores = [[int(ticks) for ticks in line.split()[1:9]] for line in lines if line.split()[0] in names]
        passed = sum(map(sum, cores))
        idle = sum(ticks[3] + ticks[4] for ticks in cores)
        own = os.times()
        return cls(passed / ticks_per_s, (passed - idle) / ticks_per_s, sum(own[:4]))


def others_share(since: ProcessorTimes) -> float:
    """Return the share of processor time that other programs took since then, 0 to 1; 0 if it is unknown."""
    now = ProcessorTimes.now()
    passed_s = now.passed_s - since.passed_s
    others_s = (now.busy_s - since.busy_s) - (now.own_s - since.own_s)
    return min(max(0.0, others_s / passed_s), 1.0) if passed_s > 0 else 0.0
