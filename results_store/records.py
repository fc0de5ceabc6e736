"""The rows of the store as Python objects. Times are Unix seconds; `output` and `error` are plain JSON values."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, NamedTuple, TypeAlias

#: The number of attempts that ended with an error, after which an envelope is given up.
MAX_ATTEMPTS = 20

#: The number of deaths after which an envelope is run alone in its worker.
ALONE_AFTER_DEATHS = 3

#: The suspect of an envelope that is run alone with all its items together.
ALL_ITEMS = -1


class ResultState(StrEnum):
    """The four terminal states of a result. A result exists once it is terminal, so there are no other states."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class EnvelopeState(StrEnum):
    """The states of an envelope: ``accepted`` (in the outbox) → ``published`` → ``done``, or ``dead``.

    A ``dead`` envelope was given up after too many attempts failed. Its items failed; its payload is kept for `replay`.
    """

    ACCEPTED = "accepted"
    PUBLISHED = "published"
    DONE = "done"
    DEAD = "dead"


class Claim(StrEnum):
    """The store's answer to a worker that received an envelope.

    - ``work``: the envelope is this worker's now.
    - ``done``: already stored; acknowledge it.
    - ``cancelled``: it is this worker's, and its job was cancelled; store `cancelled` results without computing.
    - ``held``: another worker has it under a valid lease. Acknowledge this copy; if that worker dies, the reconciler
      publishes the envelope again.
    - ``dead``: too many attempts failed; do not compute. Commit its items as failed without an error, and the envelope
      as `dead`; the store adds the error.
    - ``waiting``: it waits for its time, or is paused. Acknowledge this copy; a reconciler publishes it then.
    - ``unknown``: the store has no such envelope.
    """

    WORK = "work"
    DONE = "done"
    CANCELLED = "cancelled"
    HELD = "held"
    DEAD = "dead"
    WAITING = "waiting"
    UNKNOWN = "unknown"


class PostponedResult(NamedTuple):
    """A result of an item and task that comes later: at `due_at`, or with None at the end of a pause.

    It failed `tries` times, the first time at `since`. Times are by the store's clock. A result that a replay asks for
    has neither.
    """

    seq: int
    task: str
    tries: int
    since: float
    due_at: float | None


class Postponement(NamedTuple):
    """What an attempt leaves for later; all other results of the envelope are stored.

    `paused_by` is the pause that some of the results wait for, and `error` that of the last result that failed.
    """

    results: Sequence[PostponedResult]
    paused_by: str | None = None
    error: dict[str, Any] | None = None

    @property
    def due_at(self) -> float | None:
        """The time at which the first result is due."""
        return min((result.due_at for result in self.results if result.due_at is not None), default=None)


class RetriedWork(NamedTuple):
    """The unfinished envelopes with results that are tried again, the next at `due_at`, and the last error of one."""

    envelopes: int
    due_at: float
    message: str

    def __str__(self) -> str:
        number = f"results of {self.envelopes:,} envelopes are" if self.envelopes > 1 else "results of an envelope are"
        return f"{number} tried again: {self.message}"


