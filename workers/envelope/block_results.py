"""The block lane of an envelope: many plain texts of bulk with the same tasks, from their block to their chunks.

A block is prepared, waits and is finished as a whole. Whatever is not simple is left to the path of single items: a
text that is refused, a part of the block that failed, an answer that is not finite.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from producers.wire.catalogue import Task
from producers.wire.errors import without_text
from producers.wire.messages import Envelope, Item, Priority, are_alike
from results_store.records import Result, ResultChunk, ResultState
from results_store.sql.chunks.chunk_rows import ChunkResults, row_of
from results_store.sql.chunks.packed_rows import LEAST
from workers.batching.block_batches import BlockEntry
from workers.batching.roster import ServedModel
from workers.batching.work import Cancelled, Computed, Expired, Interrupted
from workers.envelope import outcomes
from workers.envelope.outcomes import Params
from workers.models.interface.class_calls import ClassCalls
from workers.models.interface.model import Array
from workers.models.interface.text_block import ALONE, LabelColumns, TextBlock

logger = logging.getLogger(__name__)

#: The results of items that were not computed, by their outcome.
_ENDED: Final = {Cancelled: ResultState.CANCELLED, Expired: ResultState.EXPIRED}


@dataclass(slots=True)
class BlockRun:
    """The block of an envelope. `entry` waits for its batches, which cut parts of it; its group has them all.

    `settle` divides the texts: those with answers are in `chunks`, ended ones in `results`, and `apart` are the items
    to run one by one. `interrupted` says that some have none of these, since this worker stops.
    """

    envelope: Envelope
    served: ServedModel
    params: Params
    block: TextBlock
    entry: BlockEntry
    chunks: list[ResultChunk] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    apart: list[Item] = field(default_factory=list)
    interrupted: bool = False

    @property
    def alone(self) -> list[Item]:
        """The items that the block lacks."""
        return self._items(np.flatnonzero(self.block.row_of == ALONE))

    def unpacked(self) -> list[Result]:
        """Return the results of the chunks."""
        return [result for chunk in self.chunks for result in ChunkResults(row_of(chunk, None))]

    def settle(self, calls: ClassCalls) -> None:
        """Finish the parts, all of which have their outcomes."""
        assert self.entry.group is not None, "it was at the batcher"
        parts: list[tuple[BlockEntry, Computed]] = []
        for part in self.entry.group.entries:
            if isinstance(part, BlockEntry):
                if isinstance(part.outcome, Computed):
                    parts.append((part, part.outcome))
                else:
                    self._settle_uncomputed(part)
        if parts:
            self._finish(parts, calls)

    def _settle_uncomputed(self, part: BlockEntry) -> None:
        items = self._items(part.texts()[0])
        state = _ENDED.get(type(part.outcome))
        if isinstance(part.outcome, Interrupted):
            self.interrupted = True
        elif state is None:
            self.apart += items
        else:
            self.results += [row for item in items for row in outcomes.ended(self.envelope, item, state)]

    def _finish(self, parts: Sequence[tuple[BlockEntry, Computed]], calls: ClassCalls) -> None:
        """Make a chunk for each task. Texts with an answer that is not finite, or after an exception all, go apart."""
        place = np.full(len(self.block.sizes) + 1, -1)
        rows = np.concatenate([part.rows for part, _ in parts])
        place[rows] = np.arange(len(rows))
        own = place[self.block.row_of]
        stacked = {task: np.concatenate([done.outputs[task.name] for _, done in parts]) for task in self.params}
        usable = np.logical_and.reduce([_finite_rows(outputs) for outputs in stacked.values()])[own]
        texts, bad = np.flatnonzero((own >= 0) & usable), np.flatnonzero((own >= 0) & ~usable)
        batch_of = np.repeat(np.arange(len(parts)), [len(part.rows) for part, _ in parts])[own[texts]]
        chunks: list[ResultChunk] = []
        for task, outputs in stacked.items() if len(texts) else ():
            columns = self._answers(task, outputs[own[texts]], calls)
            if columns is None:
                bad, chunks = np.sort(np.concatenate([texts, bad])), []
                break
            chunks.append(self._chunk(task, texts, batch_of, parts, columns))
        self.chunks = chunks
        self.apart += self._items(bad)

    def _answers(self, task: Task, outputs: Array, calls: ClassCalls) -> dict[str, Any] | None:
        """Return the columns of a chunk with the answers of a task, or None after an exception."""
        model = self.served.model
        made = calls.call(model, "finish_block", model.finish_block, task, outputs, self.params[task])
        if isinstance(made, LabelColumns):
            columns = {"labels": made.labels, "widths": made.width, "codes": made.codes, "scores": made.scores}
            complete = len(made.codes) == len(made.scores) == made.width * len(outputs)
        elif isinstance(made, np.ndarray):
            columns = {"vectors": np.ascontiguousarray(made, "<f4").tobytes(), "dimension": made.shape[-1]}
            complete = made.ndim == 2 and len(made) == len(outputs) and bool(np.isfinite(made).all())
        else:
            columns, complete = {}, False
        if complete:
            return columns
        fault = without_text(made) if isinstance(made, Exception) else "it lacks answers"
        logger.warning(
            "envelope %s, task %s: finishing a block failed, its items are run one by one: %s",
            self.envelope.id, task.name, fault,
        )  # fmt: skip
        return None

    def _chunk(
        self,
        task: Task,
        texts: Array,
        batch_of: Array,
        parts: Sequence[tuple[BlockEntry, Computed]],
        columns: dict[str, Any],
    ) -> ResultChunk:
        envelope, items = self.envelope, self._items(texts)
        keys = [item.key for item in items]
        return ResultChunk(
            job=envelope.job,
            envelope=envelope.id,
            task=task.name,
            seqs=[item.seq for item in items],
            tokens=self.block.sizes[self.block.row_of[texts]].tolist(),
            batches=[(done.batch, done.batched_at, done.computed_at) for _, done in parts],
            batch_of=batch_of.tolist(),
            keys=keys if any(key is not None for key in keys) else None,
            model=envelope.model,
            model_revision=self.served.revision,
            precision=self.served.precision,
            queued_at=envelope.queued_at,
            **columns,
        )

    def _items(self, texts: Array) -> list[Item]:
        items = self.envelope.items
        if len(texts) == len(items):
            return [*items]
        return [items[place] for place in texts.tolist()]


def _finite_rows(outputs: Array) -> Array:
    finite: Array = np.logical_and.reduce(np.isfinite(outputs.reshape(len(outputs), -1)), axis=1)
    return finite


def may_have_block(envelope: Envelope) -> bool:
    """Return whether an envelope's items may form a block: plain texts of bulk with the same tasks and parameters."""
    items = envelope.items
    usual = envelope.priority is not Priority.INTERACTIVE and not envelope.pipeline
    return usual and len(items) >= LEAST and are_alike(items)
