"""The client for threads: it runs the coroutines of `AsyncClient` in the thread that calls, without an event loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from producers.client.async_client import AsyncClient
from producers.client.handles import Handle, Job
from producers.client.options import ItemOptions, ManyOptions, PipelineOptions, keywords_of
from producers.client.pipelines.pipeline import Pipeline
from producers.client.pipelines.pipeline_job import PipelineJob
from producers.client.runtimes import Runtime, iterate, run
from producers.client.text_streams import TextStream
from producers.wire.catalogue import Catalogue
from results_store.records import JobStatus, QueuedWork, Result

if TYPE_CHECKING:
    from results_store.store import Store

T = TypeVar("T")


class _ThreadClient(AsyncClient):
    """The asyncio client without asyncio: none of its coroutines ever yields."""

    _runtime_type = Runtime


class Client:
    """Submits work and reads results. Thread-safe; connects when first used; close it, or use it in a ``with``.

    Without arguments it finds the broker and the store as `producers.wire.connection` says, and the tasks in the
    ``fleet.toml`` that ``ARGOSY_FLEET`` names, or else the built-in ones. `store_timeout_s` bounds each wait for the
    store. Items that several threads submit at the same time go out together. `tenant` owns the work, unless a call
    names another; the default is that of ``ARGOSY_TENANT``, or nobody in particular. Tenants of the same priority
    take turns.
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
        """Let go of all connections. What was accepted is computed all the same; handles cannot be awaited any more."""
        run(self._awaited.close())

    @property
    def catalogue(self) -> Catalogue:
        """The tasks that can be submitted. Raises ConfigurationError if their file is wrong."""
        return run(self._awaited.catalogue())

    # --- submitting ---

    @keywords_of(AsyncClient.submit)
    def submit(
        self,
        task: str | Sequence[str],
        input: object,  # noqa: A002 - the word for it everywhere else
        **options: Unpack[ItemOptions],
    ) -> Handle:
        """Submit one input and return a handle to its result.

        `input` is text; or an image as bytes, as a path that the worker can read, or as a URL. `params` are the
        task's parameters, or, if `task` is a sequence, a mapping of them by task; the result has the same shape.
        `key` is kept with the result. Past `deadline_s` from now, what is not computed yet ends ``expired``.

        Without `durable`, the item goes straight to Redis and spares the store a write, and itself the wait for it.
        Its result is stored like any other. But if Redis or the worker loses the item, nobody sends it again, and it
        never has a result.

        Raises InvalidInput; Overloaded or RateLimited; BrokerUnavailable, StoreUnavailable or BlobsUnavailable; and
        ConfigurationError or SchemaMismatch. Nothing was accepted then, except that Redis may have an item that is
        not `durable` when it breaks off in the middle.
        """
        return Handle(run(self._awaited.submit(task, input, **options)))

    @keywords_of(AsyncClient.stream)
    def stream(
        self,
        task: str,
        input: object,  # noqa: A002
        **options: Unpack[ItemOptions],
    ) -> TextStream:
        """Submit one input to a task that writes text, and return the pieces of the answer, then its `result`.

        Arguments and errors are those of `submit`. Unless it is `durable`, nobody takes it up again if the worker
        dies. If nobody listens any more, the item is cancelled.
        """
        return TextStream(run(self._awaited.stream(task, input, **options)))

    @keywords_of(AsyncClient.submit_many)
    def submit_many(self, task: str | Sequence[str], inputs: Iterable[object], **options: Unpack[ManyOptions]) -> Job:
        """Submit inputs (plain, or as NewItem with key and parameters) chunk by chunk, in constant memory.

        `on_error` says what an invalid input does: ``raise`` stops there, with InvalidInput naming ``inputs[N]``;
        ``skip`` puts it aside in the job's `rejected`. `on_accepted` is called for each chunk, by the time the next
        is gathered, with the job's id and the items accepted so far by this call; `on_rejected` with each input that
        is put aside or ends the call.

        If the call fails midway, the chunks before stay accepted and are computed; the error's `job` and its note say
        so. Called again with the same `idempotency_key`, inputs and tasks, it goes on where it had stopped and
        adds nothing twice; two such calls must not run at the same time.

        `ttl_s` seconds after the job has finished, workers purge it with its results.

        While the fleet is full, it waits; with `patience_s`, no longer than that for a chunk, and 0 is not at all.

        Raises what `submit` raises, Overloaded only once the patience is at its end; and SubmissionConflict if
        another call with the same `idempotency_key` has added items meanwhile.
        """
        return Job(run(self._awaited.submit_many(task, inputs, **options)))

    @keywords_of(AsyncClient.submit_pipeline)
    def submit_pipeline(
        self, pipeline: Pipeline, inputs: Iterable[object], **options: Unpack[PipelineOptions]
    ) -> PipelineJob:
        """Submit inputs (plain, or as NewItem with a key) for the steps of a pipeline. Otherwise as `submit_many`.

        The whole is one job: its deadline, priority and tenant hold for every step, and `cancel` ends all of it. A
        step's items go out as soon as the results that they are made of are stored, and the job's `total` grows with
        them. Raises InvalidInput also for a pipeline that cannot be, naming the step.
        """
        return PipelineJob(run(self._awaited.submit_pipeline(pipeline, inputs, **options)))

    # --- waiting and reading ---

    def as_completed(self, handles: Iterable[Handle], *, timeout_s: float | None = None) -> Iterator[Result]:
        """Yield the results of items in the order in which they come, one for each item and task; failed ones too.

        `producers.value` gives a result's output, or raises its error. Raises ResultTimeout if `timeout_s` passes
        first.
        """
        return iterate(self._awaited.as_completed([one.awaited for one in handles], timeout_s=timeout_s))

    def job(self, id: str) -> Job:  # noqa: A002 - what it is called everywhere else
        """Return the job with this id. Raises UnknownJob."""
        return Job(run(self._awaited.job(id)))

    def pipeline(self, id: str) -> PipelineJob:  # noqa: A002
        """Return the pipeline with this id. Raises UnknownJob, or InvalidInput for a job that is none."""
        return PipelineJob(run(self._awaited.pipeline(id)))

    def jobs(self, limit: int = 20, *, tenant: str | None = None) -> list[JobStatus]:
        """Return the newest jobs, the newest first: everybody's, or one tenant's."""
        return run(self._awaited.jobs(limit, tenant=tenant))

    def queued_work(self) -> list[QueuedWork]:
        """Return what waits of each model and priority, with an estimate of how long it takes."""
        return run(self._awaited.queued_work())

    def status(self, id: str) -> JobStatus:  # noqa: A002
        """Return how far a job is. Raises UnknownJob."""
        return run(self._awaited.status(id))

    def read_file(self, file: Mapping[str, Any]) -> bytes:
        """Return the bytes of a file that a result refers to: of ``output["image"]``, say.

        Raises FileUnavailable if it is gone, BlobsUnavailable if its place cannot be reached.
        """
        return run(self._awaited.read_file(file))

    def results(self, id: str) -> Iterator[Result]:  # noqa: A002
        """Yield a job's results that are stored by now, by item and then task. Raises UnknownJob."""
        return self.job(id).results()

    def ask(self, question: Callable[[Store], T]) -> T:
        """Return what `question` returns for the client's store: for all that has no method here."""
        return run(self._awaited.ask(question))

    def check(self) -> None:
        """Ask broker and store whether they are there. Raises BrokerUnavailable, StoreUnavailable or SchemaMismatch."""
        run(self._awaited.check())
