"""The client: validate, write to the outbox, publish; and read back.

**What accepted means.** An envelope is first committed to the store and then published. Once it is committed, its
items get their results, whatever happens to Redis or to this process: the fleet's reconciler publishes what was
not. So when Redis fails after the commit, the submission stands and the call returns normally. When Redis is
found to be away before it, BrokerUnavailable is raised and nothing of that call (of that chunk, for
`submit_many`) was accepted.
"""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import msgspec

from producers.catalogue import Catalogue
from producers.connection import Connection
from producers.errors import ConfigurationError, InvalidInput
from producers.handles import Handle, Job
from producers.messages import Priority
from producers.notices import Listener
from producers.outbox import Outbox
from producers.packing import Intake, OnError, weight
from producers.publisher import Publisher
from producers.request import NewItem, Request
from producers.submission import Submission, new_job
from results_store.records import JobStatus, Result

if TYPE_CHECKING:
    from results_store.store import Store


class Client:
    """Submits work and reads results. Thread-safe; connects when first used; close it, or use it in a ``with``.

    Without arguments it finds the broker and the store as `producers.connection` says, and the tasks in the
    ``fleet.toml`` that ``ARGOSY_FLEET`` names, or else the built-in ones.
    """

    def __init__(
        self, broker_url: str | None = None, store_url: str | None = None, *, catalogue: Catalogue | None = None
    ) -> None:
        self._connection = Connection(broker_url, store_url)
        self._catalogue = catalogue
        self._lock = threading.RLock()
        self._closed = False
        self._store: Store | None = None
        self._publisher: Publisher | None = None
        self._outbox: Outbox | None = None
        self._stream: _Stream | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of all connections. What was accepted is computed all the same; handles cannot be awaited any more."""
        with self._lock:
            self._closed = True
            if self._outbox is not None:
                self._outbox.settle()
            for part in (self._stream, self._publisher, self._store):
                if part is not None:
                    part.close()
            self._stream = self._outbox = self._publisher = self._store = None

    @property
    def catalogue(self) -> Catalogue:
        """The tasks that can be submitted. Raises ConfigurationError if their file is wrong."""
        if self._catalogue is None:
            self._catalogue = self._connection.catalogue
        return self._catalogue

    # --- submitting ---

    def submit(
        self,
        task: str | Sequence[str],
        input: object,  # noqa: A002 - the word for it everywhere else
        *,
        priority: Priority | str = "standard",
        deadline_s: float | None = None,
        params: Mapping[str, Any] | None = None,
        key: str | None = None,
    ) -> Handle:
        """Submit one input and return a handle to its result.

        `input` is text; or an image as bytes, as a path that the worker can read, or as a URL. `params` are the task's
        parameters, or, if `task` is a sequence, a mapping of them by task; the result has the same shape. `key` is kept
        with the result. Past `deadline_s` from now, what is not computed yet ends ``expired``.

        Raises InvalidInput, BrokerUnavailable or StoreUnavailable; then nothing was accepted.
        """
        request = Request.check(self.catalogue, task, priority=priority, deadline_s=deadline_s, params=params)
        item = request.item(0, NewItem(input, key), field="input")
        stream = self._open_stream()
        item = msgspec.structs.replace(item, seq=next(stream.seq))
        sent = self._open_outbox().send(
            request, [(item, weight(item.input))], job=stream.job, deadline_at=request.deadline_at(time.time())
        )
        return Handle(
            self._open_store(),
            stream.listener,
            job=stream.job,
            seq=item.seq,
            envelopes=sent,
            tasks=item.tasks,
            single=request.single,
        )

    def submit_many(
        self,
        task: str | Sequence[str],
        inputs: Iterable[object],
        *,
        priority: Priority | str = "bulk",
        name: str | None = None,
        idempotency_key: str | None = None,
        deadline_s: float | None = None,
        params: Mapping[str, Any] | None = None,
        on_error: OnError = "raise",
        on_accepted: Callable[[str, int], object] | None = None,
    ) -> Job:
        """Submit inputs (plain, or as NewItem with key and parameters) chunk by chunk, in constant memory.

        `on_error` says what an invalid input does: ``raise`` stops there, with InvalidInput naming ``inputs[N]``;
        ``skip`` puts it aside in the job's `rejected`. `on_accepted` is called after each chunk with the job's id and
        the items accepted so far by this call.

        If the call fails midway, the chunks before stay accepted and are computed; the error's `job` and its note say
        so. Called again with the same `idempotency_key`, inputs and tasks, it goes on where it had stopped and
        adds nothing twice; two such calls must not run at the same time.

        Raises InvalidInput, BrokerUnavailable or StoreUnavailable.
        """
        _check_many(inputs, on_error)
        request = Request.check(self.catalogue, task, priority=priority, deadline_s=deadline_s, params=params)
        store, outbox = self._open_store(), self._open_outbox()
        submission = Submission(store, outbox, request, new_job(request.priority, name, idempotency_key), on_accepted)
        intake = Intake(request, on_error, skip=submission.resume() if idempotency_key is not None else 0)
        submission.run(intake.items(inputs))
        rejected, count = intake.rejected, intake.rejected_count
        return Job(store, self._listen, submission.job, rejected=rejected, rejected_count=count)

    # --- reading ---

    def job(self, id: str) -> Job:  # noqa: A002 - what it is called everywhere else
        """Return the job with this id. Raises UnknownJob."""
        self.status(id)
        return Job(self._open_store(), self._listen, id)

    def jobs(self, limit: int = 20) -> list[JobStatus]:
        """Return the newest jobs, the newest first."""
        return self._open_store().jobs(limit=limit)

    def status(self, id: str) -> JobStatus:  # noqa: A002
        """Return how far a job is. Raises UnknownJob."""
        return self._open_store().job(id)

    def results(self, id: str) -> Iterator[Result]:  # noqa: A002
        """Yield a job's results that are stored by now, by item and then task. Raises UnknownJob."""
        return self.job(id).results()

    # --- the parts, made when first needed ---

    def _open_store(self) -> Store:
        with self._lock:
            self._refuse_if_closed()
            if self._store is None:
                from results_store.store import Store

                self._store = Store(self._connection.store_url).open()
            return self._store

    def _open_publisher(self) -> Publisher:
        with self._lock:
            self._refuse_if_closed()
            if self._publisher is None:
                self._publisher = Publisher(self._connection.broker_url)
            return self._publisher

    def _open_outbox(self) -> Outbox:
        with self._lock:
            if self._outbox is None:
                self._outbox = Outbox(self._open_store(), self._open_publisher())
            return self._outbox

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise ConfigurationError("this client is closed; make a new one")

    def _open_stream(self) -> _Stream:
        with self._lock:
            if self._stream is None:
                self._open_publisher().check()  # no job for a broker that is not there
                name = f"stream of {socket.gethostname()}:{os.getpid()}"
                job = self._open_store().create_job(new_job(Priority.STANDARD, name)).id
                self._stream = _Stream(job, self._listen(job))
                self._stream.listener.start()
            return self._stream

    def _listen(self, job: str) -> Listener:
        try:
            redis = self._open_publisher().redis
        except ConfigurationError:
            redis = None  # whoever only reads results needs no broker: the store is asked at intervals
        return Listener(redis, job)


class _Stream:
    """The one job that a client's single submissions belong to: one subscription serves all their handles."""

    def __init__(self, job: str, listener: Listener) -> None:
        self.job = job
        self.listener = listener
        self.seq = itertools.count()

    def close(self) -> None:
        self.listener.close()


def _check_many(inputs: object, on_error: str) -> None:
    if isinstance(inputs, str | bytes | Mapping) or not isinstance(inputs, Iterable):
        raise InvalidInput("inputs", f"must be a series of inputs, not {type(inputs).__name__}", "put it in a list")
    if on_error not in ("raise", "skip"):
        raise InvalidInput("on_error", f"must be 'raise' or 'skip', not {on_error!r}")
