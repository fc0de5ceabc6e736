"""The orders of a call of `submit` or `submit_many`. The clients share this code and differ only in how they wait."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from producers.client.group_commit import Promise
from producers.client.pending_results import PendingResult
from producers.client.request import NewItem, Request
from producers.client.sending.fingerprint import Fingerprint, request_difference
from producers.client.sending.orders import Order, shared_deadline
from producers.wire.errors import ArgosyError, InvalidInput, KeyConflict, KeyOfCancelledJob
from producers.wire.forms import as_float, plain, sendable
from producers.wire.messages import Item, Priority, new_id
from producers.wire.packing import weight
from producers.wire.tracing.spans import carried
from results_store.records import FoundJob, NewJob

if TYPE_CHECKING:
    from producers.client.fleet_link import FleetLink


#: The most characters of a job's name, which each list of jobs repeats, and of its idempotency key, which is indexed.
MOST_JOB_NAME = 500

#: NUL, for which the store keeps another character, and the mark between a tenant and its keys.
_SEPARATORS = frozenset("\0\x1f")


def lone_order(
    request: Request,
    input: object,  # noqa: A002 - the word for it everywhere else
    link: FleetLink,
    promise: Promise,
    *,
    key: str | None,
    durable: bool,
    tenant: str,
) -> tuple[Order, PendingResult]:
    """Return the order for one input, in the tenant's stream, and its awaited results. Raises InvalidInput."""
    if not isinstance(durable, bool):  # no worker could read the envelope
        raise InvalidInput("durable", f"must be True or False, not {durable!r:.80}")
    item = request.item(0, NewItem(input, key), field="input")
    stream = link.stream(tenant)
    # numbered after the check: a refused input leaves no gap
    item = msgspec.structs.replace(item, seq=next(stream.seq))
    deadline_at = shared_deadline(request, time.monotonic())
    pending = PendingResult(stream.job.id, item.seq, item.tasks, key=key, durable=durable)
    order = Order(request, [item], stream.job.id, promise, deadline_at, durable, tenant, pending=pending)
    order.size = weight(item.input)
    return order, pending


class Submission:
    """A submission of many items, and its accepted part.

    Its job is created with its first chunk, so that a submission that is refused at once leaves nothing.
    """

    def __init__(self, request: Request, job: NewJob, on_accepted: Callable[[str, int], object] | None = None) -> None:
        self.job = job.id
        self.tenant = job.tenant
        self.new_job: NewJob | None = job
        self._request = request
        self._request_text = job.request
        self._pipeline = job.pipeline
        self._on_accepted = on_accepted
        self._trace = carried()
        self._deadline_at = request.deadline_at(time.monotonic())
        self._expected_rows: int | None = None
        self._accepted = 0
        self._found: FoundJob | None = None
        self._unrecognised = 0  # items that the job has and that did not come yet
        self._fingerprint = self._fingerprint_then = Fingerprint()  # of the accepted items, and with the chunk sent

    def resume(self, found: FoundJob | None) -> int:
        """Continue the job that has the idempotency key, if there is one; return the number of its items.

        Raises KeyConflict if the job has other steps, tasks or parameters, and KeyOfCancelledJob if it was cancelled:
        further items would never be computed. `recognise` compares the rows.
        """
        # each chunk names the rows that it expects in the job, so that two runs cannot mix
        self._expected_rows = 0 if found is None else found.status.items
        if found is None:
            return 0
        if found.status.pipeline != self._pipeline:
            raise _conflict(found.status.id, "which has other steps")
        if found.request is not None and (difference := request_difference(found.request, self._request_text or "")):
            raise _conflict(found.status.id, f"which differs: {difference}")
        if found.status.cancelled_at is not None:
            raise KeyOfCancelledJob(found.status.id)
        self.job, self.new_job = found.status.id, None
        self._found = found
        self._unrecognised = found.status.items // len(self._request.models)  # an item has a row for every model
        return self._unrecognised

    def recognise(self, item: Item) -> None:
        """Take the next item of those that the job has. Raises KeyConflict after the last, if the job has others."""
        self._fingerprint.add([item])
        self._unrecognised -= 1
        if not self._unrecognised:
            self._compare()

    def _compare(self) -> None:
        """Compare the rows, unless an older version added some of them."""
        found = self._found
        assert found is not None
        kept, here = found.fingerprint, self._fingerprint.text(found.status.items)
        known = found.request is not None and kept is not None and kept.startswith(f"{found.status.items}:")
        if known and kept != here:
            raise _conflict(
                found.status.id, f"whose tasks are the same ({self._tasks}), but whose rows differ from these"
            )

    def refuse_if_fewer(self) -> None:
        """Raise KeyConflict if the inputs ended before the items that the job has."""
        if self._unrecognised and self._found is not None and self._found.request is not None:
            more = f"which has {self._unrecognised:,} more rows than these"
            raise _conflict(self._found.status.id, f"whose tasks are the same ({self._tasks}), but {more}")

    @property
    def _tasks(self) -> str:
        return ", ".join(self._request.names)

    def order(self, chunk: Sequence[Item], promise: Promise) -> Order:
        """Return the order for the next chunk. The chunk before must have been accepted."""
        fingerprint = None
        if self._expected_rows is not None:
            self._fingerprint_then = self._fingerprint.copy()
            self._fingerprint_then.add(chunk)
            fingerprint = self._fingerprint_then.text(self._expected_rows + len(chunk) * len(self._request.models))
        return Order(
            self._request,
            chunk,
            self.job,
            promise,
            self._deadline_at,
            tenant=self.tenant,
            pipeline=self._pipeline is not None,
            new_job=self.new_job,
            expected_rows=self._expected_rows,
            fingerprint=fingerprint,
            trace=self._trace,
        )

    def accepted(self, chunk: Sequence[Item]) -> None:
        """Note that a chunk was accepted."""
        self.new_job = None
        if self._expected_rows is not None:
            self._expected_rows += len(chunk) * len(self._request.models)
            self._fingerprint = self._fingerprint_then
        self._accepted += len(chunk)
        if self._on_accepted is not None:
            self._on_accepted(self.job, self._accepted)

    def failed(self, error: BaseException) -> None:
        """Name the accepted items in the error's note, and their job as the `job` of an ArgosyError."""
        if self._accepted:
            least = "" if isinstance(error, Exception) else "at least "  # an interrupt leaves a chunk under way
            error.add_note(f"job {self.job} keeps {least}the {self._accepted:,} items accepted before this")
            if isinstance(error, ArgosyError):
                error.job = self.job


