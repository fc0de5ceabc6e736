"""The client for threads: it runs the coroutines of `AsyncClient` in the calling thread, without an event loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from producers.client.async_client import AsyncClient
from producers.client.fleet_link import OfThisProcess
from producers.client.handles import Handle, Job
from producers.client.options import ItemOptions, ManyOptions, PipelineOptions, keywords_of
from producers.client.pipelines.pipeline import Pipeline
from producers.client.pipelines.pipeline_job import PipelineJob
from producers.client.runtimes import Runtime, iterate, run
from producers.client.text_streams import TextStream
from producers.wire.catalogue import Catalogue
from producers.wire.live_nodes import LiveNode
from producers.wire.queues import MOST_REFUSED, RefusedMessage
from results_store.records import JobStatus, QueuedWork, Result

if TYPE_CHECKING:
    from redis import Redis

    from results_store.store import Store

T = TypeVar("T")


class _ThreadClient(AsyncClient):
    """The asyncio client without asyncio: none of its coroutines ever yields."""

    _runtime_type = Runtime


class Client(OfThisProcess):
    """Submit work and read results. Thread-safe. A forked child may use it too, but not the handles of its parent.

    The client connects when first used. Close it, or use a ``with`` statement. Without arguments it finds the broker
    and the store as `producers.wire.connection` describes. It reads the tasks from the ``fleet.toml`` that
    ``ARGOSY_FLEET`` names, or else has the built-in tasks. `store_timeout_s` limits each wait for the store. Items that
    several threads submit at the same time share one transaction. `tenant` owns the work, unless a call names another
    tenant; the default is the value of ``ARGOSY_TENANT``, or no tenant. Tenants of the same priority take turns.
    """

    def __init__(
        self,
        broker_url: str | None = None,
        store_url: str | None = None,
        *,
        catalogue: Catalogue | None = None,
        store_timeout_s: float = 30.0,
        tenant: str | None = None,
    ) -> None:
        self._awaited = _ThreadClient(
            broker_url, store_url, catalogue=catalogue, store_timeout_s=store_timeout_s, tenant=tenant
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections. Accepted items are still computed, but handles can no longer be awaited."""
        run(self._awaited.close())

    @property
    def catalogue(self) -> Catalogue:
        """The tasks that can be submitted. Raises ConfigurationError if the ``fleet.toml`` is invalid."""
        return run(self._awaited.catalogue())

    # --- submitting ---

    @keywords_of(AsyncClient.submit)
    def submit(
        self,
        task: str | Sequence[str],
        input: object,  # noqa: A002 - the public name
        **options: Unpack[ItemOptions],
    ) -> Handle:
        """Submit one input and return a handle to its result.

        `input` is text, or an image as bytes, as a path that the worker can read, or as a URL. `params` are the task's
        parameters; if `task` is a sequence, they are a mapping of parameters by task, and the result has the same
        shape. `key` is stored with the result. `deadline_s` seconds from now, an item that is not computed yet ends
        ``expired``.

        With ``durable=False`` the item goes straight to Redis, which saves the write to the store and the wait for it.
        Its result is stored like any other. But if Redis or the worker loses the item, it is not sent again and never
        gets a result. Its deadline is judged by the clocks of this machine and of the worker's, not by the store's.

        Raises InvalidInput, Overloaded, RateLimited, BrokerUnavailable, StoreUnavailable, BlobsUnavailable,
        ConfigurationError or SchemaMismatch. Nothing was accepted then, with one exception: if the connection to Redis
        breaks midway, Redis may hold an item that is not `durable`.
        """
        return Handle(run(self._awaited.submit(task, input, **options)))

    @keywords_of(AsyncClient.stream)
    def stream(
        self,
        task: str,
        input: object,  # noqa: A002
        **options: Unpack[ItemOptions],
    ) -> TextStream:
        """Submit one input to a task that writes text, and return the pieces of its answer, then its `result`.

        Arguments and errors are those of `submit`. Unless the item is `durable`, it is lost if its worker dies. The
        item is cancelled once nobody listens any more.
        """
        return TextStream(run(self._awaited.stream(task, input, **options)))

    @keywords_of(AsyncClient.submit_many)
    def submit_many(self, task: str | Sequence[str], inputs: Iterable[object], **options: Unpack[ManyOptions]) -> Job:
        """Submit inputs (plain, or as NewItem with key and parameters) chunk by chunk, in constant memory.

        An Arrow column is read as its values.

        `on_error` is the policy for an invalid input: ``raise`` stops with InvalidInput, which names ``inputs[N]``;
        ``skip`` adds the input to the job's `rejected`. After each accepted chunk, and before the next is complete,
        `on_accepted` is called with the job's id and the number of items that this call has submitted. `on_rejected` is
        called with each rejected input, including an input that ends the call.

        If the call fails midway or is interrupted, the earlier chunks stay accepted and are computed. The error's note
        says so, and an ArgosyError has their `job`. Call it again with the same `idempotency_key`, inputs and tasks to
        continue there; nothing is added twice. Two such calls must not run at the same time. The key is refused for
        other tasks, parameters or inputs.

        `ttl_s` seconds after the job has finished, workers purge it with its results.

        The call waits while the fleet is full. `patience_s` limits this wait for each chunk; 0 does not wait at all.

        Raises the errors of `submit` (Overloaded only after `patience_s`), KeyConflict if the `idempotency_key` belongs
        to another submission, and SubmissionConflict if another call with it has added items meanwhile.
        """
        return Job(run(self._awaited.submit_many(task, inputs, **options)))

    @keywords_of(AsyncClient.submit_pipeline)
    def submit_pipeline(
        self, pipeline: Pipeline, inputs: Iterable[object], **options: Unpack[PipelineOptions]
    ) -> PipelineJob:
        """Submit inputs (plain, or as NewItem with a key) for the steps of a pipeline. Otherwise like `submit_many`.

        The whole pipeline is one job. Its deadline, priority and tenant hold for every step, and `cancel` ends all of
        them. The items of a step are published as soon as the results that they need are stored; the job's `total`
        grows with them. Raises InvalidInput, naming the step, also for an invalid pipeline.
        """
        return PipelineJob(run(self._awaited.submit_pipeline(pipeline, inputs, **options)))

    # --- waiting and reading ---

    def as_completed(self, handles: Iterable[Handle], *, timeout_s: float | None = None) -> Iterator[Result]:
        """Yield the results of items as they arrive, a row for each item and task, including failed results.

        `producers.value` returns a result's output or raises its error. Raises ResultTimeout if `timeout_s` passes
        first.
        """
        return iterate(self._awaited.as_completed([handle.awaited for handle in handles], timeout_s=timeout_s))

    def job(self, id: str) -> Job:  # noqa: A002 - the public name
        """Return the job with this id. Raises UnknownJob."""
        return Job(run(self._awaited.job(id)))

    def pipeline(self, id: str) -> PipelineJob:  # noqa: A002
        """Return the pipeline with this id. Raises UnknownJob, or InvalidInput if the job is not a pipeline."""
        return PipelineJob(run(self._awaited.pipeline(id)))

    def jobs(self, limit: int = 20, *, tenant: str | None = None) -> list[JobStatus]:
        """Return the newest jobs, newest first, for all tenants or a single tenant."""
        return run(self._awaited.jobs(limit, tenant=tenant))

    def queued_work(self) -> list[QueuedWork]:
        """Return the waiting work by model and priority, with an estimate of the time that it takes."""
        return run(self._awaited.queued_work())

    def refused_messages(self, limit: int = MOST_REFUSED) -> list[RefusedMessage]:
        """Return the newest messages that workers refused, each with its cause. Raises BrokerUnavailable."""
        return run(self._awaited.refused_messages(limit))

    def status(self, id: str) -> JobStatus:  # noqa: A002
        """Return a job's progress. Raises UnknownJob."""
        return run(self._awaited.status(id))

    def read_file(self, file: Mapping[str, Any]) -> bytes:
        """Return the bytes of a file to which a result refers, for example by ``output["image"]``.

        Raises FileUnavailable if the file is gone, BlobsUnavailable if its storage cannot be reached.
        """
        return run(self._awaited.read_file(file))

    def results(self, id: str) -> Iterator[Result]:  # noqa: A002
        """Yield a job's stored results, by item and then task. Raises UnknownJob."""
        return self.job(id).results()

    def ask(self, question: Callable[[Store], T]) -> T:
        """Return `question(store)`, called with the client's store, for queries without a method here."""
        return run(self._awaited.ask(question))

    def live_nodes(self) -> list[LiveNode]:
        """Return the workers that are alive, with their models. Raises BrokerUnavailable."""
        return run(self._awaited.live_nodes())

    def ask_broker(self, question: Callable[[Redis], T]) -> T:
        """Return `question(redis)`. Raises BrokerUnavailable or Overloaded for Redis' errors."""
        return run(self._awaited.ask_broker(question))

    def check(self) -> None:
        """Check that broker and store answer. Raises BrokerUnavailable, StoreUnavailable or SchemaMismatch."""
        run(self._awaited.check())
