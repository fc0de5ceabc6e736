"""Which results of a growing job were not seen yet: found by counting, without reading again what was."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from results_store.records import Result

#: Items whose results are counted together, and read together once there are more of them than were seen.
BLOCK = 1024


class Unseen:
    """Remembers which results were seen: a bit for each item and task. Pure."""

    def __init__(self) -> None:
        self._seen: defaultdict[tuple[int, str], int] = defaultdict(int)  # (block, task): a bit an item
        self._counts: defaultdict[int, int] = defaultdict(int)

    def blocks(self, counts: Mapping[int, int]) -> list[int]:
        """Return the blocks that hold more results now than were seen of them, given how many each holds."""
        return [block for block, count in sorted(counts.items()) if count > self._counts[block]]

    def take(self, block: int, rows: Iterable[Result]) -> list[Result]:
        """Return those of a block's results that were not seen before; now they are."""
        fresh = []
        for row in rows:
            bit = 1 << (row.seq - block * BLOCK)
            if not self._seen[block, row.task] & bit:
                self._seen[block, row.task] |= bit
                self._counts[block] += 1
                fresh.append(row)
        return fresh


def items_of(block: int) -> range:
    """The places of a block's items in the job."""
    return range(block * BLOCK, (block + 1) * BLOCK)
