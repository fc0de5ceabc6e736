"""A client's connections to its fleet: store, broker and notices. Each is opened when first used, from any thread."""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NoReturn, TypeVar

from producers.client.notices import Listener
from producers.wire.blobs import Blobs
from producers.wire.connection import Connection
from producers.wire.errors import ConfigurationError
from producers.wire.live_nodes import LiveNode, live_nodes
from producers.wire.messages import Priority, new_id
from producers.wire.publisher import Publisher, as_unavailable
from producers.wire.queues import RefusedMessage, refused_messages
from producers.wire.result_files import ResultFiles
from producers.wire.validation.struct_types import build_struct_types
from results_store.errors import StoreUnavailable
from results_store.records import JobStatus, NewJob, Tenant

if TYPE_CHECKING:
    from redis import Redis

    from producers.client.runtimes import Runtime
    from results_store.store import Store

T = TypeVar("T")


#: The ways to the same thing in another process.
_ELSEWHERE = {
    "Handle": "send its `job` and `seq`, and read the rows with `client.ask` and `Store.results_of`",
    "Job": "send its `id`, and make it there with `client.job(id)`",
    "PipelineJob": "send its `id`, and make it there with `client.pipeline(id)`",
    "TextStream": "read it here, and send its pieces or its `result`",
}


class Life:
    """An object that a client and its handles share, and no thread: it ends when the last of them does."""


class OfThisProcess:
    """A base of objects with connections, threads or locks. They are neither pickled nor copied."""

    def __reduce__(self) -> NoReturn:
        kind = type(self).__name__
        remedy = _ELSEWHERE.get(kind.removeprefix("Async"), "make one in each process")
        raise ConfigurationError(f"this {kind} belongs to its process and cannot be sent to another; {remedy}")


class Stream:
    """The job that holds a client's lone items of one tenant, and the counter of their numbers."""

    def __init__(self, tenant: str) -> None:
        self.job = NewJob(
            id=new_id(),
            priority=int(Priority.STANDARD),
            name=f"stream of {socket.gethostname()}:{os.getpid()}",
            tenant=tenant,
        )
        self.seq = itertools.count()
        self.open = False


