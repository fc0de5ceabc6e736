"""The rows of the store as Python sees them. Times are Unix seconds; `output` and `error` are plain JSON values."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple, TypeAlias

#: How often an envelope is begun before it is given up.
MAX_ATTEMPTS = 20


class ResultState(StrEnum):
    """The four terminal states of a result. There is no other: a result exists once it is terminal."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class EnvelopeState(StrEnum):
    """The life of an envelope: ``accepted`` (in the outbox) → ``published`` → ``done``, or ``dead``.

    ``dead``: given up after too many attempts; its items failed, its payload is kept, `replay` puts it back.
    """

    ACCEPTED = "accepted"
    PUBLISHED = "published"
    DONE = "done"
    DEAD = "dead"


class Claim(StrEnum):
    """What a worker is to do with an envelope it has received.

    ``work``: it is this worker's now. ``done``: already stored; acknowledge it. ``cancelled``: it is this
    worker's, and its job was cancelled: store `cancelled` results without computing. ``held``: another
    worker has it under a lease that still runs; acknowledge this copy, since the reconciler publishes the
    envelope again should that worker die. ``dead``: too many attempts came to nothing: do not compute;
    commit its items as failed without an error of their own, and the envelope as `dead`: the store says why.
    ``unknown``: the store has no such envelope.
    """

    WORK = "work"
    DONE = "done"
    CANCELLED = "cancelled"
    HELD = "held"
    DEAD = "dead"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A job to create. `idempotency_key`, where given, is unique: creating it again finds the first.

    `ttl_s` is how long it is kept once finished; None leaves that to whoever calls `Store.purge`.
    """

    id: str
    priority: int
    name: str | None = None
    idempotency_key: str | None = None
    created_at: float
    ttl_s: float | None = None
    tenant: str = ""
    pipeline: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEnvelope:
    """An envelope for the outbox. `payload` is its encoded message, opaque here, of `content_type`."""

    id: str
    job: str
    model: str
    priority: int
    items: int
    results: int
    payload: bytes
    content_type: str
    created_at: float
    deadline_at: float | None = None
    lane: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One item and task in its terminal state; (`job`, `seq`, `task`) is the key.

    Succeeded: `output` (JSON) or `vector` (float32 bytes, little-endian) is set. Otherwise `error` is
    ``{"kind": …, "message": …}``. `tokens` is how long the model found the input (an image 1). The four times
    say when the item was queued by its producer, put in a micro-batch, computed, and stored; an item that never
    got that far has None there.
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
    tokens: int | None = None
    batch: str | None = None
    queued_at: float | None = None
    batched_at: float | None = None
    computed_at: float | None = None
    stored_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One micro-batch that ran: the flight recorder's row.

    `rows` went through the backbone for `items` items, `cached_rows` of them out of the feature cache; `tokens` are real,
    `padded_tokens` what was computed (for images both count rows). `heads` and `priorities` count items by name and by
    value. Before it the device did nothing for `idle_s`. `predicted_s` is what the batcher expected of `forward_s`, where
    it knew enough. `loads` models were loaded since the worker's batch before. `trace` says who was in it: ``{"formed_at": …, "jobs": [id …],
    "items": [[job, seq, row, priority, cost, waited_ms] …]}``, `job` an index into the ids, in the order of the batch.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedWork:
    """The unfinished durable items of a model, a priority and a lane, those under way included.

    `seconds_per_item` is what an item lately took of a device, divided by the number of workers that ran batches of its
    model; None where none ran lately. More urgent work of the same model goes first: what an item has to wait is the
    sum over the priorities down to its own.
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
    """A job and its progress. The counts are of results (one per item and task), except `items`."""

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

    @property
    def done(self) -> int:
        """Results that are terminal."""
        return self.succeeded + self.failed + self.cancelled + self.expired

    @property
    def finished(self) -> bool:
        return self.done >= self.total

    @property
    def state(self) -> str:
        """What people are shown; nothing depends on it."""
        if self.cancelled_at is not None and not self.finished:
            return "cancelling"
        if self.finished:
            return "cancelled" if self.cancelled else "finished" if self.total else "empty"
        return "running" if self.done else "waiting"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """Whose work it is: its share against other tenants' (`weight`), and its limits, None for none.

    `lane` is the queue of each model that carries its envelopes; the most that may be in flight is in items.
    """

    name: str
    lane: int
    weight: float = 1.0
    max_items_per_s: float | None = None
    max_in_flight: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """A model's settings as an operator declared them for the whole fleet; None for those of each worker's file.

    `generation` counts a model's declarations. `previous` are the settings that held before, and hold for a worker that starts
    until this one is `proven`. `file_digest` tells what the operator's own file said.
    """

    model: str
    generation: int
    settings: dict[str, Any] | None
    previous: dict[str, Any] | None
    proven: bool
    file_digest: str
    declared_at: float

    @property
    def established(self) -> dict[str, Any] | None:
        """The settings to start with."""
        return self.settings if self.proven else self.previous


#: A model, a priority and a lane: the envelopes that wait in one list of Redis.
Line: TypeAlias = tuple[str, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingEnvelope:
    """An envelope that the store still waits for, with what is needed to publish it again."""

    id: str
    job: str
    model: str
    priority: int
    payload: bytes
    content_type: str
    created_at: float
    attempts: int
    lane: int = 0


class Transaction(NamedTuple):
    """The results, batches, ends and claims of a worker's envelopes, for one transaction: all or nothing.

    A result that is stored already stays as it is and is not counted again. Envelopes in `dead` are given up: a failed result
    of theirs without an error gets an error that counts the attempts. Envelopes in `unlisted` were never in the outbox: their
    new results add to the size of their job. Envelopes in `stepped` belong to pipelines: more may follow from their results.

    Envelopes in `claims` are leased to `worker` until `leased_until`, unless they were begun `max_attempts` times. With
    `drop_inputs`, the payloads of `done` envelopes are deleted unless one of their results failed. `at` is now by default.
    """

    # a named tuple is made in a quarter of the time of a frozen dataclass, and a lone item makes four

    results: Sequence[Result] = ()
    done: Collection[str] = ()
    dead: Collection[str] = ()
    batches: Sequence[Batch] = ()
    unlisted: Collection[str] = ()
    stepped: Collection[str] = ()
    claims: Collection[str] = ()
    worker: str = ""
    leased_until: float = 0.0
    max_attempts: int = MAX_ATTEMPTS
    drop_inputs: bool = False
    at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """The outcome of a transaction: what to do with each claimed envelope, how many results were new, the (job, envelope) pairs
    now done, and the envelopes of pipelines that follow from it, which are accepted and wait to be published."""

    claims: Mapping[str, Claim] = field(default_factory=dict)
    inserted: int = 0
    done: tuple[tuple[str, str], ...] = ()
    followed: tuple[NewEnvelope, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """How much unfinished work one model, priority and state holds; its oldest envelope was created at `oldest_at`."""

    model: str
    priority: int
    state: EnvelopeState
    envelopes: int
    items: int
    results: int
    oldest_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """An envelope that was given up, or whose items partly failed: what it held and what became of it.

    `error` is what the last attempt to fail said, if it could say anything; `worker` made the last attempt.
    `failures` are its failed results, each with its own error, traceback and batch; the other items in
    `payload` were their company.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What a replay put back: envelopes into the outbox, and how many failed results made room for it."""

    envelopes: int = 0
    results: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Purged:
    """What a purge removed."""

    jobs: int = 0
    envelopes: int = 0
    payloads: int = 0
    results: int = 0
    batches: int = 0
