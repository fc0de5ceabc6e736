"""Find the unseen results of a growing job by counting, without reading seen results again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from results_store.records import Result

#: Items per block. Results are counted by block; a block is read when it has more results than were seen.
BLOCK = 1024


class UnseenResults:
    """Remember the seen results: a bit for each item and task. Pure."""

    def __init__(self) -> None:
        self._seen: defaultdict[tuple[int, str], int] = defaultdict(int)  # by (block, task): a bit for each item
        self._counts: defaultdict[int, int] = defaultdict(int)

    def blocks(self, counts: Mapping[int, int]) -> list[int]:
        """Return the blocks with unseen results, given the number of results in each block."""
        return [block for block, count in sorted(counts.items()) if count > self._counts[block]]

    def take(self, block: int, rows: Iterable[Result]) -> list[Result]:
        """Return the unseen results among a block's results, and mark them as seen."""
        fresh = []
        for row in rows:
            bit = 1 << (row.seq - block * BLOCK)
            if not self._seen[block, row.task] & bit:
                self._seen[block, row.task] |= bit
                self._counts[block] += 1
                fresh.append(row)
        return fresh


def items_of(block: int) -> range:
    """Return the places of a block's items in the job."""
    return range(block * BLOCK, (block + 1) * BLOCK)