class Claimed(NamedTuple):
    """The answer to a claim. `now` is the time of the claim by the store's clock, in Unix seconds.

    Of an envelope with work to do, cancelled or dead, `payload` is the stored envelope, of `content_type`: a worker
    computes this one, whatever the message holds. `deadline_at` is by the store's clock. An envelope whose workers died
    several times without an explanation is to be run `alone` in its worker, and `one_by_one` if a worker died of that.
    If earlier attempts have postponed results, only the `postponed` ones are missing. Tasks in `paused_tasks` must not
    be started. `priority` is the envelope's now, which an operator may have changed.
    """

    verdict: Claim
    payload: bytes | None = None
    content_type: str = ""
    deadline_at: float | None = None
    now: float = 0.0
    alone: bool = False
    one_by_one: bool = False
    postponed: Sequence[PostponedResult] = ()
    paused_tasks: Sequence[str] = ()
    priority: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A job to create. `idempotency_key`, if given, is unique: creating the job again returns the first job.

    The store's clock sets `created_at` if that is None. `ttl_s` is the time for which the finished job is kept. With
    None, callers of `Store.purge` decide. `request` is the producer's text of the tasks and parameters that belong
    to the idempotency key.
    """

    id: str
    priority: int
    name: str | None = None
    idempotency_key: str | None = None
    created_at: float | None = None
    ttl_s: float | None = None
    tenant: str = ""
    pipeline: dict[str, Any] | None = None
    request: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEnvelope:
    """An envelope for the outbox. `payload` is its encoded message, opaque to the store, of `content_type`.

    The store's clock sets `created_at` if that is None. `deadline_at` is by the store's clock; with `deadline_s`, it is
    that long after `created_at`.
    """

    id: str
    job: str
    model: str
    priority: int
    items: int
    results: int
    payload: bytes
    content_type: str
    created_at: float | None = None
    deadline_at: float | None = None
    deadline_s: float | None = None
    lane: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """An item and task in its terminal state; (`job`, `seq`, `task`) is the key.

    A succeeded result has `output` (JSON) or `vector` (float32 bytes, little-endian). Any other has the `error`
    ``{"kind": …, "message": …}``. `precision` is that of the pass (``fp32``, ``bf16`` …), None if the model's class
    decides it, or if an older version stored the row. `tokens` is the model's length of the input (1 for an image). The
    times are those of being queued by the producer, put into a micro-batch, computed, and stored; None for a stage that
    the item never reached.
    """

    job: str
    seq: int
    task: str
    envelope: str
    state: ResultState
    key: str | None = None
    output: Any = None
    vector: bytes | None = None
    error: dict[str, Any] | None = None
    model: str | None = None
    model_revision: str | None = None
    precision: str | None = None
    tokens: int | None = None
    batch: str | None = None
    queued_at: float | None = None
    batched_at: float | None = None
    computed_at: float | None = None
    stored_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultChunk:
    """Succeeded results of an envelope's items for a task, as columns; (`job`, `envelope`, `task`) is the key.

    `seqs` ascend; `tokens`, `batch_of` and `keys` have a value for each of them, and `keys` is None if no item has a
    key. `batches` are micro-batches, as (id, batched_at, computed_at), and `batch_of` are places in them. The outputs
    are lists of labels with scores, or vectors. `codes`, which are places in `labels`, and `scores` have the labels of
    all items one after another, `widths` of them for each item. `vectors` are float32 bytes, little-endian, of shape
    (items, dimension). The other fields are those of a `Result`.
    """

    job: str
    envelope: str
    task: str
    seqs: Sequence[int]
    tokens: Sequence[int | None]
    batches: Sequence[tuple[str | None, float | None, float | None]]
    batch_of: Sequence[int]
    keys: Sequence[str | None] | None = None
    labels: Sequence[str] = ()
    widths: int | Sequence[int] = 1
    codes: Sequence[int] = ()
    scores: Sequence[float] = ()
    vectors: bytes | None = None
    dimension: int | None = None
    model: str | None = None
    model_revision: str | None = None
    precision: str | None = None
    queued_at: float | None = None
    stored_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A micro-batch that ran: the flight recorder's row.

    `rows` went through the backbone for `items` items; `cached_rows` of them came from the feature cache. `tokens` are
    real, `padded_tokens` were computed (for images both count rows). `heads` and `priorities` count items by name and
    by value. The device was idle for `idle_s` before the batch. `predicted_s` is the batcher's prediction of
    `forward_s`, if it had one. `host_s` is the part of `idle_s` in which the device waited for the host, since its node
    held many envelopes; None if it held few. `loads` counts the models loaded since the worker's batch before. `trace`
    lists the items: ``{"formed_at": …, "jobs": [id …], "items": [[job, seq, row, priority, cost, waited_ms] …]}``,
    where `job` is an index into the ids, in the order of the batch.
    """

    id: str
    model: str
    model_revision: str
    device: str
    worker: str
    started_at: float
    forward_s: float
    queue_wait_s: float
    items: int
    rows: int
    tokens: int
    padded_tokens: int
    heads: dict[str, int] = field(default_factory=dict)
    priorities: dict[str, int] = field(default_factory=dict)
    idle_s: float = 0.0
    predicted_s: float | None = None
    cached_rows: int = 0
    loads: int = 0
    trace: dict[str, Any] | None = None
    host_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedWork:
    """The unfinished durable items of a model, priority and lane, including items under way, without paused ones.

    `seconds_per_item` is the recent device time of an item, divided by the number of workers that ran batches of its
    model; None if no batch ran recently. More urgent work of the model goes first, so an item waits for the sum over
    the priorities down to its own.
    """

    model: str
    priority: int
    items: int
    seconds_per_item: float | None
    lane: int = 0

    @property
    def seconds(self) -> float | None:
        return None if self.seconds_per_item is None else self.items * self.seconds_per_item


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatus:
    """A job and its progress. The counts are of results (one per item and task), except `items`.

    `progressed_at` is the time of its newest result, if a worker of this version stored it.
    """

    id: str
    name: str | None
    priority: int
    created_at: float
    finished_at: float | None
    cancelled_at: float | None
    items: int
    total: int
    succeeded: int
    failed: int
    cancelled: int
    expired: int
    ttl_s: float | None = None
    tenant: str = ""
    pipeline: dict[str, Any] | None = None
    progressed_at: float | None = None

    @property
    def done(self) -> int:
        """The number of terminal results."""
        return self.succeeded + self.failed + self.cancelled + self.expired

    @property
    def finished(self) -> bool:
        return self.done >= self.total

    @property
    def state(self) -> str:
        """The state to show to people; no code depends on it."""
        if self.cancelled_at is not None and not self.finished:
            return "cancelling"
        if self.finished:
            return "cancelled" if self.cancelled else "finished" if self.total else "empty"
        return "running" if self.done else "waiting"


