"""The CPU time of a fleet's processes and of this process, user and system together."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Self

import psutil

#: Fields of psutil's times without work of this machine's programs, and those that others include.
_NOT_BUSY = ("idle", "iowait", "steal", "guest", "guest_nice")


@dataclass(frozen=True, slots=True)
class CpuSeconds:
    """CPU seconds since the start of the processes: of each process of the workers, the broker, and this process.

    `machine` has all programs of the machine.
    """

    workers: dict[int, float]
    broker: float
    producer: float
    machine: float

    @classmethod
    def now(cls, fleet: Any) -> Self:
        parents = [psutil.Process(service.process.pid) for service in fleet.workers]
        processes = [process for parent in parents for process in (parent, *parent.children(recursive=True))]
        return cls(
            {process.pid: seconds(process) for process in processes},
            seconds(psutil.Process(fleet.broker_process.pid)),
            time.process_time(),
            machine(),
        )

    def since(self, before: CpuSeconds) -> CpuSeconds:
        """Return the difference. A process that has started meanwhile counts from its start."""
        return CpuSeconds(
            {pid: spent - before.workers.get(pid, 0.0) for pid, spent in self.workers.items()},
            self.broker - before.broker,
            self.producer - before.producer,
            self.machine - before.machine,
        )

    @property
    def host(self) -> float:
        return sum(self.workers.values()) + self.broker + self.producer

    def us_per(self, items: int) -> dict[str, float]:
        """Return figures in microseconds for each item."""
        seconds = {
            "host_cpu": self.host,
            "node_cpu": sum(self.workers.values()),
            "broker_cpu": self.broker,
            "producer_cpu": self.producer,
            "largest_process": max(self.workers.values()),
        }
        return {name: 1e6 * spent / items for name, spent in seconds.items()}


def machine() -> float:
    """Return the CPU seconds of all programs of the machine."""
    return float(sum(spent for name, spent in psutil.cpu_times()._asdict().items() if name not in _NOT_BUSY))


def own() -> float:
    """Return the CPU seconds of this process and of all that it started, directly or not."""
    this = psutil.Process()
    return sum(map(seconds, (this, *this.children(recursive=True))))


def seconds(process: psutil.Process) -> float:
    """Return the CPU time of a process, and of its children that have ended, user and system together."""
    times = process.cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)
