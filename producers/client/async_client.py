"""The asyncio client: it checks work, writes it to the outbox, publishes it, and reads results.

**Accepted** means committed to the store. An envelope is committed first and published afterwards. Its items then get
their results, even if Redis or this process fails: the fleet's reconciler publishes any envelope that is still
unpublished. If Redis fails after the commit, the call therefore returns normally. If Redis is away before the commit,
the call raises BrokerUnavailable, and nothing of the call (for `submit_many`: of the chunk) is accepted.

The event loop never waits for the network, for a disk, or for a lock that is held over either. A few threads do,
however many items are awaited: they commit and publish, hear notices and read results. They deliver to the loop in
batches. If Redis or the database is away or silent, calls raise BrokerUnavailable or StoreUnavailable after their
timeouts; other work in the loop continues meanwhile.

`Client` runs the same coroutines in the calling thread.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sequence
from threading import TIMEOUT_MAX
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar, Unpack

from producers.client.async_handles import AsyncHandle, AsyncJob, Taken
from producers.client.fleet_link import FleetLink, Life, OfThisProcess
from producers.client.group_commit import Promise
from producers.client.options import ItemOptions, JobOptions, keywords_of
from producers.client.pending_results import PendingResult
from producers.client.pipelines.pipeline import Pipeline, first_request
from producers.client.pipelines.pipeline_job import AsyncPipelineJob, plan_of_job
from producers.client.request import Request
from producers.client.runtimes import LoopRuntime, Runtime, timeout_of
from producers.client.sending.chunks import ChunkSender
from producers.client.sending.fingerprint import request_text
from producers.client.sending.full_fleet import checked
from producers.client.sending.intake import Intake, OnError, Rejected
from producers.client.sending.orders import Order
from producers.client.sending.outbox import Outbox, end_abandoned
from producers.client.sending.submission import Submission, check_many, lone_order, new_job
from producers.client.text_streams import AsyncTextStream
from producers.wire.catalogue import Catalogue
from producers.wire.connection import Connection, checked_tenant
from producers.wire.errors import InvalidInput, ResultTimeout
from producers.wire.forms import as_float
from producers.wire.live_nodes import LiveNode
from producers.wire.messages import Priority
from producers.wire.pipelines.plan import Plan
from producers.wire.queues import MOST_REFUSED, RefusedMessage
from producers.wire.tracing.spans import submitting
from results_store.records import JobStatus, QueuedWork, Result
from results_store.sql.engines.forks import at_fork
from results_store.sql.item_numbering import TREE_SPAN

if TYPE_CHECKING:
    from redis import Redis

    from results_store.store import Store

T = TypeVar("T")

#: Seconds for which a client checks inputs of custom tasks by the schemas that it has read.
SCHEMAS_FOR_S = 10.0


class AsyncClient(OfThisProcess):
    """Submit work and await results, for one event loop.

        async with AsyncClient() as client:
            handle = await client.submit("sentiment", "a fine film", priority="interactive")
            print(await handle)
            job = await client.submit_many("topic", texts)
            async for row in job.as_completed():
                print(row.seq, row.output)

    The client connects when first used. Close it, or use ``async with``. It finds broker, store, tasks and tenant like
    `Client`. `store_timeout_s` limits each wait for the store. Items that are submitted while the store or the broker
    is busy with earlier items of this client share one transaction; a lone item is sent at once.
    """

    _runtime_type: ClassVar[type[Runtime]] = LoopRuntime
    _charges: ClassVar[bool] = True  # whether the limits of tenants hold for what is submitted

    def __init__(
        self,
        broker_url: str | None = None,
        store_url: str | None = None,
        *,
        catalogue: Catalogue | None = None,
        store_timeout_s: float = 30.0,
        tenant: str | None = None,
    ) -> None:
        limit_s = as_float(store_timeout_s)
        if limit_s is None or not 0 < limit_s <= TIMEOUT_MAX:
            raise InvalidInput("store_timeout_s", f"must be a number of seconds over 0, not {store_timeout_s!r:.80}")
        self._connection = Connection(broker_url, store_url)
        self._catalogue = catalogue
        self._schemas_until = 0.0  # monotonic
        self._tenant = self._connection.tenant if tenant is None else checked_tenant(tenant)
        self._runtime = self._runtime_type()
        self._life = Life()
        self._link = FleetLink(
            self._connection, self._runtime, self._life, store_timeout_s=limit_s, charges=self._charges
        )
        self._outbox = Outbox(self._link, self._runtime.deliver)
        self._abandoned = self._when_abandoned()
        at_fork("child", self._start_anew)

    def _when_abandoned(self) -> weakref.finalize[..., Life]:
        """Close the connections and threads once neither the client nor a handle of it exists."""
        finalizer = weakref.finalize(self._life, end_abandoned, self._outbox, self._link)
        finalizer.atexit = False  # accepted items are in the store, and the fleet publishes them
        return finalizer

    def _start_anew(self) -> None:
        self._abandoned.detach()
        self._runtime.start_anew()
        self._link.start_anew()
        self._outbox = Outbox(self._link, self._runtime.deliver)  # the parent sends the orders that wait
        self._abandoned = self._when_abandoned()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections. Accepted items are still computed, but handles can no longer be awaited."""

        self._abandoned.detach()

        def end() -> None:
            self._outbox.close()
            self._link.close()

        await self._runtime.close(end)

    async def catalogue(self) -> Catalogue:
        """Return the tasks that can be submitted. Raises ConfigurationError if the ``fleet.toml`` is invalid."""
        if self._catalogue is None:
            self._catalogue = await self._runtime.call(lambda: self._connection.catalogue)
        return self._catalogue

    async def _catalogue_for(self, tasks: str | Sequence[str]) -> Catalogue:
        """Return the catalogue, with the schemas of custom tasks if one of `tasks` is custom."""
        catalogue = await self.catalogue()
        names = (tasks,) if isinstance(tasks, str) else tasks if isinstance(tasks, Sequence) else ()
        if catalogue.custom and time.monotonic() > self._schemas_until and catalogue.custom.intersection(names):
            schemas = await self.ask(lambda store: store.declarations.schemas())
            self._schemas_until = time.monotonic() + SCHEMAS_FOR_S
            self._catalogue = catalogue = catalogue.with_schemas(schemas)
        return catalogue

    # --- one item ---

    def _ordered(
        self,
        catalogue: Catalogue,
        promise: Promise,
        task: str | Sequence[str],
        input: object,  # noqa: A002 - the public name
        streamed: bool = False,
        *,
        priority: Priority | str = "standard",
        deadline_s: float | None = None,
        params: Mapping[str, Any] | None = None,
        key: str | None = None,
        durable: bool = True,
        tenant: str | None = None,
    ) -> tuple[Request, Order, PendingResult]:
        request = Request.check(catalogue, task, priority=priority, deadline_s=deadline_s, params=params)
        if streamed:
            request = request.streamed()
        whose = self._whose(tenant)
        order, pending = lone_order(request, input, self._link, promise, key=key, durable=durable, tenant=whose)
        return request, order, pending

    @keywords_of(_ordered)
    async def submit(
        self,
        task: str | Sequence[str],
        input: object,  # noqa: A002
        **options: Unpack[ItemOptions],
    ) -> AsyncHandle:
        """Submit one input and return a handle to its result, once the item is accepted.

        Arguments and errors are those of `Client.submit`. If the calling task is cancelled meanwhile, the item may have
        been submitted or not.
        """
        promise = self._runtime.promise()
        await self._runtime.turn()
        request, order, pending = self._ordered(await self._catalogue_for(task), promise, task, input, **options)
        await self._send(order, promise)
        return AsyncHandle(self._link, pending, single=request.single)

    @keywords_of(_ordered, priority="interactive")
    async def stream(
        self,
        task: str,
        input: object,  # noqa: A002
        **options: Unpack[ItemOptions],
    ) -> AsyncTextStream:
        """Submit one input to a task that writes text, and return the pieces of its answer. See `Client.stream`."""
        promise = self._runtime.promise()
        options = {"priority": "interactive", **options}
        _, order, pending = self._ordered(await self.catalogue(), promise, task, input, streamed=True, **options)
        stream = AsyncTextStream(self._link)
        try:
            await stream.subscribe(pending)
            await self._send(order, promise)
            return stream.follow(AsyncHandle(self._link, pending, single=True))
        except BaseException:
            await stream.aclose()
            raise

    async def _send(self, order: Order, promise: Promise) -> None:
        with submitting(order.request.names, order.request.priority, items=1) as order.trace:
            self._outbox.put(order)
            try:
                await self._runtime.outcome(promise)
            except BaseException:
                promise.cancel()  # interrupted or cancelled: an order that is not sent yet is withdrawn
                raise

    # --- many items ---

    async def _accept(
        self,
        request: Request,
        inputs: Iterable[object] | AsyncIterable[object],
        plan: Plan | None = None,
        *,
        name: str | None = None,
        idempotency_key: str | None = None,
        ttl_s: float | None = None,
        on_error: OnError = "raise",
        on_accepted: Callable[[str, int], object] | None = None,
        on_rejected: Callable[[Rejected], object] | None = None,
        patience_s: float | None = None,
        tenant: str | None = None,
    ) -> tuple[str, Taken]:
        """Send all inputs, after the items that an earlier run with the same idempotency key submitted.

        Return the job's id and the `Taken`: the counts of earlier and rejected inputs.
        """
        check_many(inputs, on_error, *self._runtime.series)
        steps = None if plan is None else plan.as_json()
        job = new_job(
            request.priority,
            name,
            idempotency_key,
            ttl_s,
            tenant=self._whose(tenant),
            pipeline=steps,
            request=None if idempotency_key is None else request_text(request),
        )
        intake = Intake(request, on_error, on_rejected=on_rejected, span=1 if plan is None else TREE_SPAN)
        submission = Submission(request, job, on_accepted)
        sending = ChunkSender(self._runtime, self._outbox, submission, intake, checked(patience_s))
        await self._runtime.call(lambda: self._outbox.admission.look(submission.tenant))
        try:
            if idempotency_key is not None:
                intake.skip = submission.resume(await self.ask(lambda store: store.find_job(job)))
                intake.on_skipped = submission.recognise
            found = intake.skip
            await sending.all_of(inputs)
            if submission.new_job is not None:  # without any items: an empty job, finished from the start
                submission.resume(await self.ask(lambda store: store.find_or_create_job(job)))
            submission.refuse_if_fewer()
        except BaseException as error:
            submission.failed(error)
            raise
        return submission.job, Taken(found, intake.rejected, intake.rejected_count)

    def _whose(self, tenant: str | None) -> str:
        return self._tenant if tenant is None else checked_tenant(tenant)

    @keywords_of(_accept)
    async def submit_many(
        self,
        task: str | Sequence[str],
        inputs: Iterable[object] | AsyncIterable[object],
        *,
        priority: Priority | str = "bulk",
        deadline_s: float | None = None,
        params: Mapping[str, Any] | None = None,
        **options: Unpack[JobOptions],
    ) -> AsyncJob:
        """Submit inputs from an iterable or an async iterable, chunk by chunk, in constant memory.

        Arguments and errors are those of `Client.submit_many`. A plain iterable is iterated in the event loop, with
        pauses for other work. If it blocks, like a database cursor, wrap it in an async iterable.
        """
        catalogue = await self._catalogue_for(task)
        request = Request.check(catalogue, task, priority=priority, deadline_s=deadline_s, params=params)
        with submitting(request.names, request.priority):
            job, taken = await self._accept(request, inputs, **options)
        return AsyncJob(self._link, job, taken=taken)

    @keywords_of(_accept)
    async def submit_pipeline(
        self,
        pipeline: Pipeline,
        inputs: Iterable[object] | AsyncIterable[object],
        *,
        priority: Priority | str = "bulk",
        deadline_s: float | None = None,
        **options: Unpack[JobOptions],
    ) -> AsyncPipelineJob:
        """Submit inputs for the steps of a pipeline. See `Client.submit_pipeline`, and `submit_many` for the inputs."""
        catalogue = await self.catalogue()
        plan = pipeline.check(catalogue)
        request = first_request(catalogue, plan, priority=priority, deadline_s=deadline_s)
        with submitting(request.names, request.priority):
            job, taken = await self._accept(request, inputs, plan, **options)
        return AsyncPipelineJob(self._link, job, plan, taken=taken)

    # --- awaiting and reading ---

    async def as_completed(
        self, handles: Iterable[AsyncHandle], *, timeout_s: float | None = None
    ) -> AsyncIterator[Result]:
        """Yield the results of items as they arrive, a row for each item and task, including failed results.

        `producers.value` returns a result's output or raises its error. Raises ResultTimeout if `timeout_s` passes
        first.
        """
        timeout_s = timeout_of(timeout_s)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        arrived = self._runtime.queue()
        waiting = [(handle, self._runtime.promise()) for handle in handles]
        try:
            for handle, promise in waiting:
                promise.add_done_callback(arrived.put_nowait)
                handle.tell(promise)
            for _ in waiting:
                left_s = None if deadline is None else deadline - time.monotonic()
                try:
                    done = await self._runtime.take(arrived, left_s)
                except TimeoutError as error:
                    raise ResultTimeout(f"not all results arrived within {timeout_s} s; the work goes on") from error
                for row in done.result():
                    yield row
        finally:
            for handle, promise in waiting:
                handle.forget(promise)
                promise.cancel()

    async def job(self, id: str) -> AsyncJob:  # noqa: A002 - the public name
        """Return the job with this id. Raises UnknownJob."""
        await self.status(id)
        return AsyncJob(self._link, id)

    async def pipeline(self, id: str) -> AsyncPipelineJob:  # noqa: A002
        """Return the pipeline with this id. Raises UnknownJob, or InvalidInput if the job is not a pipeline."""
        return AsyncPipelineJob(self._link, id, plan_of_job(await self.status(id)))

    async def jobs(self, limit: int = 20, *, tenant: str | None = None) -> list[JobStatus]:
        """Return the newest jobs, newest first, for all tenants or a single tenant."""
        return await self.ask(lambda store: store.jobs(limit=limit, tenant=tenant))

    async def queued_work(self) -> list[QueuedWork]:
        """Return the waiting work by model and priority, with an estimate of the time that it takes."""
        return await self.ask(lambda store: store.flight.queued_work())

    async def refused_messages(self, limit: int = MOST_REFUSED) -> list[RefusedMessage]:
        """Return the newest messages that workers refused, each with its cause. Raises BrokerUnavailable."""
        return await self._runtime.call(lambda: self._link.refused_messages(limit))

    async def status(self, id: str) -> JobStatus:  # noqa: A002
        """Return a job's progress. Raises UnknownJob."""
        return await self._link.status(id)

    async def read_file(self, file: Mapping[str, Any]) -> bytes:
        """Return the bytes of a file to which a result refers, for example by ``output["image"]``.

        Raises FileUnavailable if the file is gone, BlobsUnavailable if its storage cannot be reached.
        """
        return await self._runtime.call(lambda: self._link.files.read(file))

    async def results(self, id: str) -> AsyncIterator[Result]:  # noqa: A002
        """Yield a job's stored results, by item and then task. Raises UnknownJob."""
        async for row in (await self.job(id)).results():
            yield row

    async def ask(self, question: Callable[[Store], T]) -> T:
        """Return `question(store)`, called with the client's store in a thread, for queries without a method here."""
        return await self._link.ask(question)

    async def live_nodes(self) -> list[LiveNode]:
        """Return the workers that are alive, with their models. Raises BrokerUnavailable."""
        return await self._runtime.call(self._link.live_nodes)

    async def ask_broker(self, question: Callable[[Redis], T]) -> T:
        """Return `question(redis)`, called in a thread. Raises BrokerUnavailable or Overloaded for Redis' errors."""
        return await self._runtime.call(lambda: self._link.ask_broker(question))

    async def check(self) -> None:
        """Check that broker and store answer. Raises BrokerUnavailable, StoreUnavailable or SchemaMismatch."""
        await self._runtime.call(self._link.check)
