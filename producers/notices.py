"""Done notices: a worker announces each envelope on its job's channel after the commit; here someone waits for it.

A notice only says when to look; what is true stands in the store. So a waiter is registered first and looks second,
or the notice could come between the two. It looks again whenever the subscription is made anew, because notices
sent meanwhile are gone, and after a while without any, because Redis promises no delivery.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from producers.errors import BrokerUnavailable
from producers.publisher import as_unavailable
from producers.queues import done_channel

if TYPE_CHECKING:
    from redis import Redis
    from redis.client import PubSub

log = logging.getLogger(__name__)

#: Without a notice the store is looked at this often; also the wait before a lost subscription is made again.
FALLBACK_S = 1.0

#: A whole job's notices come by the hundred; who waits for it looks at the store no more often than this.
LOOK_EVERY_S = 0.02

#: Stands for every envelope of the job.
ANY = ""

T = TypeVar("T")


class Listener:
    """Reads one job's notices in a thread of its own and wakes those who wait, however many.

    Without Redis (None) it starts no thread, and waiters look every FALLBACK_S.
    """

    def __init__(self, redis: Redis | None, job: str) -> None:
        self._redis = redis
        self._channel = done_channel(job)
        self._waiters: dict[str, set[threading.Event]] = defaultdict(set)
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start listening. Doing so before the submission means that the first answer is not missed."""
        if self._redis is not None and self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"{self._channel} notices", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop the thread, at once while Redis answers."""
        self._stopping.set()
        if self._thread is None or self._redis is None:
            return
        try:
            with as_unavailable(self._redis):
                self._redis.publish(self._channel, ANY)  # wakes our own thread from its read
        except BrokerUnavailable:
            pass  # then its read ends with an error, or after FALLBACK_S
        self._thread.join()
        self._thread = None

    def wait(self, envelopes: Sequence[str], look: Callable[[], T | None], deadline: float | None) -> T | None:
        """Call `look` now, and at each notice of `envelopes` (of any envelope, if empty), until it returns something.

        Returns None once `deadline` (on the monotonic clock) has passed. Errors of `look` come through.
        """
        pause_s = 0.0 if envelopes else LOOK_EVERY_S
        with self._registered(envelopes or (ANY,)) as announced:
            while True:
                announced.clear()
                looked = time.monotonic()
                if (found := look()) is not None:
                    return found
                if deadline is not None and time.monotonic() >= deadline:
                    return None
                self._sleep(announced, looked, deadline, pause_s)

    def _sleep(self, announced: threading.Event, looked: float, deadline: float | None, pause_s: float) -> None:
        latest = looked + FALLBACK_S if deadline is None else min(looked + FALLBACK_S, deadline)
        if announced.wait(max(0.0, latest - time.monotonic())):
            time.sleep(max(0.0, min(latest, looked + pause_s) - time.monotonic()))

    @contextmanager
    def _registered(self, names: Sequence[str]) -> Iterator[threading.Event]:
        event = threading.Event()
        with self._lock:
            for name in names:
                self._waiters[name].add(event)
        try:
            yield event
        finally:
            with self._lock:
                for name in names:
                    self._waiters[name].discard(event)
                    if not self._waiters[name]:
                        del self._waiters[name]

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._listen()
            except BrokerUnavailable as error:
                log.warning("no done notices, the store is asked every %s s instead: %s", FALLBACK_S, error)
                self._stopping.wait(FALLBACK_S)

    def _listen(self) -> None:
        assert self._redis is not None
        with as_unavailable(self._redis), self._redis.pubsub() as subscription:  # type: ignore[no-untyped-call]  # redis-py's
            subscription.subscribe(self._channel)
            while not self._stopping.is_set():
                self._dispatch(subscription)

    def _dispatch(self, subscription: PubSub) -> None:
        notice = subscription.get_message(timeout=FALLBACK_S)
        if notice is None:
            return
        if notice["type"] == "message":
            self._wake(bytes(notice["data"]).decode("ascii", "replace"))
        else:
            self._wake_all()  # subscribed, for the first time or again after a loss

    def _wake(self, envelope: str) -> None:
        with self._lock:
            for name in (envelope, ANY):
                for event in self._waiters.get(name, ()):
                    event.set()

    def _wake_all(self) -> None:
        with self._lock:
            for events in self._waiters.values():
                for event in events:
                    event.set()
