"""Done notices: a worker announces each envelope on its job's channel after the commit; one thread a client hears them.

A notice says when to look; what is true stands in the store. Only of an item that is not durable it may bring the results
along, as they were committed. All that is announced at the same time is looked up at once. Whatever is awaited is looked
up again when the subscription is made anew, because notices sent meanwhile are gone, and after a while without any, because
Redis promises no delivery.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from producers.client.group_commit import Deliver
from producers.client.pending_results import Pending
from producers.wire.errors import BrokerUnavailable, ConfigurationError
from producers.wire.messages import new_id
from producers.wire.publisher import as_unavailable
from producers.wire.queues import done_channel
from results_store.errors import StoreError
from results_store.records import Result

if TYPE_CHECKING:
    from redis import Redis
    from redis.client import PubSub

    from results_store.store import Store

log = logging.getLogger(__name__)

#: Without a notice the store is looked at this often; also the wait before a lost subscription is made again.
FALLBACK_S = 1.0

#: Looking without a notice may take this part of the time, so that ten thousand awaited items do not load the store.
FALLBACK_SHARE = 0.05

#: A whole job's notices come by the hundred; who waits for it looks at the store no more often than this.
LOOK_EVERY_S = 0.02

#: Awaited items that one statement looks up.
LOOK_UP = 1000


class Listener:
    """Hears the notices of every job that its client waits for, on one subscription, and looks up what they announce.

    Without Redis it only looks, every FALLBACK_S. `deliver` runs what is to be done for those who wait.
    """

    def __init__(self, redis: Redis | None, store: Callable[[], Store], deliver: Deliver) -> None:
        self._redis = redis
        self._store = store
        self._deliver = deliver
        self._control = done_channel(new_id())  # a message to ourselves wakes our own thread
        self._followers: dict[str, list[Callable[[], object]]] = {}  # by channel
        self._hearers: dict[str, tuple[Callable[[bytes], object], threading.Event]] = {}  # of texts, by channel
        self._subscribed: set[str] = set()
        self._awaited: dict[str, dict[int, weakref.ref[Pending]]] = {}  # by envelope and item
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._live = False
        self._streams: set[str] = set()  # the channels that are heard for good
        self._thread: threading.Thread | None = None
        self._next_look = 0.0

    def start(self, job: str) -> None:
        """Hear the notices of a stream of the client's own from now on, before anything of it is submitted."""
        channel = done_channel(job)
        with self._lock:
            self._streams.add(channel)
            self._followers.setdefault(channel, [])
        self._begin()

    def _begin(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="argosy notices", daemon=True)
                self._thread.start()
                return
        self._wake()

    def close(self) -> None:
        """Stop the thread, at once while Redis answers. Whoever still waits hears that the client is closed."""
        self._stopping.set()
        if self._thread is not None:
            self._wake()
            self._thread.join()
        if self._redis is not None:
            self._redis.close()
        self._deliver([partial(one.fail, closed()) for one in self._held()])

    # --- what is waited for ---

    def expect(self, pending: Iterable[Pending]) -> None:
        """Look up these items when their envelopes are announced, as long as somebody holds them."""
        with self._lock:
            for one in pending:
                for carrier in one.carriers:
                    self._awaited.setdefault(carrier.envelope, {})[one.seq] = weakref.ref(one)

    def follow(self, job: str, changed: Callable[[], object]) -> None:
        """Have `changed` delivered at every notice of a job, until `unfollow`. May wait for Redis, though not long."""
        with self._lock:
            self._followers.setdefault(done_channel(job), []).append(changed)
        self._begin()

    def unfollow(self, job: str, changed: Callable[[], object]) -> None:
        channel = done_channel(job)
        with self._lock:
            followers = self._followers.get(channel, [])
            if changed in followers:
                followers.remove(changed)
                if not followers and channel not in self._streams:
                    del self._followers[channel]  # the thread unsubscribes when it comes by

    def hear(self, channel: str, heard: Callable[[bytes], object], live: threading.Event) -> None:
        """Have each message on a channel delivered to `heard`, until `unhear`; `live` is set once none is missed."""
        with self._lock:
            self._hearers[channel] = (heard, live)
        self._begin()

    def unhear(self, channel: str) -> None:
        with self._lock:
            self._hearers.pop(channel, None)
        self._wake()

    def look_up(self, pending: Iterable[Pending]) -> None:
        """Read these items' rows together, and tell those whose rows are complete. Errors go to those who wait."""
        by_job: defaultdict[str, dict[int, Pending]] = defaultdict(dict)
        for one in pending:
            by_job[one.job][one.seq] = one
        for job, items in by_job.items():
            seqs = list(items)
            for start in range(0, len(seqs), LOOK_UP):
                self._look_up(job, {seq: items[seq] for seq in seqs[start : start + LOOK_UP]})

    def _look_up(self, job: str, items: dict[int, Pending]) -> None:
        rows: defaultdict[int, list[Result]] = defaultdict(list)
        try:
            for row in self._store().results_of(job, list(items)):
                rows[row.seq].append(row)
        except StoreError as error:
            log.warning("%d awaited results cannot be looked up: %s", len(items), error)
            self._deliver([partial(one.fail, error) for one in items.values()])
            return
        self._arrive([(one, rows[seq]) for seq, one in items.items() if one.is_whole(rows[seq])])

    def _arrive(self, whole: Sequence[tuple[Pending, Sequence[Result]]]) -> None:
        with self._lock:
            for one, _ in whole:
                for carrier in one.carriers:
                    self._drop(carrier.envelope, one.seq)
        self._deliver([partial(one.arrive, rows) for one, rows in whole])

    def _told(self, awaited: Sequence[Pending], announced: Mapping[str, Sequence[Result]]) -> list[Pending]:
        """Tell those whose results came with their notices; return the others."""
        told, untold = [], []
        for one in awaited:
            carried = [row for carrier in one.carriers for row in announced.get(carrier.envelope, ())]
            rows = [row for row in carried if row.seq == one.seq and row.job == one.job]
            if not one.durable and one.is_whole(rows):
                told.append((one, rows))
            else:
                untold.append(one)
        if told:
            self._arrive(told)
        return untold

    def _drop(self, envelope: str, seq: int) -> None:
        items = self._awaited.get(envelope)
        if items is not None:
            items.pop(seq, None)
            if not items:
                del self._awaited[envelope]

    def _held(self, envelopes: Iterable[str] | None = None) -> list[Pending]:
        """The awaited items (of some envelopes) that somebody still holds; the others are forgotten."""
        found: dict[int, Pending] = {}
        with self._lock:
            for envelope in list(self._awaited) if envelopes is None else envelopes:
                for seq, ref in list(self._awaited.get(envelope, {}).items()):
                    if (one := ref()) is None:
                        self._drop(envelope, seq)
                    else:
                        found[id(one)] = one
        return list(found.values())

    # --- the thread ---

    def _wake(self) -> None:
        if not self._live or self._redis is None:
            return  # it looks around by itself, after FALLBACK_S at the latest
        try:
            with as_unavailable(self._redis):
                self._redis.publish(self._control, "")
        except BrokerUnavailable:
            pass

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                if self._redis is not None:
                    self._hear(self._redis)
            except BrokerUnavailable as error:
                log.warning("no done notices, the store is asked every %s s instead: %s", FALLBACK_S, error)
            except Exception:
                log.exception("listening for notices failed; trying again")
            self._live = False
            self._look_around()
            self._stopping.wait(FALLBACK_S)

    def _hear(self, redis: Redis) -> None:
        with as_unavailable(redis), redis.pubsub() as subscription:  # type: ignore[no-untyped-call]  # redis-py's
            subscription.subscribe(self._control)
            self._subscribed = set()
            while not self._stopping.is_set():
                self._align(subscription)
                self._dispatch(self._receive(subscription))
                if time.monotonic() >= self._next_look:
                    self._look_around()

    def _align(self, subscription: PubSub) -> None:
        with self._lock:
            wanted = set(self._followers) | set(self._hearers)
        if new := wanted - self._subscribed:
            subscription.subscribe(*new)
        if old := self._subscribed - wanted:
            subscription.unsubscribe(*old)  # type: ignore[no-untyped-call]  # redis-py's
        self._subscribed = wanted

    def _receive(self, subscription: PubSub) -> list[dict[str, Any]]:
        """Wait for a notice and take all that are there with it."""
        wait_s = max(0.0, min(FALLBACK_S, self._next_look - time.monotonic()))
        notices = []
        notice = subscription.get_message(timeout=wait_s)
        self._live = True
        while notice is not None:
            notices.append(notice)
            connection = subscription.connection
            # a notice may be there in part: it is begun only if there is something, and then waited for
            more = connection is not None and connection.can_read(timeout=0)
            notice = subscription.get_message(timeout=FALLBACK_S) if more else None
        return notices

    def _dispatch(self, notices: list[dict[str, Any]]) -> None:
        notices = self._heard(notices)
        if not notices:
            return
        # subscribed for the first time, or again after a loss: what was announced before was not heard
        missed = any(notice["type"] == "subscribe" for notice in notices)
        announced = dict(_read(notice["data"]) for notice in notices if notice["type"] == "message")
        awaited = self._held(None if missed else announced)
        if untold := self._told(awaited, announced):
            self.look_up(untold)
        self._tell_followers({notice["channel"].decode() for notice in notices})

    def _heard(self, notices: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Deliver what is said on the channels of texts; return the other notices."""
        with self._lock:
            hearers = dict(self._hearers)
        others, calls = [], []
        for notice in notices:
            heard, live = hearers.get(notice["channel"].decode(), (None, None))
            if heard is None or live is None:
                others.append(notice)
            elif notice["type"] == "message":
                calls.append(partial(heard, notice["data"]))
            elif notice["type"] == "subscribe":
                live.set()
        if calls:
            self._deliver(calls)
        return others

    def _tell_followers(self, channels: Iterable[str]) -> None:
        with self._lock:
            calls = [call for channel in channels for call in self._followers.get(channel, ())]
        if calls:
            self._deliver(calls)

    def _look_around(self) -> None:
        """Look without a notice for what has been awaited for a while, as often as its cost allows."""
        started = time.monotonic()
        if started < self._next_look:
            return
        awaited = [one for one in self._held() if one.since <= started - FALLBACK_S]
        if awaited:
            self.look_up(awaited)
        now = time.monotonic()
        self._next_look = now + max(FALLBACK_S, (now - started) / FALLBACK_SHARE)


def _read(notice: bytes) -> tuple[str, Sequence[Result]]:
    """Return the envelope that a notice tells of, and the results that it brings."""
    envelope, _, results = notice.partition(b" ")
    try:
        rows = msgspec.json.decode(results, type=list[Result]) if results else []
    except msgspec.MsgspecError as error:
        log.warning("the results in a notice cannot be read; the store has them: %s", error)
        rows = []
    return envelope.decode("ascii", "replace"), rows


def closed() -> ConfigurationError:
    """The error for who awaits a result of a client that is closed."""
    return ConfigurationError("the client was closed while a result was awaited; its job is there for a new client")
