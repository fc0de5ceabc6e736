"""A micro-batch: entries become rows (equal contents share a row), and outputs of the heads become outputs of the
entries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from producers.wire.messages import new_id
from results_store.records import Batch
from workers.batching.planning.cost_model import BatchShape
from workers.batching.planning.scheduler import Chosen
from workers.batching.planning.work_seconds import Amount
from workers.batching.work import Computed, Entry
from workers.models.interface import returned
from workers.models.interface.model import CONTENTS, Array, Arrays, Model, Prepared


@dataclass(frozen=True, slots=True)
class BatchRun:
    """The run of a batch on the device. Times are seconds; `ended_at` is Unix time.

    `host_s` is the part of `idle_s` in which the node held many envelopes, so that the device waited for the host; None
    if the node held few.
    """

    ended_at: float
    forward_s: float
    idle_s: float
    cached_rows: int
    host_s: float | None = None


class BatchFigures(NamedTuple):
    """The part of a batch's record that its items decide. `wait_s` is their mean wait."""

    items: int
    wait_s: float
    heads: dict[str, int]
    priorities: dict[str, int]
    trace: dict[str, Any]


@dataclass(slots=True)
class MicroBatch:
    """Entries that share a pass of the backbone. `rows` are their unique contents, in order of appearance.

    `formed_at` is by the steady clock. `chosen` is the decision of the policy; groups of suspects have none.
    """

    entries: Sequence[Entry]
    formed_at: float
    chosen: Chosen[Entry] | None = None
    id: str = field(default_factory=new_id)
    rows: list[Prepared] = field(default_factory=list)
    row_of: list[int] = field(default_factory=list)  # entry position → row
    wanted: dict[str, Array] = field(default_factory=dict)  # task → its rows, ascending

    def __post_init__(self) -> None:
        positions: dict[bytes, int] = {}
        wanted: dict[str, set[int]] = {}
        for entry in self.entries:
            row = positions.setdefault(entry.prepared.content, len(self.rows))
            if row < len(self.rows) and not _alike(self.rows[row], entry.prepared):
                row = len(self.rows)
            if row == len(self.rows):
                self.rows.append(entry.prepared)
            self.row_of.append(row)
            for task in entry.tasks:
                wanted.setdefault(task, set()).add(row)
        self.wanted = {task: np.array(sorted(rows), dtype=np.int64) for task, rows in wanted.items()}

    @property
    def model(self) -> str:
        """The key of the model's version."""
        return self.entries[0].waiting.model

    @property
    def priority(self) -> int:
        """The priority of the leading item."""
        return self.entries[0].waiting.priority

    @property
    def row_count(self) -> int:
        return len(self.rows)

    @property
    def padded_cost(self) -> int:
        return len(self.rows) * max(row.size for row in self.rows)

    @property
    def shape(self) -> BatchShape:
        return BatchShape(self.padded_cost, self.row_count, sum(len(rows) for rows in self.wanted.values()))

    @property
    def amount(self) -> Amount:
        """The batch's work."""
        return Amount(sum(row.size for row in self.rows), len(self.rows), sum(map(len, self.wanted.values())))

    @property
    def predicted_s(self) -> float | None:
        return self.chosen.predicted_s if self.chosen else None

    def collated(self, model: Model) -> Arrays:
        """Return the arrays for the device. Raises WrongReturn, or any exception of the model's own code."""
        arrays = returned.batch(model, model.collate(self.rows))
        if model.knows_contents:
            digests = np.frombuffer(b"".join(row.content for row in self.rows), dtype=np.uint8)
            arrays[CONTENTS] = digests.reshape(len(self.rows), -1)
        return arrays

    def deliver(self, outputs: Arrays, batched_at: float, computed_at: float) -> None:
        """Give each entry its rows of `outputs`, whose leading axes follow `wanted`."""
        places = {task: {int(row): at for at, row in enumerate(rows)} for task, rows in self.wanted.items()}
        for entry, row in zip(self.entries, self.row_of, strict=True):
            own = {task: outputs[task][places[task][row]] for task in entry.tasks}
            entry.finish(Computed(own, self.id, batched_at, computed_at))

    def tell(self, task: str, row: int, at: int, text: str) -> None:
        """Pass a piece of a row's text to the entries that listen; the piece begins at character `at`."""
        for entry, own in zip(self.entries, self.row_of, strict=True):
            if own == row and task in entry.tasks and entry.on_text is not None:
                entry.on_text(at, text)

    def record(self, ran: BatchRun, *, model: str, revision: str, device: str, worker: str) -> Batch:
        """Return the flight recorder's row for this batch, once it has run."""
        figures = self._figures()
        return Batch(
            id=self.id,
            model=model,
            model_revision=revision,
            device=device,
            worker=worker,
            started_at=ran.ended_at - ran.forward_s,
            forward_s=ran.forward_s,
            queue_wait_s=figures.wait_s,
            items=figures.items,
            rows=self.row_count,
            tokens=int(self.amount.cost),
            padded_tokens=self.padded_cost,
            heads=figures.heads,
            priorities=figures.priorities,
            idle_s=ran.idle_s,
            predicted_s=self.predicted_s,
            cached_rows=ran.cached_rows,
            trace=figures.trace,
            host_s=ran.host_s,
        )

    def _figures(self) -> BatchFigures:
        waits = [self.formed_at - entry.waiting.arrived_at for entry in self.entries]
        return BatchFigures(
            items=len(self.entries),
            wait_s=sum(waits) / len(waits),
            heads=dict(Counter(task for entry in self.entries for task in entry.tasks)),
            priorities=dict(Counter(str(entry.waiting.priority) for entry in self.entries)),
            trace=self._trace(waits),
        )

    def _trace(self, waits: Sequence[float]) -> dict[str, Any]:
        """The items of the batch, with all that a replay of the batch or of the policy needs; no content."""
        jobs: dict[str, int] = {}
        items = [
            (
                jobs.setdefault(entry.job, len(jobs)),
                entry.seq,
                row,
                entry.waiting.priority,
                entry.waiting.cost,
                round(1000 * wait_s, 1),
            )
            for entry, row, wait_s in zip(self.entries, self.row_of, waits, strict=True)
        ]
        return {"formed_at": self.formed_at, "jobs": list(jobs), "items": items}


def _alike(first: Prepared, other: Prepared) -> bool:
    """Return whether two rows of equal content have equal arrays: a class may have given them the same digest."""
    return first is other or (
        first.arrays.keys() == other.arrays.keys()
        and all(np.array_equal(array, other.arrays[name]) for name, array in first.arrays.items())
    )
