"""A batch of requests as a job: submitted under its id, and ended after the job. Each step may be taken twice."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from producers.client.request import NewItem
from producers.client.sending.submission import new_job
from producers.gateway.openai.batch_answers import answers, refusal
from producers.gateway.openai.batch_requests import RequestReader
from producers.gateway.openai.uploads import lines
from producers.wire.errors import InvalidInput
from producers.wire.messages import Priority
from results_store.errors import UnknownJob
from results_store.gateway.gateway_batches import FileBatch
from results_store.gateway.gateway_files import StoredFile
from results_store.records import JobStatus, Result, ResultState

if TYPE_CHECKING:
    from producers.gateway.gateway import Gateway

#: The time after a batch's window for which it waits for workers to store its last items as expired.
LATE_S = 60.0

#: The number of results that one transaction stores.
STORED = 500


class Ended(Exception):
    """The batch has ended, because of `errors`, or by another gateway if there are none."""

    def __init__(self, *errors: dict[str, Any]) -> None:
        super().__init__()
        self.errors = list(errors)


@dataclass(slots=True)
class BatchJob:
    """An open batch and its job. `batch` is the last stored version."""

    gateway: Gateway
    batch: FileBatch

    @property
    def is_cancelled_early(self) -> bool:
        """Whether the batch was cancelled while its items were being submitted."""
        return self._noted("cancelling_at") and self._noted("job") and not self._noted("submitted_at")

    async def advance(self) -> None:
        """Take all steps that are possible now. Errors of client and store are raised; call it again later."""
        try:
            if not self._noted("job"):
                await self._validate()
            if not self._noted("submitted_at"):
                await self._submit()
            job = await self._job()
            if self._noted("cancelling_at") and job.cancelled_at is None:
                job = await self.gateway.client.ask(lambda store: store.cancel_job(job.id))
            if job.finished or await self._left_s() < -LATE_S:
                await self._finish(job)
        except UnknownJob:
            await self.fail("job_not_found", "the job was purged")
        except Ended as ended:
            if ended.errors:
                await self._fail(ended.errors)

    async def fail(self, code: str, message: str) -> None:
        """End the whole batch with an error."""
        await self._fail([_error(code, message)])

    async def _fail(self, errors: list[dict[str, Any]]) -> None:
        ended, now = {"errors": errors}, time.time()
        await self.gateway.client.ask(lambda store: store.file_batches.note(self.batch.id, ended, finished_at=now))

    def _noted(self, name: str) -> bool:
        return self.batch.detail.get(name) is not None

    async def _note(
        self, detail: dict[str, Any], *, finished_at: float | None = None, files: Sequence[StoredFile] = ()
    ) -> None:
        """Store the batch's progress. Raises Ended if another gateway has ended the batch."""
        noted = await self.gateway.client.ask(
            lambda store: store.file_batches.note(self.batch.id, detail, finished_at=finished_at, files=files)
        )
        if noted is None:
            raise Ended
        self.batch = noted

    async def _left_s(self) -> float:
        """Return the seconds until the end of the batch's window, by the store's clock, which gateways share."""
        return float(self.batch.detail["expires_at"]) - await self.gateway.client.ask(lambda store: store.now())

    async def _job(self) -> JobStatus:
        return await self.gateway.client.status(self.batch.detail["job"])

    async def _reading(self) -> RequestReader:
        catalogue = await self.gateway.client.catalogue()
        texts = lines(self.gateway, self.batch.detail["input_file_id"])
        return RequestReader(texts, self.batch.detail["endpoint"], catalogue, self.gateway.detokenizer)

    # --- submitting ---

    async def _validate(self) -> None:
        """Read the whole file, and create the job unless a line is invalid. Raises Ended."""
        id_ = self.batch.detail["input_file_id"]
        if await self.gateway.client.ask(lambda store: store.files.find(id_, tenant=None)) is None:
            raise _file_gone()
        reading, items = await self._reading(), 0
        try:
            async for line in reading.lines():
                items += 0 if line.call is None else line.places
                await asyncio.sleep(0)
        except InvalidInput as error:
            raise Ended(_error(type(error).__name__, str(error), error.field)) from error
        if reading.errors:
            raise Ended(*reading.errors)
        new = new_job(Priority.BULK, self.batch.id, self.batch.id, tenant=self.batch.tenant)
        job = await self.gateway.client.ask(lambda store: store.create_job(new))
        counts = {"total": reading.total, "completed": 0, "failed": 0}
        found = {"task": reading.task, "items": items, "refused": reading.refused, "counts": counts}
        await self._note({"job": job.id, "in_progress_at": time.time(), **found})

    async def _submit(self) -> None:
        """Submit the remaining requests, unless the batch or its job was cancelled. Raises Ended."""
        job = await self._job()
        reading = await self._reading()
        if not self._noted("cancelling_at") and job.cancelled_at is None and self._noted("task"):
            await self.gateway.client.submit_many(
                self.batch.detail["task"],
                _items(reading),
                idempotency_key=self.batch.id,
                deadline_s=max(await self._left_s(), 0.001),
                on_error="skip",
                tenant=self.batch.tenant,
            )
            if reading.total < self.batch.detail["counts"]["total"]:
                await self.gateway.client.ask(lambda store: store.cancel_job(job.id))
                raise _file_gone()
        await self._note({"submitted_at": time.time()})

    # --- ending ---

    async def _finish(self, job: JobStatus) -> None:
        """Store the missing results, count the responses, and end the batch."""
        if not self._noted("finalizing_at"):
            await self._note({"finalizing_at": time.time()})
        await self._complete(job)
        counts, sizes, expired = {**self.batch.detail["counts"], "completed": 0, "failed": 0}, Counter[str](), False
        async for answer in answers(self.gateway, self.batch):
            counts["completed" if answer.error is None else "failed"] += 1
            sizes["output" if answer.error is None else "error"] += len(answer.line)
            expired = expired or answer.error == ResultState.EXPIRED
            await asyncio.sleep(0)
        now, files = time.time(), {}
        for kind, size in sizes.items():
            files[f"{kind}_file_id"] = StoredFile(
                id=f"file-{self.batch.id.removeprefix('batch_')}-{kind}",
                tenant=self.batch.tenant,
                name=f"{self.batch.id}_{kind}.jsonl",
                purpose="batch_output",
                created_at=now,
                bytes=size,
                stored_at=now,
            )
        ids = {name: file.id for name, file in files.items()}
        await self._note({"counts": counts, "expired": expired, **ids}, finished_at=now, files=[*files.values()])

    async def _complete(self, job: JobStatus) -> None:
        """Store a result for each request without one: refused, not submitted, or not computed in time."""
        detail = self.batch.detail
        cancelled = self._noted("cancelling_at") or job.cancelled_at is not None
        if job.finished and not (cancelled or detail["refused"] or job.items < detail["items"]):
            return
        ask, own = self.gateway.client.ask, {self.batch.id}  # results without an envelope add to the size of the job
        rows: list[Result] = []
        async for row in self._unanswered(job, cancelled=cancelled):
            rows.append(row)
            if len(rows) >= STORED:
                await ask(lambda store: store.commit(rows, unlisted=own))  # noqa: B023 - run at once
                rows = []
        await ask(lambda store: store.commit(rows, unlisted=own))

    async def _unanswered(self, job: JobStatus, *, cancelled: bool) -> AsyncIterator[Result]:
        """Yield substitutes for the missing results of the job. The store ignores substitutes for existing results."""
        state = ResultState.CANCELLED if cancelled else ResultState.EXPIRED
        error = {"kind": f"Item{state.capitalize()}", "message": f"the request ended {state}"}
        counted = 0 if job.finished else job.items  # the number of items that the job has already
        seq = 0
        async for line in (await self._reading()).lines():
            refused = line.refused
            for _ in range(line.places):
                is_counted = refused is None and counted > 0
                counted -= is_counted
                yield Result(
                    job=job.id,
                    seq=seq,
                    task=self.batch.detail["task"] or self.batch.detail["endpoint"],
                    envelope=job.id if is_counted else self.batch.id,
                    state=ResultState.FAILED if refused else state,
                    key=line.key,
                    error=refusal(refused) if refused else error,
                )
                seq += 1


async def _items(reading: RequestReader) -> AsyncIterator[NewItem | InvalidInput]:
    """Yield the items of all requests. A refused request yields an InvalidInput, which keeps its place."""
    async with aclosing(reading.lines()) as found:
        async for line in found:
            if line.call is None:
                yield InvalidInput(f"line {line.number}", "is refused")
            for item in line.items():
                yield item


def _error(code: str, message: str, param: str | None = None) -> dict[str, Any]:
    return {"code": code, "message": message, "param": param}


def _file_gone() -> Ended:
    return Ended(_error("file_not_found", "the input file was deleted", "input_file_id"))
