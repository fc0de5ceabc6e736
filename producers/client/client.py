"""The client: validate, write to the outbox, publish; and read back.

**What accepted means.** An envelope is first committed to the store and then published. Once it is committed, its
items get their results, whatever happens to Redis or to this process: the fleet's reconciler publishes what was
not. So when Redis fails after the commit, the submission stands and the call returns normally. When Redis is
found to be away before it, BrokerUnavailable is raised and nothing of that call (of that chunk, for
`submit_many`) was accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self

from producers.client.fleet_link import Link
from producers.client.group_commit import at_once
from producers.client.handles import Handle, Job, Taken
from producers.client.pipelines.pipeline import Pipeline, first_request
from producers.client.pipelines.pipeline_job import PipelineJob, plan_of_job
from producers.client.request import Request
from producers.client.sending.chunks import Sending
from producers.client.sending.full_fleet import checked
from producers.client.sending.intake import Intake, OnError, Rejected
from producers.client.sending.orders import Order
from producers.client.sending.outbox import Outbox
from producers.client.sending.submission import Submission, check_many, lone_order, new_job
from producers.client.text_streams import TextStream
from producers.wire.catalogue import Catalogue
from producers.wire.connection import Connection, checked_tenant
from producers.wire.errors import ArgosyError
from producers.wire.messages import Priority
from results_store.errors import StoreError
from results_store.records import JobStatus, QueuedWork, Result
from results_store.sql.item_numbering import TREE_SPAN


class Client:
    """Submits work and reads results. Thread-safe; connects when first used; close it, or use it in a ``with``.

    Without arguments it finds the broker and the store as `producers.wire.connection` says, and the tasks in the
    ``fleet.toml`` that ``ARGOSY_FLEET`` names, or else the built-in ones. `store_timeout_s` bounds each wait for the
    store. What several threads submit at the same time goes out together. `tenant` is whose work it is, unless a call says
    otherwise; the default is that of ``ARGOSY_TENANT``, or nobody in particular. Tenants of the same priority take turns.
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
        self._link = Link(self._connection, at_once, store_timeout_s=store_timeout_s)
        self._outbox = Outbox(self._link, at_once)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of all connections. What was accepted is computed all the same; handles cannot be awaited any more."""
        self._outbox.close()
        self._link.close()

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
        durable: bool = True,
        tenant: str | None = None,
    ) -> Handle:
        """Submit one input and return a handle to its result.

        `input` is text; or an image as bytes, as a path that the worker can read, or as a URL. `params` are the task's
        parameters, or, if `task` is a sequence, a mapping of them by task; the result has the same shape. `key` is kept
        with the result. Past `deadline_s` from now, what is not computed yet ends ``expired``.

        Without `durable`, the item goes straight to Redis and spares the store a write, and itself the wait for it. Its
        result is stored like any other; but if Redis or the worker loses it, nobody sends it again, and it never has one.

        Raises InvalidInput, BrokerUnavailable, StoreUnavailable or Overloaded; then nothing was accepted, except that
        Redis may have an item that is not `durable` when it breaks off in the middle.
        """
        request = Request.check(self.catalogue, task, priority=priority, deadline_s=deadline_s, params=params)
        promise: Future[None] = Future()
        order, pending = lone_order(
            request, input, self._link, promise, key=key, durable=durable, tenant=self._whose(tenant)
        )
        self._send(order, promise)
        return Handle(self._link, pending, single=request.single)

    def stream(
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
    ) -> TextStream:
        """Submit one input to a task that writes text, and return the pieces of the answer as they come, then its `result`.

        Arguments and errors are those of `submit`. Unless it is `durable`, nobody takes it up again if the worker dies. If
        nobody listens any more, the item is cancelled.
        """
        request = Request.check(self.catalogue, task, priority=priority, deadline_s=deadline_s, params=params)
        request = request.streamed()
        promise: Future[None] = Future()
        order, pending = lone_order(
            request, input, self._link, promise, key=key, durable=durable, tenant=self._whose(tenant)
        )
        stream = TextStream()
        stream.subscribe(self._link, pending)
        try:
            self._send(order, promise)
        except BaseException:
            stream.close()
            raise
        return stream.follow(Handle(self._link, pending, single=True))

    def submit_many(
        self,
        task: str | Sequence[str],
        inputs: Iterable[object],
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
    ) -> Job:
        """Submit inputs (plain, or as NewItem with key and parameters) chunk by chunk, in constant memory.

        `on_error` says what an invalid input does: ``raise`` stops there, with InvalidInput naming ``inputs[N]``;
        ``skip`` puts it aside in the job's `rejected`. `on_accepted` is called for each chunk, by the time the next is
        gathered, with the job's id and the items accepted so far by this call; `on_rejected` with each input that is put aside or ends the call.

        If the call fails midway, the chunks before stay accepted and are computed; the error's `job` and its note say
        so. Called again with the same `idempotency_key`, inputs and tasks, it goes on where it had stopped and
        adds nothing twice; two such calls must not run at the same time.

        `ttl_s` seconds after the job has finished, workers purge it with its results.

        While the fleet is full, it waits; with `patience_s`, no longer than that for a chunk, and 0 is not at all.

        Raises InvalidInput, BrokerUnavailable, StoreUnavailable, or Overloaded once the patience is at its end.
        """
        check_many(inputs, on_error, Iterable)
        request = Request.check(self.catalogue, task, priority=priority, deadline_s=deadline_s, params=params)
        job = new_job(request.priority, name, idempotency_key, ttl_s, tenant=self._whose(tenant))
        intake = Intake(request, on_error, on_rejected=on_rejected)
        submission = Submission(request, job, on_accepted)
        taken = self._accept(submission, intake, inputs, checked(patience_s))
        return Job(self._link, submission.job, taken=taken)

    def submit_pipeline(
        self,
        pipeline: Pipeline,
        inputs: Iterable[object],
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
    ) -> PipelineJob:
        """Submit inputs (plain, or as NewItem with a key) for the steps of a pipeline. Otherwise as `submit_many`.

        The whole is one job: its deadline, priority and tenant hold for every step, `cancel` ends all of it. A step's items
        go out as soon as what they are made of is stored, and the job's `total` grows with them. Raises InvalidInput also for a
        pipeline that cannot be, naming the step.
        """
        check_many(inputs, on_error, Iterable)
        plan = pipeline.check(self.catalogue)
        request = first_request(self.catalogue, plan, priority=priority, deadline_s=deadline_s)
        job = new_job(
            request.priority, name, idempotency_key, ttl_s, tenant=self._whose(tenant), pipeline=plan.as_json()
        )
        intake = Intake(request, on_error, on_rejected=on_rejected, span=TREE_SPAN)
        submission = Submission(request, job, on_accepted)
        taken = self._accept(submission, intake, inputs, checked(patience_s))
        return PipelineJob(self._link, submission.job, plan, taken=taken)

    def _accept(self, submission: Submission, intake: Intake, inputs: Iterable[object], limit_s: float) -> Taken:
        """Send all inputs, behind those that an earlier run with the same idempotency key had accepted."""
        self._outbox.admission.look(submission.tenant)
        if submission.created.idempotency_key is not None:
            intake.skip = submission.resume(self._link.store.create_job(submission.created))
        found = intake.skip
        try:
            Sending(self._outbox, submission, limit_s).all_of(inputs, intake)
            if submission.new_job is not None:  # no items at all: an empty job, finished from the start
                self._link.store.create_job(submission.new_job)
        except (ArgosyError, StoreError) as error:
            submission.failed(error)
            raise
        return Taken(found, intake.rejected, intake.rejected_count)

    def _send(self, order: Order, promise: Future[None]) -> None:
        self._outbox.put(order)
        try:
            promise.result()
        except BaseException:
            promise.cancel()  # interrupted by the user before it was sent: not sent any more
            raise

    def _whose(self, tenant: str | None) -> str:
        return self._tenant if tenant is None else checked_tenant(tenant)

    # --- reading ---

    def job(self, id: str) -> Job:  # noqa: A002 - what it is called everywhere else
        """Return the job with this id. Raises UnknownJob."""
        self.status(id)
        return Job(self._link, id)

    def pipeline(self, id: str) -> PipelineJob:  # noqa: A002
        """Return the pipeline with this id. Raises UnknownJob, or InvalidInput for a job that is none."""
        return PipelineJob(self._link, id, plan_of_job(self.status(id)))

    def jobs(self, limit: int = 20, *, tenant: str | None = None) -> list[JobStatus]:
        """Return the newest jobs, the newest first: everybody's, or one tenant's."""
        return self._link.store.jobs(limit=limit, tenant=tenant)

    def queued_work(self) -> list[QueuedWork]:
        """Return what waits of each model and priority, with an estimate of how long it takes."""
        return self._link.store.flight.queued_work()

    def status(self, id: str) -> JobStatus:  # noqa: A002
        """Return how far a job is. Raises UnknownJob."""
        return self._link.store.job(id)

    def read_file(self, file: Mapping[str, Any]) -> bytes:
        """Return the bytes of a file that a result refers to: of ``output["image"]``, say.

        Raises FileUnavailable if it is gone, BlobsUnavailable if its place cannot be reached.
        """
        return self._link.files.read(file)

    def results(self, id: str) -> Iterator[Result]:  # noqa: A002
        """Yield a job's results that are stored by now, by item and then task. Raises UnknownJob."""
        return self.job(id).results()