class FleetLink:
    """The connections of a client, for threads or asyncio. Thread-safe; opening may wait for the network."""

    def __init__(
        self, connection: Connection, runtime: Runtime, life: Life, *, store_timeout_s: float, charges: bool = True
    ) -> None:
        build_struct_types()  # the threads of the client and of its caller read messages
        self.runtime = runtime
        self._life = weakref.ref(life)  # the threads hold this link
        self._connection = connection
        self._store_timeout_s = store_timeout_s
        self.charges = charges  # whether the limits of tenants hold for what is submitted
        self.closing = False
        self._closed = False
        self._store: Store | None = None
        self._away, self._away_at = "", float("-inf")  # the last time that the store could not be opened
        self._publisher: Publisher | None = None
        self._tenants = {"": Tenant(name="", lane=0)}
        self._max_queued_s: Mapping[Priority, float] | None = None
        self.start_anew()

    def start_anew(self) -> None:
        """Forget everything that belongs to the parent, in a forked child. Store and publisher do so themselves."""
        self.process = os.getpid()
        self._lock = threading.RLock()
        self._opening = threading.Lock()  # of streams: held over the network, while others take what is open
        self._listener: Listener | None = None
        self._streams: dict[str, Stream] = {}  # two processes must not number the items of one stream
        self._blobs: Blobs | None = None
        self._files: ResultFiles | None = None

    @property
    def life(self) -> Life | None:
        """The life of the client, for its handles."""
        return self._life()

    @property
    def opened(self) -> bool:
        """Whether there are connections to close."""
        return not self._closed and any((self._store, self._publisher, self._listener))

    @property
    def store(self) -> Store:
        """The open store. Raises ConfigurationError, SchemaMismatch or StoreUnavailable."""
        asked_at = time.monotonic()
        with self._lock:
            self.refuse_if_closed()
            if self._store is None:
                self._store = self._open_store(asked_at)
            return self._store

    def _open_store(self, asked_at: float) -> Store:
        from results_store.store import Store

        if self._away_at >= asked_at:  # another thread has waited for it meanwhile
            raise StoreUnavailable(self._away)
        try:
            return Store(self._connection.store_url, timeout_s=self._store_timeout_s).open()
        except StoreUnavailable as error:
            self._away, self._away_at = str(error), time.monotonic()
            raise

    async def ask(self, question: Callable[[Store], T]) -> T:
        """Return the answer of `question`, which is called with the open store."""
        return await self.runtime.call(lambda: question(self.store))

    async def status(self, job: str) -> JobStatus:
        """Return a job's progress: a single look for all who ask at the same time. Raises UnknownJob."""
        return await self.runtime.share(("job", job), lambda: self.store.job(job))

    @property
    def publisher(self) -> Publisher:
        """The publisher. Raises ConfigurationError if no broker is configured."""
        with self._lock:
            self.refuse_if_closed()
            if self._publisher is None:
                self._publisher = Publisher(self._connection.broker_url, self._connection.look_up)
            return self._publisher

    @property
    def listener(self) -> Listener:
        """The listener for notices. Without a broker it only asks the store, which is enough to read results."""
        with self._lock:
            self.refuse_if_closed()
            if self._listener is None:
                try:
                    redis = self.publisher.subscriber()
                except ConfigurationError:
                    redis = None
                self._listener = Listener(redis, lambda: self.store, self.runtime.deliver)
            return self._listener

    def stream(self, tenant: str) -> Stream:
        """Return a tenant's stream, at once. `open_stream` creates its job."""
        found = self._streams.get(tenant)
        return self._streams.setdefault(tenant, Stream(tenant)) if found is None else found

    def open_stream(self, stream: Stream, *, again: bool = False) -> None:
        """Create the stream's job and subscribe to its notices. Raises BrokerUnavailable or StoreUnavailable."""
        if stream.open and not again:
            return
        with self._opening:
            self.publisher.check()  # creates no job if the broker is away
            self.store.create_job(stream.job)
            self.listener.start(stream.job.id)
            stream.open = True

    def lane(self, tenant: str) -> int:
        """Return the lane of a tenant's envelopes. A new tenant gets a lane in the store. Raises StoreUnavailable."""
        if tenant not in self._tenants:
            self._tenants[tenant] = self.store.tenants.enrol(tenant)
        return self._tenants[tenant].lane

    @property
    def max_queued_s(self) -> Mapping[Priority, float]:
        """The seconds of work that may wait before new items, by priority, if limited. Raises ConfigurationError."""
        if self._max_queued_s is None:
            self._max_queued_s = self._connection.admission.by_priority
        return self._max_queued_s

    @property
    def blobs(self) -> Blobs:
        """The storage of large inputs. Raises ConfigurationError."""
        if self._blobs is None:
            self._blobs = Blobs(self._connection.blobs)
        return self._blobs

    @property
    def files(self) -> ResultFiles:
        """The storage of results that are files. Raises ConfigurationError."""
        if self._files is None:
            self._files = self._connection.files
        return self._files

    def ask_broker(self, question: Callable[[Redis], T]) -> T:
        """Return the answer of `question`, which is called with Redis. Raises BrokerUnavailable or Overloaded."""
        with as_unavailable(self.publisher.redis):
            return question(self.publisher.redis)

    def live_nodes(self) -> list[LiveNode]:
        """Return the workers that are alive. Raises BrokerUnavailable."""
        with as_unavailable(self.publisher.redis):
            return live_nodes(self.publisher.redis)

    def check(self) -> None:
        """Check that broker and store answer. Raises BrokerUnavailable, StoreUnavailable or SchemaMismatch."""
        with as_unavailable(self.publisher.redis):
            self.publisher.redis.ping()
        self.store.jobs(limit=1)

    def refused_messages(self, limit: int) -> list[RefusedMessage]:
        """Return the newest messages that workers refused. Raises BrokerUnavailable."""
        with as_unavailable(self.publisher.redis):
            return refused_messages(self.publisher.redis, limit)

    def close(self) -> None:
        """Close all connections. Accepted items are still computed."""
        self.closing = True  # handles check this flag from now on; the listener tells earlier waiters
        with self._lock:
            listener, publisher, store = self._listener, self._publisher, self._store
        if listener is not None:
            listener.close()  # outside the lock: its thread may need the store
        with self._lock:
            self._closed = True
        for part in (publisher, store):
            if part is not None:
                part.close()

    def refuse_in_child(self, process: int, kind: str, remedy: str) -> None:
        """Raise ConfigurationError if the `process` that made something was the parent of this forked child."""
        if process != self.process:
            raise ConfigurationError(
                f"this {kind} belongs to process {process}, from which this one was forked; {remedy}"
            )

    def refuse_if_closed(self) -> None:
        if self._closed:
            raise ConfigurationError("this client is closed; make a new client")
