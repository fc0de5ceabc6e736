"""The outbox: envelopes are stored first, then published on Redis, and marked as published later, many at once.

Orders that arrive together share one transaction and one Redis pipeline; lone items also share envelopes. Orders that
are not durable have a thread of their own, which never waits for the store.
"""

from __future__ import annotations

import logging
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import copy
from functools import partial
from typing import TYPE_CHECKING

from producers.client.group_commit import Deliver, GroupCommit, settle
from producers.client.pending_results import Carrier, PendingResult
from producers.client.sending.admission import Admission
from producers.client.sending.orders import Order, envelopes_of
from producers.wire.errors import BrokerUnavailable, Overloaded
from producers.wire.messages import Envelope
from producers.wire.packing import ENVELOPE_ITEMS, outbox_row
from producers.wire.publisher import Message, message
from producers.wire.tracing.spans import TraceContext
from results_store.errors import StoreError, StoreUnavailable, UnknownJob
from results_store.records import NewEnvelope

if TYPE_CHECKING:
    from producers.client.fleet_link import FleetLink

log = logging.getLogger(__name__)

#: Published envelopes are marked together: this many, or this long after the first of them. A crash before the mark
#: costs only a second message, and only if the envelope is not done by then.
MARK_COUNT = 64
MARK_AGE_S = 1.0

#: The greatest number of orders in a group.
GROUP = 4096

#: The greatest number of lone items that wait to be accepted. Further items are refused: store or broker is far behind.
WAITING_ITEMS = 65_536
WAITING_BYTES = 256 * 1024 * 1024

#: These errors concern all orders, so trying each order alone would only take longer.
OUTAGES = (BrokerUnavailable, StoreUnavailable, Overloaded)


