"""Blocks: the texts of an envelope that wait as a single entry, and run in micro-batches of their own.

The rows of a block wait by size, the largest first. A batch takes rows of about the same size from blocks that wait.
So a block is cut into parts, each with its own outcome. A part that fails gives no verdict on its texts: it is taken
apart, and the envelope runs them again as items, among which the one at fault is found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import Any

import numpy as np

from workers.batching.microbatch import BatchFigures, MicroBatch
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

    def cut(self, begin: int, end: int) -> BlockEntry:
        """Remove some rows, and return them as an entry of the same group."""
        sizes, heads = self.waiting.sizes, self.waiting.row_heads
        assert sizes is not None, "it is a block"
        waiting = _sized(self.waiting, sizes[begin:end], heads)
        part = BlockEntry(self.block, self.rows[begin:end], self.seqs, self.tasks, waiting, job=self.job)
        self.rows = np.delete(self.rows, slice(begin, end))
        self.waiting = _sized(self.waiting, np.delete(sizes, slice(begin, end)), heads)
        if self.group:
            self.group.join(part)
        return part

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
    """A micro-batch of rows of blocks: its entries are parts of blocks, and its rows are theirs, one after another."""

    _parts: list[BlockEntry] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._parts = [part for part in self.entries if isinstance(part, BlockEntry)]
        rows: dict[str, list[Array]] = {}
        begin = 0
        for part in self._parts:
            for task in part.tasks:
                rows.setdefault(task, []).append(np.arange(begin, begin + len(part.rows), dtype=np.int64))
            begin += len(part.rows)
        self.wanted = {task: np.concatenate(own) for task, own in rows.items()}

    @property
    def row_count(self) -> int:
        return sum(len(part.rows) for part in self._parts)

    @property
    def padded_cost(self) -> int:
        return self.row_count * max(part.waiting.widest for part in self._parts)

    @property
    def amount(self) -> Amount:
        waiting = [part.waiting for part in self._parts]
        return Amount(sum(one.cost for one in waiting), self.row_count, sum(one.heads for one in waiting))

    def collated(self, model: Model) -> Arrays:
        return returned.batch(model, model.collate_blocks([(part.block, part.rows) for part in self._parts]))

    def deliver(self, outputs: Arrays, batched_at: float, computed_at: float) -> None:
        """Give each part its rows of `outputs`, whose leading axes follow `wanted`."""
        begins = dict.fromkeys(outputs, 0)
        for part in self._parts:
            own = {}
            for task in part.tasks:
                own[task] = outputs[task][begins[task] : begins[task] + len(part.rows)]
                begins[task] += len(part.rows)
            part.finish(Computed(own, self.id, batched_at, computed_at))

    def tell(self, task: str, row: int, at: int, text: str) -> None:
        """Texts of blocks have no listeners."""

    def _figures(self) -> BatchFigures:
        jobs: dict[str, int] = {}
        items: list[tuple[Any, ...]] = []
        heads: Counter[str] = Counter()
        waits_s, begin = 0.0, 0
        for part in self._parts:
            texts, rows = part.texts()
            wait_s = self.formed_at - part.waiting.arrived_at
            columns = (
                repeat(jobs.setdefault(part.job, len(jobs))),
                map(part.seqs.__getitem__, texts.tolist()),
                (rows + begin).tolist(),
                repeat(part.waiting.priority),
                part.block.sizes[part.rows][rows].tolist(),
                repeat(round(1000 * wait_s, 1)),
            )
            items += zip(*columns, strict=False)
            heads.update(dict.fromkeys(part.tasks, len(texts)))
            waits_s += wait_s * len(texts)
            begin += len(part.rows)
        return BatchFigures(
            items=len(items),
            wait_s=waits_s / len(items),
            heads=dict(heads),
            priorities={str(self.priority): len(items)},
            trace={"formed_at": self.formed_at, "jobs": list(jobs), "items": items},
        )
