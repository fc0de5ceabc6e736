"""Blocks: the texts of an envelope that wait as a single entry, and run in micro-batches of their own.

The rows of a block wait by size, the largest first, and each batch takes the first of them. So a block is cut into
parts, each with its own outcome. A part that fails gives no verdict on its texts: it is taken apart, and the envelope
runs them again as items, among which the one at fault is found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any

import numpy as np

from workers.batching.microbatch import BatchFigures, MicroBatch
from workers.batching.planning.cost_model import BatchShape
from workers.batching.planning.waiting_pool import Waiting
from workers.batching.planning.work_seconds import Amount
from workers.batching.work import Computed, Entry
from workers.models.interface import returned
from workers.models.interface.model import Array, Arrays, Model, Prepared
from workers.models.interface.text_block import TextBlock

_NO_ROW = Prepared({}, 0, b"")


class BlockEntry(Entry):
    """Some `rows` of a block, int64, largest first. `seqs` are the numbers of the block's texts in the job."""

    __slots__ = ("block", "rows", "seqs")

    def __init__(
        self, block: TextBlock, rows: Array, seqs: Sequence[int], tasks: tuple[str, ...], waiting: Waiting, *, job: str
    ) -> None:
        super().__init__(_NO_ROW, tasks, waiting, job=job, seq=seqs[0])
        self.block = block
        self.rows = rows
        self.seqs = seqs

    @classmethod
    def of(
        cls, block: TextBlock, seqs: Sequence[int], tasks: tuple[str, ...], waiting: Waiting, *, job: str
    ) -> BlockEntry:
        """Return the entry of a whole block. `waiting` lacks its sizes."""
        rows = np.argsort(-block.sizes, kind="stable")
        return cls(block, rows, seqs, tasks, _sized(waiting, block.sizes[rows], len(tasks)), job=job)

    def cut(self, rows: int) -> BlockEntry:
        """Remove the first rows, and return them as an entry of the same group."""
        sizes, heads = self.waiting.sizes, self.waiting.row_heads
        assert sizes is not None, "it is a block"
        waiting = _sized(self.waiting, sizes[:rows], heads)
        first = BlockEntry(self.block, self.rows[:rows], self.seqs, self.tasks, waiting, job=self.job)
        self.rows, self.waiting = self.rows[rows:], _sized(self.waiting, sizes[rows:], heads)
        if self.group:
            self.group.join(first)
        return first

    def texts(self) -> tuple[Array, Array]:
        """Return the places of the texts that have these rows, ascending, and the place in `rows` of each."""
        place = np.full(len(self.block.sizes) + 1, -1)  # the last is that of texts without a row
        place[self.rows] = np.arange(len(self.rows))
        own = place[self.block.row_of]
        texts = np.flatnonzero(own >= 0)
        return texts, own[texts]


def _sized(waiting: Waiting, sizes: Array, heads: int) -> Waiting:
    return replace(waiting, sizes=sizes, cost=int(sizes.sum()), heads=heads * len(sizes))


@dataclass(slots=True)
class BlockBatch(MicroBatch):
    """A micro-batch of some rows of one block: its only entry."""

    def __post_init__(self) -> None:
        rows = np.arange(len(self._part.rows), dtype=np.int64)
        self.wanted = dict.fromkeys(self._part.tasks, rows)

    @property
    def _part(self) -> BlockEntry:
        (part,) = self.entries
        assert isinstance(part, BlockEntry), "a batch of a block has no other entries"
        return part

    @property
    def row_count(self) -> int:
        return len(self._part.rows)

    @property
    def padded_cost(self) -> int:
        return self.row_count * self._part.waiting.widest

    @property
    def shape(self) -> BatchShape:
        return BatchShape(self.padded_cost, self.row_count, self._part.waiting.heads)

    @property
    def amount(self) -> Amount:
        return Amount(self._part.waiting.cost, self.row_count, self._part.waiting.heads)

    def collated(self, model: Model) -> Arrays:
        return returned.batch(model, model.collate_block(self._part.block, self._part.rows))

    def deliver(self, outputs: Arrays, batched_at: float, computed_at: float) -> None:
        """Give the part all rows of `outputs`."""
        self._part.finish(Computed(outputs, self.id, batched_at, computed_at))

    def tell(self, task: str, row: int, at: int, text: str) -> None:
        """Texts of blocks have no listeners."""

    def _figures(self) -> BatchFigures:
        part = self._part
        texts, rows = part.texts()
        wait_s = self.formed_at - part.waiting.arrived_at
        columns: tuple[Any, ...] = (
            repeat(0),
            map(part.seqs.__getitem__, texts.tolist()),
            rows.tolist(),
            repeat(self.priority),
            part.block.sizes[part.rows][rows].tolist(),
            repeat(round(1000 * wait_s, 1)),
        )
        return BatchFigures(
            items=len(texts),
            wait_s=wait_s,
            heads=dict.fromkeys(part.tasks, len(texts)),
            priorities={str(self.priority): len(texts)},
            trace={"formed_at": self.formed_at, "jobs": [part.job], "items": [*zip(*columns, strict=False)]},
        )
