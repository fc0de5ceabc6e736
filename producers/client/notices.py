"""Done notices: a worker announces each finished envelope on its job's channel; a thread of the client listens.

A notice is sent after the commit and only says when to look: the results are read from the store. Only a notice of
items that are not durable may carry their results, as they were committed. Envelopes announced at the same time are
looked up together. All awaited items are looked up again after a new subscription, because notices sent meanwhile are
lost, and at intervals without a notice, because Redis does not promise delivery.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from producers.client.group_commit import Deliver
from producers.client.pending_results import PendingResult
from producers.wire.errors import BrokerUnavailable, ConfigurationError
from producers.wire.messages import new_id
from producers.wire.publisher import as_unavailable
from producers.wire.queues import done_channel, read
from results_store.loops.loop import Loop
from results_store.records import Result

if TYPE_CHECKING:
    from redis import Redis
    from redis.client import PubSub

    from results_store.store import Store

log = logging.getLogger(__name__)

#: The interval of looks at the store without a notice; also the wait before a lost subscription is made again.
FALLBACK_S = 1.0

#: The part of the time that looks without a notice may take, so that ten thousand awaited items or followed jobs do not
#: load the store.
FALLBACK_SHARE = 0.05

#: The most seconds between looks of a followed job without a notice, however many are followed.
QUIET_S = 10.0

#: A job's notices arrive by the hundred. A wait for the job looks at the store no more often than this.
LOOK_EVERY_S = 0.02

#: Awaited items that one statement looks up.
LOOK_UP = 1000

#: A subscription is silent if Redis leaves more pings unanswered. They are sent each FALLBACK_S, after eight silent
#: seconds.
UNANSWERED = 8


class Listener:
    """Hear the notices of every job that the client waits for, on one subscription, and look up the announced results.

    Without Redis it looks every FALLBACK_S. `deliver` runs the callbacks of the waiting callers.
    """

    def __init__(self, redis: Redis | None, store: Callable[[], Store], deliver: Deliver) -> None:
        self._redis = redis
        self._store = store
        self._deliver = deliver
        self._control = done_channel(new_id())  # a message here wakes the listener's own thread
        self._followers: dict[str, list[Callable[[], object]]] = {}  # by channel
        self._hearers: dict[str, tuple[Callable[[bytes], object], threading.Event]] = {}  # of texts, by channel
        self._dropped: queue.SimpleQueue[str] = queue.SimpleQueue()  # channels of hearers that were collected
        self._subscribed: set[str] = set()
        self._awaited: dict[str, dict[int, weakref.ref[PendingResult]]] = {}  # by envelope and item
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._live = False
        self._streams: set[str] = set()  # channels with a permanent subscription
        self._loop = Loop("argosy notices", self._turn, failed=lambda _: self._look_around())
        self._next_look = 0.0
        self._said = dict[str, str]()  # the last warning of each kind, so that an outage is said once

    def start(self, job: str) -> None:
        """Subscribe to the notices of the client's own stream, before any of its items is submitted."""
        channel = done_channel(job)
        with self._lock:
            self._streams.add(channel)
            self._followers.setdefault(channel, [])
        self._begin()

    def _begin(self) -> None:
        with self._lock:
            if not self._loop.alive:
                self._loop.start()
                return
        self._wake()

    def close(self) -> None:
        """Stop the thread, at once while Redis answers. Waiting callers get a ConfigurationError."""
        self._stopping.set()
        if self._loop.alive:
            self._wake()
            self._loop.join()
        if self._redis is not None:
            self._redis.close()
        self._deliver([partial(item.fail, closed()) for item in self._held()])

    # --- awaited items and jobs ---

    def expect(self, pending: Iterable[PendingResult]) -> None:
        """Look up these items when their envelopes are announced, as long as their handles exist."""
        with self._lock:
            for item in pending:
                for carrier in item.carriers:
                    self._awaited.setdefault(carrier.envelope, {})[item.seq] = weakref.ref(item)

    def follow(self, job: str, changed: Callable[[], object]) -> None:
        """Call `changed` at every notice of a job, until `unfollow`. May wait briefly for Redis."""
        with self._lock:
            self._followers.setdefault(done_channel(job), []).append(changed)
        self._begin()

    def quiet_s(self, looked_s: float) -> float:
        """Return the seconds after which a follower looks without a notice, if a look takes `looked_s`."""
        with self._lock:
            followers = sum(map(len, self._followers.values()))
        return quiet_s(followers, looked_s)

    def unfollow(self, job: str, changed: Callable[[], object]) -> None:
        channel = done_channel(job)
        with self._lock:
            followers = self._followers.get(channel, [])
            if changed in followers:
                followers.remove(changed)
                if not followers and channel not in self._streams:
                    del self._followers[channel]  # the thread unsubscribes in its next round

    def hear(self, channel: str, heard: Callable[[bytes], object], live: threading.Event) -> None:
        """Call `heard` with each message on a channel, until `unhear`; `live` is set once the channel is heard."""
        with self._lock:
            self._hearers[channel] = (heard, live)
        self._begin()

    def unhear(self, channel: str) -> None:
        with self._lock:
            self._hearers.pop(channel, None)
        self._wake()

    def drop(self, channel: str) -> None:
        """Hear a channel no longer, soon. It takes no lock, so that a finalizer may call it anywhere."""
        self._dropped.put(channel)

    def look_up(self, pending: Iterable[PendingResult]) -> None:
        """Read these items' rows together, and settle the complete items. Errors go to the waiting callers."""
        by_job: defaultdict[str, dict[int, PendingResult]] = defaultdict(dict)
        for item in pending:
            by_job[item.job][item.seq] = item
        for job, items in by_job.items():
            seqs = list(items)
            for start in range(0, len(seqs), LOOK_UP):
                self._look_up(job, {seq: items[seq] for seq in seqs[start : start + LOOK_UP]})

    def _look_up(self, job: str, items: dict[int, PendingResult]) -> None:
        rows: defaultdict[int, list[Result]] = defaultdict(list)
        try:
            for row in self._store().results_of(job, list(items)):
                rows[row.seq].append(row)
        except Exception as error:  # noqa: BLE001 - a caller waits for any error
            self._warn(f"the store cannot be asked for awaited items: {error}", of="store")
            self._deliver([partial(item.fail, error) for item in items.values()])
            return
        self._over("store", "the store can be asked for awaited items again")
        self._arrive([(item, rows[seq]) for seq, item in items.items() if item.is_whole(rows[seq])])

    def _arrive(self, whole: Sequence[tuple[PendingResult, Sequence[Result]]]) -> None:
        self._deliver([partial(item.arrive, rows) for item, rows in whole])
        with self._lock:  # afterwards: an item whose delivery fails is looked up again
            for item, _ in whole:
                for carrier in item.carriers:
                    self._drop(carrier.envelope, item.seq)

    def _told(self, awaited: Sequence[PendingResult], announced: Mapping[str, Sequence[Result]]) -> list[PendingResult]:
        """Settle the items whose results came with their notices; return the others."""
        told, untold = [], []
        for item in awaited:
            carried = [row for carrier in item.carriers for row in announced.get(carrier.envelope, ())]
            rows = [row for row in carried if row.seq == item.seq and row.job == item.job]
            if not item.durable and item.is_whole(rows):
                told.append((item, rows))
            else:
                untold.append(item)
        if told:
            self._arrive(told)
        return untold

    def _drop(self, envelope: str, seq: int) -> None:
        items = self._awaited.get(envelope)
        if items is not None:
            items.pop(seq, None)
            if not items:
                del self._awaited[envelope]

    def _held(self, envelopes: Iterable[str] | None = None) -> list[PendingResult]:
        """Return the awaited items (of some envelopes) whose handles still exist, and forget the others."""
        found: dict[int, PendingResult] = {}
        with self._lock:
            for envelope in list(self._awaited) if envelopes is None else envelopes:
                for seq, ref in list(self._awaited.get(envelope, {}).items()):
                    if (item := ref()) is None:
                        self._drop(envelope, seq)
                    else:
                        found[id(item)] = item
        return list(found.values())

    def _warn(self, told: str, *, of: str) -> None:
        """Log a warning, unless it is the last one of its kind."""
        if self._said.get(of) != told:
            self._said[of] = told
            log.warning("%s", told)

    def _over(self, of: str, told: str) -> None:
        if self._said.pop(of, None) is not None:
            log.warning("%s", told)

    # --- the thread ---

    def _wake(self) -> None:
        if not self._live or self._redis is None:
            return  # the thread looks by itself, after FALLBACK_S at the latest
        try:
            with as_unavailable(self._redis):
                self._redis.publish(self._control, "")
        except BrokerUnavailable:
            pass

    def _turn(self) -> bool:
        """Hear notices until Redis is away, or look without it; an error makes a new subscription."""
        if self._stopping.is_set():
            return False
        try:
            if self._redis is not None:
                self._hear(self._redis)
        except BrokerUnavailable as error:
            told = f"done notices cannot be received; the store is read every {FALLBACK_S} s instead: {error}"
            self._warn(told, of="redis")
        finally:
            self._live = False
        self._look_around()
        return not self._stopping.wait(FALLBACK_S)

    def _hear(self, redis: Redis) -> None:
        with as_unavailable(redis), redis.pubsub() as subscription:  # type: ignore[no-untyped-call]  # redis-py's
            subscription.subscribe(self._control)
            self._over("redis", "done notices are received again")
            self._subscribed = set()
            while not self._stopping.is_set():
                self._align(subscription)
                self._dispatch(self._receive(subscription))
                if time.monotonic() >= self._next_look:
                    self._look_around()

    def _align(self, subscription: PubSub) -> None:
        with self._lock:
            while not self._dropped.empty():
                self._hearers.pop(self._dropped.get(), None)
            wanted = set(self._followers) | set(self._hearers)
        if new := wanted - self._subscribed:
            subscription.subscribe(*new)
        if old := self._subscribed - wanted:
            subscription.unsubscribe(*old)  # type: ignore[no-untyped-call]  # redis-py's
        self._subscribed = wanted

    def _receive(self, subscription: PubSub) -> list[dict[str, Any]]:
        """Wait for a notice, and return it with all notices that are there."""
        wait_s = max(0.0, min(FALLBACK_S, self._next_look - time.monotonic()))
        notices = []
        notice = subscription.get_message(timeout=wait_s)
        if subscription.health_check_response_counter > UNANSWERED:
            raise TimeoutError("no ping of the subscription is answered")
        self._live = True
        while notice is not None:
            notices.append(notice)
            connection = subscription.connection
            # A notice may have arrived in part. It is read only if some of it is there, and then in full.
            more = connection is not None and connection.can_read(timeout=0)
            notice = subscription.get_message(timeout=FALLBACK_S) if more else None
        return notices

    def _dispatch(self, notices: list[dict[str, Any]]) -> None:
        notices = self._heard(notices)
        if not notices:
            return
        # A first subscription, or the first after a loss: earlier notices were not heard.
        missed = any(notice["type"] == "subscribe" for notice in notices)
        announced = dict(_read(notice["data"]) for notice in notices if notice["type"] == "message")
        awaited = self._held(None if missed else announced)
        if untold := self._told(awaited, announced):
            self.look_up(untold)
        self._tell_followers({notice["channel"].decode() for notice in notices})

    def _heard(self, notices: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Deliver the messages on the channels of texts; return the other notices."""
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
        """Look up all items that have been awaited for FALLBACK_S, as often as the cost of a look allows."""
        started = time.monotonic()
        if started < self._next_look:
            return
        awaited = [item for item in self._held() if item.since <= started - FALLBACK_S]
        if awaited:
            self.look_up(awaited)
        now = time.monotonic()
        self._next_look = now + max(FALLBACK_S, (now - started) / FALLBACK_SHARE)


def quiet_s(lookers: int, looked_s: float) -> float:
    """Return the seconds between looks without a notice, if so many look by themselves and each takes `looked_s`."""
    return min(max(FALLBACK_S, lookers * looked_s / FALLBACK_SHARE), QUIET_S)


def _read(notice: bytes) -> tuple[str, Sequence[Result]]:
    """Return the envelope that a notice names, and the results that it carries."""
    envelope, _, results = notice.partition(b" ")
    rows = read(results, list[Result]) if results else []
    if rows is None:
        log.warning("a notice carries invalid results; they are read from the store instead")
    return envelope.decode("ascii", "replace"), rows or []


def closed() -> ConfigurationError:
    """Return the error for a caller that awaits a result of a closed client."""
    return ConfigurationError("the client was closed while a result was awaited; read the job with a new client")
