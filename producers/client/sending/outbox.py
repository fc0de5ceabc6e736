"""The way out: envelopes into the store first, then onto Redis, then marked as published, lazily and in bulk.

What callers want sent at the same time goes together: one transaction, one pipeline, and shared envelopes for lone items.
What is not durable has a way of its own, past the store, so that it never waits for a disk.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from functools import partial
from typing import TYPE_CHECKING

from producers.client.group_commit import Deliver, Gathering, settle
from producers.client.pending_results import Carrier, Pending
from producers.client.sending.admission import Admission
from producers.client.sending.orders import Order, envelopes_of
from producers.wire.errors import BrokerUnavailable, Overloaded
from producers.wire.messages import Envelope
from producers.wire.packing import outbox_row
from producers.wire.publisher import Message, message
from results_store.errors import StoreError, StoreUnavailable, UnknownJob
from results_store.records import NewEnvelope

if TYPE_CHECKING:
    from producers.client.fleet_link import Link

log = logging.getLogger(__name__)

#: Published envelopes are marked so together: this many, or this long after the first of them. One left unmarked by a
#: crash costs nothing but a second message, and only if it is not done by then.
MARK_COUNT = 64
MARK_AGE_S = 1.0

#: A group holds the orders of at most this many calls.
GROUP = 4096

#: More lone items than this may not wait to be accepted: a store or broker this far behind refuses at the door.
WAITING_ITEMS = 65_536
WAITING_BYTES = 256 * 1024 * 1024

#: These are everybody's, and trying one by one only takes longer.
OUTAGES = (BrokerUnavailable, StoreUnavailable, Overloaded)


class Outbox:
    """Accepts and publishes what is put into it, in threads of its own. Thread-safe.

    An order's promise gets None once it is accepted; or BrokerUnavailable, StoreUnavailable, SubmissionConflict, Overloaded,
    and then nothing of the order was accepted.
    """

    def __init__(self, link: Link, deliver: Deliver) -> None:
        self._link = link
        self._deliver = deliver
        self._durable = Gathering("argosy outbox", self._send_durable, limit=GROUP)
        self._direct = Gathering("argosy direct", self._send_direct, limit=GROUP)
        self.admission = Admission(link)
        self._waiting = Waiting()
        self._marks = Marks(link)

    def put(self, order: Order) -> None:
        """Have an order sent. Raises Overloaded if too much waits already."""
        self._waiting.add(order)
        (self._durable if order.durable else self._direct).put(order)

    def close(self) -> None:
        """Send what waits, mark what was published, and end the threads. Nobody may `put` any more."""
        self._durable.close()
        self._direct.close()
        self.admission.close()
        self._marks.settle()

    # --- the thread of what is durable ---

    def _send_durable(self, group: list[Order]) -> None:
        orders = self._wanted(group)
        # a job that goes on where an earlier run stopped is checked by its number of rows, one chunk at a time
        together = [order for order in orders if order.expected_rows is None]
        for some in (together, *([order] for order in orders if order.expected_rows is not None)):
            for accepted, messages in self._accept(some):
                self._publish(messages)
                self._answer(accepted, None)
        self._marks.settle_if_due()

    def _accept(self, orders: Sequence[Order]) -> Iterator[tuple[Sequence[Order], dict[str, Message]]]:
        """Commit orders, together if that goes; yield those that are accepted, with their messages, and answer the others."""
        if not orders:
            return
        try:
            messages = self._commit(orders)
        except Exception as error:  # noqa: BLE001 - whatever it is, somebody waits to hear of it
            if len(orders) > 1 and not isinstance(error, OUTAGES):
                for order in orders:  # one of them has made it fail: the others are spared
                    yield from self._accept([order])
            else:
                self._answer(orders, error)
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
        messages = _messages(packed)
        jobs = [order.new_job for order in orders if order.new_job is not None]
        try:
            store.add_envelopes(rows, jobs=jobs, expected_items=orders[0].expected_rows)
        except UnknownJob:
            if not lone:
                raise
            self._open_streams(orders, again=True)  # purged during a long silence of this client
            store.add_envelopes(rows, jobs=jobs, expected_items=orders[0].expected_rows)
        self._expect(packed, lone)
        return messages

    def _publish(self, messages: Mapping[str, Message]) -> None:
        try:
            self._link.publisher.publish(list(messages.values()))
        except Exception as error:  # noqa: BLE001 - whatever it is, they are accepted
            log.warning("%d envelopes are accepted but wait for the fleet to publish them: %s", len(messages), error)
        else:
            self._marks.add(list(messages))

    # --- the thread of what is not ---

    def _send_direct(self, group: list[Order]) -> None:
        orders = self._wanted(group)
        if not orders:
            return
        try:
            lone = self._open_streams(orders)
            packed = self._pack(orders)
            messages = _messages(packed)
            self._expect(packed, lone)
            self._link.publisher.publish(list(messages.values()))
        except Exception as error:  # noqa: BLE001 - whatever it is, somebody waits to hear of it
            self._answer(orders, error)
        else:
            self._answer(orders, None)

    # --- both ---

    def _wanted(self, group: Sequence[Order]) -> list[Order]:
        """The orders of a group whose callers have not given up, and that are not refused."""
        self._waiting.remove(group)
        orders = [order for order in group if not order.promise.cancelled()]
        try:
            refusals = self.admission.judge(orders)
        except Exception as error:  # noqa: BLE001 - whatever it is, somebody waits to hear of it
            self._answer(orders, error)
            return []
        for order, refusal in zip(orders, refusals, strict=True):
            if refusal is not None:
                self._answer([order], refusal)
        return [order for order, refusal in zip(orders, refusals, strict=True) if refusal is None]

    def _open_streams(self, orders: Iterable[Order], *, again: bool = False) -> dict[tuple[str, int], Pending]:
        """Return the lone items among the orders; the jobs that they belong to exist from here on."""
        lone = [order for order in orders if order.pending is not None]
        for tenant in {order.tenant for order in lone}:
            self._link.open_stream(self._link.stream(tenant), again=again)
        return {(order.pending.job, order.pending.seq): order.pending for order in lone if order.pending is not None}

    def _pack(self, orders: Sequence[Order]) -> list[tuple[Envelope, NewEnvelope]]:
        """Return the orders' envelopes, each with its row."""
        lanes = {order.tenant: self._link.lane(order.tenant) for order in orders}
        # each is encoded while its items, which were just weighed, are in the processor's cache
        return [
            (envelope, outbox_row(envelope, lanes[envelope.tenant])) for envelope in envelopes_of(orders, time.time())
        ]

    def _expect(self, packed: Iterable[tuple[Envelope, NewEnvelope]], lone: Mapping[tuple[str, int], Pending]) -> None:
        """Register who awaits what, before a worker can have it."""
        if not lone:
            return
        for envelope, _ in packed:
            for item in envelope.items:
                if (pending := lone.get((envelope.job, item.seq))) is not None:
                    carrier = Carrier(envelope.id, envelope.model, item.tasks, alone=len(envelope.items) == 1)
                    pending.carriers += (carrier,)
        self._link.listener.expect(lone.values())

    def _answer(self, orders: Sequence[Order], outcome: Exception | None) -> None:
        self._deliver([partial(settle, order.promise, _own(outcome) if outcome else None) for order in orders])