class FoundJob(NamedTuple):
    """A job as a submission finds it: with the marks of the submission that created it, if they are known.

    `fingerprint` is the producer's text of the rows; older versions add rows without it.
    """

    status: JobStatus
    request: str | None = None
    fingerprint: str | None = None


#: The jobs that a list of jobs can be limited to: those with unfinished results, or with results in a state.
JobFilter: TypeAlias = Literal["unfinished", "succeeded", "failed", "cancelled", "expired"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """A tenant: its share against other tenants (`weight`), and its limits (None for no limit).

    `lane` is the queue of each model for the tenant's envelopes. `max_in_flight` is in items.
    """

    name: str
    lane: int
    weight: float = 1.0
    max_items_per_s: float | None = None
    max_in_flight: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """A model's settings, declared by an operator for the whole fleet.

    A setting of None is taken from each worker's file. `generation` counts a model's declarations. `previous` are the
    settings before; a starting worker uses them until this declaration is `proven`. `file_digest` is the digest of the
    operator's own file. `schemas` are the JSON Schemas of the `input` and the `output` of its tasks; for them a
    model that was never declared has a row of generation 0.
    """

    model: str
    generation: int
    settings: dict[str, Any] | None
    previous: dict[str, Any] | None
    proven: bool
    file_digest: str
    declared_at: float
    schemas: dict[str, Any] | None = None

    @property
    def established(self) -> dict[str, Any] | None:
        """The settings with which a worker starts."""
        return self.settings if self.proven else self.previous


#: What can be paused.
PauseKind: TypeAlias = Literal["model", "task", "tenant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """A model, task or tenant that an operator has paused at `paused_at`, by the store's clock.

    `waiting` counts the envelopes that a worker has found paused; others may still wait in Redis.
    """

    kind: PauseKind
    name: str
    reason: str
    paused_at: float
    waiting: int = 0

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r} is paused{f' ({self.reason})' if self.reason else ''}"


#: A model, a priority and a lane: the envelopes of a list in Redis.
Line: TypeAlias = tuple[str, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingEnvelope:
    """An envelope that the store still waits for, with the data needed to publish it again.

    Its payload is empty if its inputs were deleted. It is published nevertheless, so that its attempts come to an end.
    """

    id: str
    job: str
    model: str
    priority: int
    payload: bytes
    content_type: str
    created_at: float
    accepted_at: float
    attempts: int
    lane: int = 0
    is_cancelled: bool = False


class CachedResult(NamedTuple):
    """A succeeded result for later jobs. `digest` is that of tenant, model, task, parameters and input.

    `job` and `envelope` have computed it.
    """

    digest: str
    job: str
    envelope: str
    output: Any
    vector: bytes | None
    precision: str | None
    tokens: int | None


class Transaction(NamedTuple):
    """The results, batches, ends and claims of a worker's envelopes, for a transaction: all or nothing.

    An existing result stays as it is and is not counted again. Chunks are of envelopes that are neither `unlisted` nor
    `stepped`; the results of a chunk that are not all new, or whose envelope is gone, are stored as rows.

    Envelopes in `dead` are given up: their failed results without an error get an error that counts the attempts.
    Envelopes in `unlisted` were never in the outbox: their new results add to the size of their job. Envelopes in
    `stepped` belong to pipelines: their results may lead to more.

    Envelopes in `postponed` are not finished: they wait, without a lease, until the first of these results is due.

    Results in `cached` are kept for later jobs, unless the inputs of their envelopes are gone.

    Envelopes in `claims` are leased to `worker` for `lease_s`, unless `max_attempts` attempts failed. The message of an
    envelope in `priorities` has this priority: an envelope that has become less urgent waits for its other message.
    With `drop_inputs`, the payloads of `done` envelopes are deleted unless one of their results failed. A time in `at`
    replaces the store's clock. The writer stores an `urgent` part before the others.
    """

    # a named tuple is made in a quarter of the time of a frozen dataclass, and a lone item makes four

    results: Sequence[Result] = ()
    chunks: Sequence[ResultChunk] = ()
    done: Collection[str] = ()
    dead: Collection[str] = ()
    batches: Sequence[Batch] = ()
    unlisted: Collection[str] = ()
    stepped: Collection[str] = ()
    postponed: Mapping[str, Postponement] = {}
    cached: Sequence[CachedResult] = ()
    claims: Collection[str] = ()
    priorities: Mapping[str, int] = {}
    worker: str = ""
    lease_s: float = 0.0
    max_attempts: int = MAX_ATTEMPTS
    drop_inputs: bool = False
    at: float | None = None
    urgent: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """The outcome of a transaction.

    `claims` has the answer for each claimed envelope, `inserted` the number of new results, `done` the finished
    (job, envelope) pairs. `followed` are envelopes of pipelines that were derived: accepted, and to be published.
    `stored_at` is the time of new results of `unlisted` envelopes.
    """

    claims: Mapping[str, Claimed] = field(default_factory=dict)
    inserted: int = 0
    done: tuple[tuple[str, str], ...] = ()
    followed: tuple[NewEnvelope, ...] = ()
    stored_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """The amount of unfinished work of a model, priority and state. Its oldest envelope was created at `oldest_at`."""

    model: str
    priority: int
    state: EnvelopeState
    envelopes: int
    items: int
    results: int
    oldest_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """The unfinished envelopes of a model and priority: held by workers, and waiting since `oldest_at` at most.

    Paused envelopes, and those whose time has not come, are neither.
    """

    model: str
    priority: int
    held: int
    waiting: int
    oldest_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """An envelope that was given up, or has failed items, with its payload and its errors.

    `error` is the error of the last failed attempt, if it could be recorded; `worker` made the last attempt. `failures`
    are its failed results, each with its own error, traceback and batch. The other items in `payload` did not fail.
    """

    id: str
    job: str
    model: str
    priority: int
    state: EnvelopeState
    payload: bytes
    content_type: str
    created_at: float
    finished_at: float
    attempts: int
    worker: str | None
    error: dict[str, Any] | None
    failures: tuple[Result, ...]


@dataclass(frozen=True, slots=True)
class FailureCount:
    """The number of failed results of a task with a kind of error, and one of their messages."""

    task: str
    kind: str
    count: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """The outcome of a replay: the envelopes put back into the outbox, and the number of deleted failed results."""

    envelopes: int = 0
    results: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Purged:
    """The number of rows that a purge removed."""

    jobs: int = 0
    envelopes: int = 0
    payloads: int = 0
    results: int = 0
    batches: int = 0
    celery_results: int = 0