def new_job(
    priority: Priority,
    name: str | None,
    idempotency_key: str | None = None,
    ttl_s: float | None = None,
    *,
    tenant: str = "",
    pipeline: dict[str, Any] | None = None,
    request: str | None = None,
) -> NewJob:
    """Return a job to create, with a new id. Raises InvalidInput for an invalid name, key or `ttl_s`."""
    for field, given in {"name": name, "idempotency_key": idempotency_key}.items():
        if given is not None and not isinstance(given, str):
            raise InvalidInput(field, f"must be text, not {type(given).__name__}", "convert it with str()")
        if given is not None and len(given) > MOST_JOB_NAME:
            raise InvalidInput(field, f"has {len(given):,} characters, over {MOST_JOB_NAME}", "shorten it")
    if idempotency_key == "":  # an unset variable, by which all such submissions would be one job
        raise InvalidInput("idempotency_key", "is empty", "leave it out, or give a text that identifies the submission")
    name, idempotency_key = plain(name), plain(idempotency_key)
    if idempotency_key is not None and _SEPARATORS.intersection(sendable(idempotency_key, "idempotency_key")):
        raise InvalidInput("idempotency_key", "has NUL or U+001F, which the store cannot keep there", "leave it out")
    lives_s = None if ttl_s is None else as_float(ttl_s)
    if ttl_s is not None and (lives_s is None or not 0 < lives_s < math.inf):
        raise InvalidInput(
            "ttl_s", f"must be a number of seconds over 0, not {ttl_s!r:.80}", "leave it out to keep the job"
        )
    return NewJob(
        id=new_id(),
        priority=int(priority),
        name=name,
        idempotency_key=idempotency_key,
        ttl_s=lives_s,
        tenant=tenant,
        pipeline=pipeline,
        request=request,
    )


def _conflict(job: str, difference: str) -> KeyConflict:
    return KeyConflict(
        "idempotency_key",
        f"belongs to the job {job}, {difference}",
        "choose another key (`argosy submit --again`), or submit the same again",
    )


def check_many(inputs: object, on_error: str, *kinds: type) -> None:
    """Raise InvalidInput if `inputs` is not a series of one of these types, or if `on_error` is unknown."""
    if isinstance(inputs, str | bytes | Mapping) or not isinstance(inputs, kinds):
        raise InvalidInput("inputs", f"must be a series of inputs, not {type(inputs).__name__}", "put it in a list")
    if getattr(inputs, "ndim", None) == 2 and hasattr(inputs, "columns"):
        # iterating over pandas' tables gives the names of the columns
        remedy = "give it a column, as table['text'], or rows, as table.to_dict('records')"
        raise InvalidInput("inputs", f"is a table ({type(inputs).__name__}), not a series of inputs", remedy)
    if on_error not in ("raise", "skip"):
        raise InvalidInput("on_error", f"must be 'raise' or 'skip', not {on_error!r}")