def _messages(packed: Iterable[tuple[Envelope, NewEnvelope]]) -> dict[str, Message]:
    """Return the message that carries each envelope, by its id."""
    return {row.id: message(row, about=envelope.about) for envelope, row in packed}


class Waiting:
    """Counts the lone items that wait to be sent, and refuses what is too much. Thread-safe.

    Chunks of `submit_many` need no count: each call has one under way and waits for it.
    """

    def __init__(self) -> None:
        self._items = 0
        self._bytes = 0
        self._lock = threading.Lock()

    def add(self, order: Order) -> None:
        """Count an order in. Raises Overloaded. One alone is never too much."""
        if order.pending is None:
            return
        with self._lock:
            if self._items and (self._items >= WAITING_ITEMS or self._bytes + order.size > WAITING_BYTES):
                raise Overloaded(
                    f"{self._items:,} items wait in this client for the store or the broker; await some of them first"
                )
            self._items += 1
            self._bytes += order.size

    def remove(self, orders: Iterable[Order]) -> None:
        gone = [order.size for order in orders if order.pending is not None]
        with self._lock:
            self._items -= len(gone)
            self._bytes -= sum(gone)


class Marks:
    """What was published and is not marked so yet."""

    def __init__(self, link: Link) -> None:
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
        """Mark in the store what was published."""
        ids, self._unmarked = self._unmarked, []
        if not ids:
            return
        try:
            self._link.store.mark_published(ids, time.time())
        except StoreError as error:
            log.warning("%d published envelopes stay unmarked and may be sent twice, harmlessly: %s", len(ids), error)


def _own(error: Exception) -> Exception:
    """An error of one caller's own: it adds its traceback and its notes to it."""
    own = copy(error)
    own.__cause__ = error.__cause__
    return own