class Outbox:
    """Accept and publish orders, in threads of its own. Thread-safe.

    An order's promise is set to None once the order is accepted, or to BrokerUnavailable, StoreUnavailable,
    SubmissionConflict or Overloaded; then nothing of the order was accepted.
    """

    def __init__(self, link: FleetLink, deliver: Deliver) -> None:
        self._link = link
        self._deliver = deliver
        self._durable = GroupCommit("argosy outbox", self._send_durable, limit=GROUP, failed=self._answer)
        self._direct = GroupCommit("argosy direct", self._send_direct, limit=GROUP, failed=self._answer)
        self.admission = Admission(link)
        self._waiting = Waiting()
        self._marks = Marks(link)
        self._unserved: set[str] = set()  # models of which a warning was logged
        self._store_away = False  # at the last attempt of the thread of durable orders

    def put(self, order: Order) -> None:
        """Send an order. Raises Overloaded if too many items wait already, or if there is no thread."""
        self._waiting.add(order)
        try:
            (self._durable if order.durable else self._direct).put(order)
        except BaseException:
            self._waiting.remove([order])
            raise

    def close(self) -> None:
        """Send the waiting orders, mark published envelopes, and end the threads. `put` must not be called any more."""
        self._durable.close()
        self._direct.close()
        self.admission.close()
        self._marks.settle()

    # --- the thread of durable orders ---

    def _send_durable(self, group: list[Order]) -> None:
        self._store_away = False
        orders = self._wanted(group)
        # The orders of a continued job are committed one at a time: each is checked by the job's number of rows.
        together = [order for order in orders if order.expected_rows is None]
        for some in (together, *([order] for order in orders if order.expected_rows is not None)):
            for accepted, messages in self._accept(some):
                self._publish(messages)
                self._answer(accepted, None)
        if not self._store_away:  # or the next orders would wait for it twice
            self._marks.settle_if_due()

    def _accept(self, orders: Sequence[Order]) -> Iterator[tuple[Sequence[Order], dict[str, Message]]]:
        """Commit orders, together if possible. Yield the accepted orders with their messages, and answer the others."""
        if not orders:
            return
        try:
            messages = self._commit(orders)
        except Exception as error:  # noqa: BLE001 - a caller waits for any error
            if len(orders) > 1 and not isinstance(error, OUTAGES):
                for order in orders:  # one order caused the error: the others are committed alone
                    yield from self._accept([order])
            else:
                self._fail(orders, error)
            return
        yield orders, messages

    def _commit(self, orders: Sequence[Order]) -> dict[str, Message]:
        """Put the orders' envelopes into the outbox; return the message of each, by its id."""
        store = self._link.store
        self._link.publisher.check()
        for order in orders:  # before the transaction, which must not wait for another store
            order.items = self._link.blobs.check_in(order.items, order.job)
        lone = self._open_streams(orders)
        packed = self._pack(orders)
        rows = [row for _, row in packed]
        jobs = [order.new_job for order in orders if order.new_job is not None]
        add = partial(
            store.add_envelopes,
            rows,
            jobs=jobs,
            expected_items=orders[0].expected_rows,
            fingerprint=orders[0].fingerprint,
        )
        try:
            at = add()
        except UnknownJob:
            if not lone:
                raise
            self._open_streams(orders, again=True)  # purged while this client was silent
            at = add()
        self._warn_of_unserved(packed)
        self._expect(packed, lone)
        return _messages(packed, at, _traces(orders), reference=self._link.publisher.by_reference)

    def _warn_of_unserved(self, packed: Sequence[tuple[Envelope, NewEnvelope]]) -> None:
        """Log once for each model that workers run, but none of them serves it: its items wait."""
        served = self._link.publisher.served
        if served is None:
            return
        for envelope, _ in packed:
            if envelope.model not in served and envelope.model not in self._unserved:
                self._unserved.add(envelope.model)
                log.warning(
                    "no running worker serves the model %r of %s: its items are accepted and wait until one does; name "
                    "it in `models` of a worker's fleet.toml",
                    envelope.model,
                    ", ".join(envelope.items[0].tasks),
                )

    def _publish(self, messages: Mapping[str, Message]) -> None:
        refused: Mapping[str, Exception]
        try:
            refused = self._push(messages)
        except Exception as error:  # noqa: BLE001 - the envelopes are accepted, whatever the error
            refused = dict.fromkeys(messages, error)
        if refused:
            log.warning(
                "%d accepted envelopes cannot be published here; the fleet will publish them: %s",
                len(refused),
                next(iter(refused.values())),
            )
        if taken := [id_ for id_ in messages if id_ not in refused]:
            self._marks.add(taken)

    # --- the thread of orders that are not durable ---

    def _send_direct(self, group: list[Order]) -> None:
        orders = self._wanted(group)
        if not orders:
            return
        try:
            lone = self._open_streams(orders)
            packed = self._pack(orders)
            messages = _messages(packed, None, _traces(orders), reference=False)
            self._expect(packed, lone)
            refused = self._push(messages)
        except Exception as error:  # noqa: BLE001 - a caller waits for any error
            self._answer(orders, error)
            return
        self._answer_each((order, _refusal_of(order, refused)) for order in orders)

    # --- both ---

    def _push(self, messages: Mapping[str, Message]) -> dict[str, Exception]:
        """Push the messages; return the errors of those that Redis refuses, by envelope."""
        refusals = self._link.publisher.push(list(messages.values()))
        return {id_: refusal for id_, refusal in zip(messages, refusals, strict=True) if refusal is not None}

    def _wanted(self, group: Sequence[Order]) -> list[Order]:
        """Return the orders whose callers have not given up and that admission does not refuse."""
        self._waiting.remove(group)
        orders = [order for order in group if not order.promise.cancelled()]
        try:
            refusals = self.admission.judge(orders)
        except Exception as error:  # noqa: BLE001 - a caller waits for any error
            self._fail(orders, error)
            return []
        for order, refusal in zip(orders, refusals, strict=True):
            if refusal is not None:
                self._answer([order], refusal)
        return [order for order, refusal in zip(orders, refusals, strict=True) if refusal is None]

    def _open_streams(self, orders: Iterable[Order], *, again: bool = False) -> dict[tuple[str, int], PendingResult]:
        """Create the jobs of lone items; return the lone items."""
        lone = [order for order in orders if order.pending is not None]
        for tenant in {order.tenant for order in lone}:
            self._link.open_stream(self._link.stream(tenant), again=again)
        return {(order.pending.job, order.pending.seq): order.pending for order in lone if order.pending is not None}

    def _pack(self, orders: Sequence[Order]) -> list[tuple[Envelope, NewEnvelope]]:
        """Return the orders' envelopes, each with its row."""
        lanes = {order.tenant: self._link.lane(order.tenant) for order in orders}
        # each envelope is encoded while its items, which were just weighed, are in the processor's cache
        durable = orders[0].durable
        # only a database that versions without chunks refuse may have columns, which these versions cannot read either
        most = self._link.publisher.in_columns if durable and self._link.store.stores_chunks else {}
        envelopes = envelopes_of(orders, time.time(), time.monotonic(), most)
        return [
            (envelope, outbox_row(envelope, lanes[envelope.tenant], in_columns=len(envelope.items) > ENVELOPE_ITEMS))
            for envelope in envelopes
        ]

    def _expect(
        self, packed: Iterable[tuple[Envelope, NewEnvelope]], lone: Mapping[tuple[str, int], PendingResult]
    ) -> None:
        """Register the awaited items, before a worker can have them."""
        if not lone:
            return
        for envelope, _ in packed:
            for item in envelope.items:
                if (pending := lone.get((envelope.job, item.seq))) is not None:
                    carrier = Carrier(envelope.id, envelope.model, item.tasks, alone=len(envelope.items) == 1)
                    pending.carriers += (carrier,)
        self._link.listener.expect(lone.values())

    def _fail(self, orders: Sequence[Order], error: Exception) -> None:
        self._store_away = isinstance(error, StoreUnavailable)
        self._answer(orders, error)

    def _answer(self, orders: Sequence[Order], outcome: Exception | None) -> None:
        self._answer_each((order, outcome) for order in orders)

    def _answer_each(self, outcomes: Iterable[tuple[Order, Exception | None]]) -> None:
        self._deliver(
            [partial(settle, order.promise, _own(outcome) if outcome else None) for order, outcome in outcomes]
        )


