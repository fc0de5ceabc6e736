"""The life of an envelope in a worker.

name → claim → decode → divide; for each portion look up → fetch inputs → prepare → batch → finish → store; in the end
tell.
Plain texts of bulk take the steps from prepare to finish together, as a block (`workers.envelope.block_results`).

docs/lifecycle.md describes these steps. The failure of an item is its result; the failure of a whole envelope is
raised.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import Any, Protocol

import msgspec

from producers.wire.errors import InvalidMessage
from producers.wire.messages import BadItem, Envelope, Named, Priority, decode, named, outline, stored_envelope
from producers.wire.tracing import spans
from results_store.errors import InvalidRow
from results_store.export.text_export import plain
from results_store.loops.loop import doing
from results_store.records import CachedResult, Claim, Claimed, Result, ResultChunk, ResultState, Transaction
from results_store.sql.chunks.packed_rows import packed
from results_store.writer import Writer
from workers.batching.batcher import Batcher
from workers.batching.steady_clock import steady_time
from workers.batching.work import Entry, Group, Interrupted, Superseded
from workers.envelope import outcomes
from workers.envelope.block_results import BlockRun
from workers.envelope.cached_answers import ResultCache
from workers.envelope.derivation import Derivation
from workers.envelope.gate import EnvelopeInterrupted, Gate
from workers.envelope.portions import Portion, portions, reduced
from workers.envelope.postponed_work import PostponedWork
from workers.envelope.preparation import Preparation, PreparedItem
from workers.result_cache_settings import ResultCacheSettings
from workers.retries import RetrySettings

_UNKNOWN = Claimed(Claim.UNKNOWN)
_PRIORITIES = frozenset(int(priority) for priority in Priority)


class OnSubmit(Protocol):
    """Hears that items of an envelope are at the batcher."""

    def __call__(self, envelope: Envelope, group: Group, may_return: bool) -> object: ...


def _unheard(envelope: Envelope, group: Group, may_return: bool) -> None: ...


class InputsGone(Exception):
    """The store has the envelope without its inputs: a purge deleted them before the envelope was done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution(Preparation):
    """Run envelopes of the models served here. Thread-safe: a thread per envelope."""

    batcher: Batcher
    writer: Writer
    urgent_writer: Writer
    gate: Gate
    retries: RetrySettings = field(default_factory=RetrySettings)
    cache: ResultCacheSettings = field(default_factory=ResultCacheSettings)
    paused: Callable[[], Collection[str]] = tuple

    def run(self, raw: object, *, reply: bool = False, on_submit: OnSubmit = _unheard) -> dict[str, Any]:
        """Run an envelope and return a summary once its results are committed; with `reply`, also the results.

        `on_submit` is called when items are at the batcher: with the envelope, their group, and whether the group may
        be given back, so that another worker runs the envelope.

        Raises InvalidMessage if the envelope cannot be read, InputsGone if the store no longer has its inputs,
        EnvelopeInterrupted if this worker stops meanwhile.
        """
        message = self.name(raw)
        claimed = self.claim(message)
        if claimed.verdict in (Claim.DONE, Claim.HELD, Claim.WAITING):
            return {"skipped": claimed.verdict.value}
        later = PostponedWork(self.retries, claimed, self.paused)
        envelope, bad_items = self.decode(raw, message, claimed)
        envelope = later.due(timed(prioritized(envelope, claimed), claimed))
        results: list[Result] = []
        refused, in_chunks = [*outcomes.malformed(envelope, bad_items), *later.refused], 0
        may_return = claimed.verdict is Claim.WORK and not claimed.alone
        with self.gate.passing(alone=claimed.alone):
            for portion in self.look_up(self.divide(envelope, claimed, refused), claimed):
                inputs = self.fetch_inputs(portion.envelope)
                block = self.prepare_block(portion.envelope, inputs) if may_return and not reply else None
                items = self.prepare(portion.envelope, inputs, block.alone if block else None)
                items = self.batch(portion.envelope, items, inputs, partial(on_submit, may_return=may_return), block)
                portion.results.extend(later.kept(self.finish(portion.envelope, items, inputs.turn)))
                in_chunks += self.store(portion, claimed.verdict, items, later, block)
                results += portion.results
        return self.tell(envelope, claimed.verdict, results, in_chunks, later.number, reply=reply)

    def name(self, raw: object) -> Named:
        """Return the envelope that the message names. Raises InvalidMessage."""
        return named(raw)

    def claim(self, message: Named) -> Claimed:
        """Lease the envelope to this worker, unless its work is done or held elsewhere.

        An envelope that is not durable has no row to lease.
        """
        if not message.durable:
            return _UNKNOWN
        urgent = message.priority == Priority.INTERACTIVE
        # a body may have the priority of the submission: the message of a reference has that of its list
        known = message.priority if message.items is None and message.priority in _PRIORITIES else None
        return self._writer(urgent=urgent).claim(message.id, urgent=urgent, priority=known)

    def decode(self, raw: object, message: Named, claimed: Claimed) -> tuple[Envelope, list[BadItem]]:
        """Return the stored envelope and its unreadable items; the message's, if the store does not know it.

        An envelope that is not to be computed needs no more than its items' numbers and tasks. Raises InvalidMessage or
        InputsGone.
        """
        try:
            return self._served(*self._stored(raw, message, claimed))
        except (InvalidMessage, InputsGone):
            if claimed.verdict in (Claim.CANCELLED, Claim.DEAD):
                return outline(message.id, claimed.payload, claimed.content_type), []
            raise

    def _stored(self, raw: object, message: Named, claimed: Claimed) -> tuple[Envelope, list[BadItem]]:
        if claimed.verdict is not Claim.UNKNOWN:
            if claimed.payload is None:
                raise InputsGone(f"envelope {message.id}: its inputs are no longer stored; submit its items again")
            return stored_envelope(claimed.payload, claimed.content_type)
        if message.durable and (message.items is None or self.database.retention.existing([message.job])):
            # an altered message: the reconciler publishes the real one again
            raise InvalidMessage(f"envelope {message.id} is not in the store: altered, or its job was purged")
        return decode(raw)

    def _served(self, envelope: Envelope, bad_items: list[BadItem]) -> tuple[Envelope, list[BadItem]]:
        models = self.offer.now.models
        if envelope.model not in models:
            served = ", ".join(models)
            raise InvalidMessage(f"model {envelope.model!r} is not served here; this worker serves {served}")
        return envelope, bad_items

    def divide(self, envelope: Envelope, claimed: Claimed, results: list[Result]) -> Iterable[Portion]:
        """Return the envelope's portions: a single one, unless the envelope runs alone. Raises StoreUnavailable.

        `results` are those of items that could not be decoded. A portion without items is not computed.
        """
        if claimed.alone:
            return portions(envelope, claimed, results, self.database)
        if claimed.verdict in (Claim.CANCELLED, Claim.DEAD):
            return (Portion(reduced(envelope), [*results, *outcomes.given_up(envelope, claimed.verdict)]),)
        return (Portion(envelope, results),)

    def look_up(self, divided: Iterable[Portion], claimed: Claimed) -> Iterator[Portion]:
        """Yield each portion without the items that earlier jobs have answered. Raises StoreUnavailable."""
        cache = ResultCache(settings=self.cache, offer=self.offer, store=self.database)
        for portion in divided:
            look = cache.look(portion.envelope, claimed)
            yield portion._replace(envelope=look.envelope, look=look)

    def batch(
        self,
        envelope: Envelope,
        items: Sequence[PreparedItem],
        inputs: Derivation,
        on_submit: Callable[[Envelope, Group], object],
        block: BlockRun | None = None,
    ) -> list[PreparedItem]:
        """Wait for the outcomes of the items and of the block. Return the items with those that were taken apart.

        Items whose model has a new version are prepared again and wait again.
        """
        items, outdated = list(items), list(range(len(items)))
        whole: list[Entry] = [block.entry] if block else []
        while outdated or whole:
            with doing("waiting for its batches", math.inf):
                group = self.batcher.submit([*whole, *(entry for n in outdated if (entry := items[n].entry))])
                on_submit(envelope, group)
                group.wait()
            outdated = [n for n in outdated if (entry := items[n].entry) and isinstance(entry.outcome, Superseded)]
            if block and whole:
                with inputs.turn:
                    block.settle(self.calls)
                outdated += range(len(items), len(items) + len(block.apart))
                items += [PreparedItem(item, []) for item in block.apart]
                whole = []
            with inputs.turn:
                again = self.prepare_items(envelope, [items[n].item for n in outdated], inputs)
            for n, item in zip(outdated, again, strict=True):
                items[n] = item
        return items

    def store(
        self,
        portion: Portion,
        claim: Claim,
        items: Sequence[PreparedItem],
        later: PostponedWork,
        block: BlockRun | None = None,
    ) -> int:
        """Commit the portion's results, those of its block and of the cache, and with the last portion the envelope's
        end or the work that comes later.

        Return the number of results of the block that went in chunks.

        Raises EnvelopeInterrupted if the worker did not finish the portion.
        """
        envelope = portion.envelope
        interrupted = any(item.entry and isinstance(item.entry.outcome, Interrupted) for item in items)
        interrupted |= block is not None and block.interrupted
        chunks_made, cached = _gathered(portion, block)
        last = portion.last and not interrupted
        left = later.postponement() if last else None
        ended = (envelope.id,) if last and left is None else ()
        # without results, not even the items of a cancelled envelope can be named
        dead = claim is Claim.DEAD or (claim is Claim.CANCELLED and not portion.results)
        urgent = envelope.priority is Priority.INTERACTIVE
        simple = claim is Claim.WORK and not (urgent or interrupted or envelope.pipeline)
        chunks, rows = self._packed(portion, block, chunks_made, simple=simple)
        transaction = Transaction(
            results=rows,
            chunks=chunks,
            done=() if dead else ended,
            dead=ended if dead else (),
            unlisted=(envelope.id,) if claim is Claim.UNKNOWN else (),
            stepped=(envelope.id,) if envelope.pipeline else (),
            postponed={envelope.id: left} if left else {},
            cached=cached,
            urgent=urgent,
        )
        writer = self._writer(urgent=urgent)
        try:
            writer.commit(transaction)
        except InvalidRow:  # an answer of a class of its own: its neighbours are right
            portion.results[:] = [outcomes.storable(row) for row in portion.results]
            whole = chunks_made if simple else ()
            writer.commit(transaction._replace(results=portion.results, chunks=whole, cached=()))
        if interrupted:
            # the computed results are stored: the unique key prevents a second write by the next run
            raise EnvelopeInterrupted(f"envelope {envelope.id}: this worker stops; the envelope returns to its queue")
        return sum(len(chunk.seqs) for chunk in chunks_made)

    def _packed(
        self, portion: Portion, block: BlockRun | None, chunks_made: Sequence[ResultChunk], *, simple: bool
    ) -> tuple[Sequence[ResultChunk], Sequence[Result]]:
        """Return the portion's results as they are stored: in chunks, and in rows."""
        if block is None or not chunks_made:
            return packed(portion.results) if simple and self.database.stores_chunks else ([], portion.results)
        # other results of the same tasks are rows, since a task has a single chunk; so are those of a part
        return (chunks_made, portion.results) if simple else ([], [*block.unpacked(), *portion.results])

    def _writer(self, *, urgent: bool) -> Writer:
        return self.urgent_writer if urgent else self.writer

    def tell(
        self,
        envelope: Envelope,
        claim: Claim,
        results: Sequence[Result],
        in_chunks: int = 0,
        postponed: int = 0,
        *,
        reply: bool = False,
    ) -> dict[str, Any]:
        """Return the summary for Celery; `in_chunks` results of blocks succeeded beside the others.

        The writer has already announced the commit to the producers.
        """
        summary: dict[str, Any] = {"items": len(envelope.items)}
        counts = Counter(row.state.value for row in results)
        counts[ResultState.SUCCEEDED.value] += in_chunks
        about = {"envelope": envelope.id, "job": envelope.job, "model": envelope.model}
        spans.told(about, +counts, outcomes.last_batch(results))
        if claim is Claim.DEAD:
            return summary | {"dead": len(results)}
        summary |= +counts
        summary |= {"postponed": postponed} if postponed else {}
        if cached := sum(row.state is ResultState.SUCCEEDED and row.batch is None for row in results):
            summary["cached"] = cached  # whatever was computed has its batch
        return summary | {"results": [plain(row) for row in results]} if reply else summary


