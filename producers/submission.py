"""One call of `submit_many` under way: chunk after chunk into the outbox."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from producers.errors import ArgosyError
from producers.messages import Priority, new_id
from producers.outbox import Outbox
from producers.packing import Weighed, chunks
from producers.request import Request
from results_store.errors import StoreError
from results_store.records import NewJob

if TYPE_CHECKING:
    from results_store.store import Store


class Submission:
    """Its job is created together with its first chunk, so that a submission refused at once leaves nothing behind."""

    def __init__(
        self,
        store: Store,
        outbox: Outbox,
        request: Request,
        job: NewJob,
        on_accepted: Callable[[str, int], object] | None = None,
    ) -> None:
        self.job = job.id
        self._store = store
        self._outbox = outbox
        self._request = request
        self._new_job: NewJob | None = job
        self._on_accepted = on_accepted
        self._deadline_at = request.deadline_at(time.time())
        self._expected_rows: int | None = None
        self._accepted = 0

    def resume(self) -> int:
        """Find or create the job by its idempotency key, now; return how many items it has from an earlier run."""
        assert self._new_job is not None
        found = self._store.create_job(self._new_job)
        self.job, self._new_job = found.id, None
        # from here on each chunk says how many rows it expects before it, so that two runs cannot mix
        self._expected_rows = found.items
        return found.items // len(self._request.models)  # an item has a row for every model

    def run(self, items: Iterable[Weighed]) -> None:
        """Accept and publish all items. An error says in its note, and as its `job`, what stays accepted."""
        try:
            for chunk in chunks(items):
                self._send(chunk)
            if self._new_job is not None:  # no items at all: an empty job, finished from the start
                self._store.create_job(self._new_job)
        except (ArgosyError, StoreError) as error:
            if self._accepted:
                error.add_note(f"job {self.job} keeps the {self._accepted:,} items accepted before this")
                if isinstance(error, ArgosyError):
                    error.job = self.job
            raise
        finally:
            self._outbox.settle()

    def _send(self, chunk: Sequence[Weighed]) -> None:
        self._outbox.send(
            self._request,
            chunk,
            job=self.job,
            deadline_at=self._deadline_at,
            new_job=self._new_job,
            expected_rows=self._expected_rows,
        )
        self._new_job = None
        if self._expected_rows is not None:
            self._expected_rows += len(chunk) * len(self._request.models)
        self._accepted += len(chunk)
        if self._on_accepted is not None:
            self._on_accepted(self.job, self._accepted)


def new_job(priority: Priority, name: str | None, idempotency_key: str | None = None) -> NewJob:
    """Return a job to create, with a new id."""
    return NewJob(
        id=new_id(), priority=int(priority), name=name, idempotency_key=idempotency_key, created_at=time.time()
    )
