"""The asyncio client: the same outbox, packing and notices as the client, awaited.

The event loop never waits for the network, a disk or a lock held over either: what does is done in a few threads (one that
commits and publishes, one that hears notices and reads results, however many items are awaited), and delivered to the
loop in batches. So Redis or the database being away, or silent, ends in BrokerUnavailable or StoreUnavailable after
their timeouts, while everything else in the loop goes on.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from producers.client.async_handles import AsyncHandle, AsyncJob
from producers.client.concurrency_limit import Turnstile
from producers.client.fleet_link import Link
from producers.client.group_commit import settle
from producers.client.handles import Taken
from producers.client.pipelines.async_pipeline_job import AsyncPipelineJob
from producers.client.pipelines.pipeline import Pipeline, first_request
from producers.client.pipelines.pipeline_job import plan_of_job
from producers.client.request import Request
from producers.client.sending.async_chunks import Sending
from producers.client.sending.full_fleet import checked
from producers.client.sending.intake import Intake, OnError, Rejected
from producers.client.sending.orders import Order
from producers.client.sending.outbox import Outbox
from producers.client.sending.submission import Submission, check_many, lone_order, new_job
from producers.client.text_streams import AsyncTextStream
from producers.client.thread_calls import Calls, Home
from producers.wire.catalogue import Catalogue
from producers.wire.connection import Connection, checked_tenant
from producers.wire.errors import ArgosyError, ResultTimeout
from producers.wire.messages import Priority
from results_store.errors import StoreError
from results_store.records import JobStatus, Result
from results_store.sql.item_numbering import TREE_SPAN

if TYPE_CHECKING:
    from results_store.store import Store

T = TypeVar("T")

#: So many calls of `submit` are served in one round of the loop.
SUBMITS = 64


class AsyncClient:
    """Submits work and awaits results, for one event loop. Connects when first used; close it, or use ``async with``.

        async with AsyncClient() as client:
            handle = await client.submit("sentiment", "a fine film", priority="interactive")
            print(await handle)
            job = await client.submit_many("topic", texts)
            async for row in job.as_completed():
                print(row.seq, row.output)

    It finds broker, store, tasks and tenant like `Client`. `store_timeout_s` bounds each wait for the store. What is submitted
    while the store or the broker is busy with something of this client goes out together with the next; a lone item at once.
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
        self._connection = Connection(broker_url, store_url)
        self._catalogue = catalogue
        self._tenant = self._connection.tenant if tenant is None else checked_tenant(tenant)
        self._home = Home()
        self._calls = Calls()
        self._turn = Turnstile(SUBMITS)
        self._link = Link(self._connection, self._home.deliver, store_timeout_s=store_timeout_s)
        self._outbox = Outbox(self._link, self._home.deliver)
        self._closing: threading.Thread | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of all connections. What was accepted is computed all the same; handles cannot be awaited any more."""
        loop = self._home.here()
        if self._closing is not None:
            return
        self._calls.refuse()
        closed = loop.create_future()

        def end() -> None:
            self._outbox.close()
            self._link.close()
            self._calls.close()
            self._home.deliver([partial(settle, closed, None)])

        self._closing = threading.Thread(target=end, name="argosy close", daemon=True)
        self._closing.start()
        await closed
        self._closing.join()

    # --- submitting ---

    async def submit(
        self,
        task: str | Sequence[str],
        input: object,  # noqa: A002 - the word for it everywhere else
        *,
        priority: Priority | str = "standard",
        deadline_s: float | None = None,
        params: Mapping[str, Any] | None = None,
        key: str | None = None,
        durable: bool = True,
        tenant: str | None = None,
    ) -> AsyncHandle:
        """Submit one input and return a handle to its result, once it is accepted. See `Client.submit`.

        A task that is cancelled in here may have submitted the item or not.

        Raises InvalidInput, BrokerUnavailable, StoreUnavailable or Overloaded.
        """
        promise = self._home.here().create_future()
        await self._turn()
        request = Request.check(await self._tasks(), task, priority=priority, deadline_s=deadline_s, params=params)
        order, pending = lone_order(
            request, input, self._link, promise, key=key, durable=durable, tenant=self._whose(tenant)
        )
        await self._send(order, promise)
        return AsyncHandle(self._link, self._calls, pending, single=request.single)

    async def stream(
        self,
        task: str,
        input: object,  # noqa: A002 - the word for it everywhere else
        *,
        priority: Priority | str = "interactive",
        deadline_s: float | None = None,
        params: Mapping[str, Any] | None = None,
        key: str | None = None,
        durable: bool = True,
        tenant: str | None = None,
    ) -> AsyncTextStream:
        """Submit one input to a task that writes text, and return the pieces of the answer as they come, then its `result`.

        Arguments and errors are those of `submit`. Unless it is `durable`, nobody takes it up again if the worker dies. If
        nobody listens any more, the item is cancelled.
        """
        promise = self._home.here().create_future()
        request = Request.check(await self._tasks(), task, priority=priority, deadline_s=deadline_s, params=params)
        request = request.streamed()
        order, pending = lone_order(
            request, input, self._link, promise, key=key, durable=durable, tenant=self._whose(tenant)
        )
        stream = AsyncTextStream(self._calls)
        await stream.subscribe(self._link, pending)
        try:
            await self._send(order, promise)
        except BaseException:
            await stream.aclose()
            raise
        return stream.follow(AsyncHandle(self._link, self._calls, pending, single=True))

    async def submit_many(
        self,
        task: str | Sequence[str],
        inputs: Iterable[object] | AsyncIterable[object],
        *,
        priority: Priority | str = "bulk",
        name: str | None = None,
        idempotency_key: str | None = None,
        ttl_s: float | None = None,
        deadline_s: float | None = None,
        params: Mapping[str, Any] | None = None,
        on_error: OnError = "raise",
        on_accepted: Callable[[str, int], object] | None = None,
        on_rejected: Callable[[Rejected], object] | None = None,
        patience_s: float | None = None,
        tenant: str | None = None,
    ) -> AsyncJob:
        """Submit inputs from an iterable or an async iterable, chunk by chunk, in constant memory. See `Client.submit_many`.

        An iterable that is not async is iterated in the event loop, with room for others in between: one that blocks,
        such as a database cursor, should be wrapped in an async one.

        `ttl_s` seconds after the job has finished, workers purge it with its results.

        Raises InvalidInput, BrokerUnavailable, StoreUnavailable, or Overloaded once `patience_s` is over.
        """
        check_many(inputs, on_error, Iterable, AsyncIterable)
        self._home.here()
        catalogue = await self._tasks()
        request = Request.check(catalogue, task, priority=priority, deadline_s=deadline_s, params=params)
        job = new_job(request.priority, name, idempotency_key, ttl_s, tenant=self._whose(tenant))
        intake = Intake(request, on_error, on_rejected=on_rejected)
        submission = Submission(request, job, on_accepted)
        taken = await self._accept(submission, intake, inputs, checked(patience_s))
        return AsyncJob(self._link, self._calls, submission.job, taken=taken)

    async def submit_pipeline(
        self,
        pipeline: Pipeline,
        inputs: Iterable[object] | AsyncIterable[object],
        *,
        priority: Priority | str = "bulk",
        name: str | None = None,
        idempotency_key: str | None = None,
        ttl_s: float | None = None,
        deadline_s: float | None = None,
        on_error: OnError = "raise",
        on_accepted: Callable[[str, int], object] | None = None,
        on_rejected: Callable[[Rejected], object] | None = None,
        patience_s: float | None = None,
        tenant: str | None = None,
    ) -> AsyncPipelineJob:
        """Submit inputs for the steps of a pipeline. See `Client.submit_pipeline`, and `submit_many` for the inputs."""
        check_many(inputs, on_error, Iterable, AsyncIterable)
        self._home.here()
        catalogue = await self._tasks()
        plan = pipeline.check(catalogue)
        request = first_request(catalogue, plan, priority=priority, deadline_s=deadline_s)
        job = new_job(
            request.priority, name, idempotency_key, ttl_s, tenant=self._whose(tenant), pipeline=plan.as_json()
        )
        intake = Intake(request, on_error, on_rejected=on_rejected, span=TREE_SPAN)
        submission = Submission(request, job, on_accepted)
        taken = await self._accept(submission, intake, inputs, checked(patience_s))
        return AsyncPipelineJob(self._link, self._calls, submission.job, plan, taken=taken)

    async def _accept(
        self,
        submission: Submission,
        intake: Intake,
        inputs: Iterable[object] | AsyncIterable[object],
        limit_s: float,
    ) -> Taken:
        """Send all inputs, behind those that an earlier run with the same idempotency key had accepted."""
        await self._calls(lambda: self._outbox.admission.look(submission.tenant))
        try:
            if submission.created.idempotency_key is not None:
                intake.skip = submission.resume(await self._create_job(submission))
            found = intake.skip
            await Sending(self._outbox, submission, limit_s).all_of(inputs, intake)
            if submission.new_job is not None:  # no items at all: an empty job, finished from the start
                await self._create_job(submission)
        except (ArgosyError, StoreError) as error:
            submission.failed(error)
            raise
        return Taken(found, intake.rejected, intake.rejected_count)

    async def _send(self, order: Order, promise: asyncio.Future[None]) -> None:
        self._outbox.put(order)
        await promise  # cancelled with the task; then it is not sent any more, if it was not yet

    async def _create_job(self, submission: Submission) -> JobStatus:
        return await self._calls(lambda: self._link.store.create_job(submission.created))

    def _whose(self, tenant: str | None) -> str:
        return self._tenant if tenant is None else checked_tenant(tenant)

    # --- awaiting and reading ---

    async def as_completed(
        self, handles: Iterable[AsyncHandle], *, timeout_s: float | None = None
    ) -> AsyncIterator[Result]:
        """Yield the results of items in the order in which they come, one for each item and task; failed ones too.

        `producers.value` gives a result's output, or raises its error. Raises ResultTimeout if `timeout_s` passes first.
        """
        loop = self._home.here()
        deadline = None if timeout_s is None else loop.time() + timeout_s
        arrived: asyncio.Queue[asyncio.Future[list[Result]]] = asyncio.Queue()
        waiting = [(handle, loop.create_future()) for handle in handles]
        try:
            for handle, promise in waiting:
                promise.add_done_callback(arrived.put_nowait)
                handle.tell(promise)
            for _ in waiting:
                try:
                    async with asyncio.timeout_at(deadline):
                        done = await arrived.get()
                except TimeoutError as error:
                    raise ResultTimeout(f"not all results came within {timeout_s} s; the work goes on") from error
                for row in done.result():
                    yield row
        finally:
            for handle, promise in waiting:
                handle.forget(promise)
                promise.cancel()

    async def job(self, id: str) -> AsyncJob:  # noqa: A002 - what it is called everywhere else
        """Return the job with this id. Raises UnknownJob."""
        await self.status(id)
        return AsyncJob(self._link, self._calls, id)

    async def pipeline(self, id: str) -> AsyncPipelineJob:  # noqa: A002
        """Return the pipeline with this id. Raises UnknownJob, or InvalidInput for a job that is none."""
        return AsyncPipelineJob(self._link, self._calls, id, plan_of_job(await self.status(id)))

    async def jobs(self, limit: int = 20, *, tenant: str | None = None) -> list[JobStatus]:
        """Return the newest jobs, the newest first: everybody's, or one tenant's."""
        self._home.here()
        return await self._calls(lambda: self._link.store.jobs(limit=limit, tenant=tenant))

    async def status(self, id: str) -> JobStatus:  # noqa: A002
        """Return how far a job is. Raises UnknownJob."""
        self._home.here()
        return await self._calls(lambda: self._link.store.job(id))

    async def read_file(self, file: Mapping[str, Any]) -> bytes:
        """Return the bytes of a file that a result refers to: of ``output["image"]``, say.

        Raises FileUnavailable if it is gone, BlobsUnavailable if its place cannot be reached.
        """
        self._home.here()
        return await self._calls(lambda: self._link.files.read(file))

    async def results(self, id: str) -> AsyncIterator[Result]:  # noqa: A002
        """Yield a job's results that are stored by now, by item and then task. Raises UnknownJob."""
        async for row in (await self.job(id)).results():
            yield row

    async def ask(self, question: Callable[[Store], T]) -> T:
        """Return what `question` returns for the client's store, asked in a thread: for all that has no method here."""
        self._home.here()
        return await self._calls(lambda: question(self._link.store))

    async def check(self) -> None:
        """Ask broker and store whether they are there. Raises BrokerUnavailable, StoreUnavailable or SchemaMismatch."""
        self._home.here()
        await self._calls(self._link.check)

    async def catalogue(self) -> Catalogue:
        """Return the tasks that can be submitted. Raises ConfigurationError if their file is wrong."""
        self._home.here()
        return await self._tasks()

    async def _tasks(self) -> Catalogue:
        if self._catalogue is None:
            self._catalogue = await self._calls(lambda: self._connection.catalogue)
        return self._catalogue