def prioritized(envelope: Envelope, claimed: Claimed) -> Envelope:
    """Return the envelope with the priority of its row, which may have changed since it was encoded."""
    if claimed.priority is None or claimed.priority == envelope.priority or claimed.priority not in _PRIORITIES:
        return envelope
    return msgspec.structs.replace(envelope, priority=Priority(claimed.priority))


def timed(envelope: Envelope, claimed: Claimed) -> Envelope:
    """Return the envelope with its deadline by this worker's steady clock.

    The store's clock says how much time is left. An envelope without a row is judged by its sender's clock and this
    machine's.
    """
    listed = claimed.verdict is not Claim.UNKNOWN
    deadline_at, now = (claimed.deadline_at, claimed.now) if listed else (envelope.deadline_at, time.time())
    local = None if deadline_at is None else steady_time() + (deadline_at - now)
    return envelope if local == envelope.deadline_at else msgspec.structs.replace(envelope, deadline_at=local)


def _gathered(portion: Portion, block: BlockRun | None) -> tuple[Sequence[ResultChunk], Sequence[CachedResult]]:
    """Add the results of the portion's block and of the result cache to the portion's.

    Return the chunks that hold other results of the block, and the results that the cache lacks.
    """
    if block:
        portion.results.extend(block.results)
    chunks = block.chunks if block else []
    look = portion.look
    if look is None or not (look.digests or look.found):
        return chunks, ()
    unpacked = block.unpacked() if block else []
    cached = look.new([*portion.results, *unpacked])
    if look.found:  # a task has a single chunk: that of the block is made anew with them
        portion.results.extend([*unpacked, *look.found])
        portion.results.sort(key=attrgetter("seq"))
        chunks = []
    return chunks, cached