def _refusal_of(order: Order, refused: Mapping[str, Exception]) -> Exception | None:
    """Return the error of an envelope of an order that is not durable, which is a lone item."""
    carriers = () if order.pending is None else order.pending.carriers
    return next((refused[carrier.envelope] for carrier in carriers if carrier.envelope in refused), None)


def end_abandoned(outbox: Outbox, link: FleetLink) -> None:
    """End the connections and threads of a client that was not closed, in a thread, because this may be any place."""

    def end() -> None:
        outbox.close()
        link.close()

    if link.opened:
        with suppress(RuntimeError):  # the interpreter ends
            threading.Thread(target=end, name="argosy close", daemon=True).start()
        warnings.warn("a client was not closed; close it, or use a `with` statement", ResourceWarning, stacklevel=2)


def _messages(
    packed: Iterable[tuple[Envelope, NewEnvelope]],
    at: float | None,
    traces: Mapping[tuple[str, int], TraceContext],
    *,
    reference: bool,
) -> dict[str, Message]:
    """Return the message of each envelope, by its id: a reference to the store, or the envelope itself.

    `at` is the store's time, if known.
    """
    return {
        row.id: message(
            row,
            about=envelope.about,
            durable=envelope.durable,
            reference=reference,
            at=at,
            traces=_traces_of(envelope, traces) if traces else (),
        )
        for envelope, row in packed
    }


def _traces(orders: Iterable[Order]) -> dict[tuple[str, int], TraceContext]:
    """Return the contexts of orders: by job and number of a lone item, by job and -1 of many items."""
    return {
        (order.job, -1 if order.pending is None else order.items[0].seq): order.trace for order in orders if order.trace
    }


def _traces_of(envelope: Envelope, traces: Mapping[tuple[str, int], TraceContext]) -> list[TraceContext]:
    if (whole := traces.get((envelope.job, -1))) is not None:
        return [whole]
    return [own for item in envelope.items if (own := traces.get((envelope.job, item.seq))) is not None]


class Waiting:
    """Count the lone items that wait to be sent, and refuse more than WAITING_ITEMS or WAITING_BYTES. Thread-safe.

    Chunks of `submit_many` need no count: each call has one under way and waits for it.
    """

    def __init__(self) -> None:
        self._items = 0
        self._bytes = 0
        self._lock = threading.Lock()

    def add(self, order: Order) -> None:
        """Count an order. Raises Overloaded; a lone item is never refused while no other waits."""
        if order.pending is None:
            return
        with self._lock:
            if self._items and (self._items >= WAITING_ITEMS or self._bytes + order.size > WAITING_BYTES):
                raise Overloaded(
                    f"{self._items:,} items of this client wait for the store or the broker; await some of them first"
                )
            self._items += 1
            self._bytes += order.size

    def remove(self, orders: Iterable[Order]) -> None:
        gone = [order.size for order in orders if order.pending is not None]
        with self._lock:
            self._items -= len(gone)
            self._bytes -= sum(gone)


class Marks:
    """The published envelopes that are not marked as published yet."""

    def __init__(self, link: FleetLink) -> None:
        self._link = link
        self._unmarked: list[str] = []
        self._oldest_at = 0.0

    def add(self, ids: Sequence[str]) -> None:
        if not self._unmarked:
            self._oldest_at = time.monotonic()
        self._unmarked += ids

    def settle_if_due(self) -> None:
        if len(self._unmarked) >= MARK_COUNT or time.monotonic() - self._oldest_at >= MARK_AGE_S:
            self.settle()

    def settle(self) -> None:
        """Mark the published envelopes in the store."""
        ids, self._unmarked = self._unmarked, []
        if not ids:
            return
        try:
            self._link.store.mark_published(ids)
        except StoreError as error:
            log.warning(
                "%d published envelopes cannot be marked as published and may be sent twice, which is harmless: %s",
                len(ids),
                error,
            )


def _own(error: Exception) -> Exception:
    """Return a copy of an error for a caller, because raising it adds a traceback and notes."""
    own = copy(error)
    own.__cause__ = error.__cause__
    return own
