"""The limits of decoding."""

from __future__ import annotations

from dataclasses import dataclass

#: The least address space of a process: the readers with their libraries take half of it.
LEAST_MEMORY_BYTES = 512 * 2**20

#: The least number of processes: for slow files, for others of the same tenant, and for other tenants or priorities.
LEAST_PROCESSES = 3


@dataclass(frozen=True, slots=True)
class DecodingLimits:
    """The limits of decoding a file, and the number of processes; 0 is one more than cores, at least 3.

    `decode_s` are seconds of a processor, so that they do not depend on the machine's load. `decode_memory_bytes` is
    the address space of a process.
    """

    decode_s: float = 30.0
    decode_memory_bytes: int = 2 * 2**30
    decode_processes: int = 0

    @property
    def wall_s(self) -> float:
        """The most seconds by the clock, for a process that gets little of a processor or none."""
        return 20 * self.decode_s
