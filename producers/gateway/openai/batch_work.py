"""One batch of requests, from its file to its responses. Each step is stored before the next, and may be done again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from producers.client.async_handles import AsyncJob
from producers.client.request import NewItem
from producers.gateway.answers import encoded
from producers.gateway.openai.batch_requests import Line, Reading
from producers.gateway.openai.uploads import Writing, lines
from producers.gateway.problems import Problem, item_problem, openai_error, problem
from producers.wire.errors import ArgosyError, InvalidInput, ItemCancelled, ItemExpired, ResultTimeout
from results_store.gateway.gateway_batches import FileBatch
from results_store.gateway.gateway_files import StoredFile
from results_store.records import Result

if TYPE_CHECKING:
    from producers.gateway.gateway import Gateway

#: Past its window, a batch waits so long for its last items to be told expired by a worker, and then no longer.
LATE_S = 60.0


class Lost(Exception):
    """Another gateway works on the batch now."""


@dataclass(slots=True)
class Work:
    """The work on one batch. `batch` is as it was stored last; `cancelled` is set when its owner has cancelled it."""

    gateway: Gateway
    batch: FileBatch
    worker: str
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Do what is left to do. Raises Lost, or errors of client and store: then it is taken up again later."""
        if await self._input() is None:
            await self.failed("file_not_found", "the input file is gone", "input_file_id")
            return
        if not self.batch.detail["counts"]["total"]:
            errors, task, total = await self._validated()
            if errors:
                await self._failed(errors)
                return
            counts = {"total": total, "completed": 0, "failed": 0}
            await self._store("in_progress", in_progress_at=time.time(), counts=counts, task=task)
        job = await self._computed()
        await self._store("finalizing", finalizing_at=time.time())
        await self._answer(job)

    async def failed(self, code: str, message: str, param: str | None = None) -> None:
        """End the batch as a whole, with the reason."""
        await self._failed([{"code": code, "message": message, "param": param}])

    async def _input(self) -> StoredFile | None:
        id_ = self.batch.detail["input_file_id"]
        return await self.gateway.client.ask(lambda store: store.files.find(id_, tenant=None))

    async def _reading(self) -> Reading:
        catalogue = await self.gateway.client.catalogue()
        texts = lines(self.gateway, self.batch.detail["input_file_id"])
        return Reading(texts, self.batch.detail["endpoint"], catalogue)

    async def _validated(self) -> tuple[list[dict[str, Any]], str | None, int]:
        reading = await self._reading()
        try:
            async for _ in reading.lines():
                await asyncio.sleep(0)
        except InvalidInput as error:
            return [{"code": type(error).__name__, "message": str(error), "param": error.field}], None, 0
        return reading.errors, reading.task, reading.total

    # --- computing ---

    async def _computed(self) -> AsyncJob | None:
        """Submit what is not submitted yet, and wait for the results. None if no request could be submitted."""
        task: str | None = self.batch.detail["task"]
        if task is None:
            return None
        left_s = self.batch.detail["expires_at"] - time.time()
        job = await self.gateway.client.submit_many(
            task,
            self._items(),
            name=self.batch.id,
            idempotency_key=self.batch.id,
            deadline_s=max(left_s, 0.001),
            on_error="skip",
            on_accepted=self._note_job,
            tenant=self.batch.tenant,
        )
        self._note_job(job.id)
        await self._store(self.batch.status)
        await self._waited(job, left_s + LATE_S)
        return job

    def _note_job(self, job: str, _: int = 0) -> None:
        self.batch.detail["job"] = job

    async def _items(self) -> AsyncIterator[NewItem]:
        reading = await self._reading()
        async with aclosing(reading.lines()) as found:
            async for line in found:
                if self.cancelled.is_set():
                    return
                for item in line.items():
                    yield item

    async def _waited(self, job: AsyncJob, timeout_s: float) -> None:
        waiting = asyncio.ensure_future(job.wait(timeout_s=max(timeout_s, 0.0)))
        stopping = asyncio.ensure_future(self.cancelled.wait())
        try:
            await asyncio.wait([waiting, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                await job.cancel()
            await waiting
        except ResultTimeout:
            await job.cancel()  # no worker has come for them; what is not there now is told expired
        finally:
            for one in (waiting, stopping):
                one.cancel()
            await asyncio.gather(waiting, stopping, return_exceptions=True)

    # --- answering ---

    async def _answer(self, job: AsyncJob | None) -> None:
        """Write the responses, each at its request's turn, into two files: what succeeded and what did not."""
        counts = {"total": self.batch.detail["counts"]["total"], "completed": 0, "failed": 0}
        rows = Rows(job)
        expired = False
        # the same names each time: what an earlier run had written of them is replaced
        async with await self._file("output") as good, await self._file("error") as bad:
            async for line in (await self._reading()).lines():
                response, found = self._response(line, await rows.of(line))
                if found is None:
                    counts["completed"] += 1
                    await good.write(encoded(response) + b"\n")
                else:
                    counts["failed"] += 1
                    expired = expired or found.kind == ItemExpired.__name__
                    await bad.write(encoded(response) + b"\n")
        await self._finish(counts, expired=expired)

    def _response(self, line: Line, rows: Sequence[Result]) -> tuple[dict[str, Any], Problem | None]:
        base = {"id": f"batch_req_{self.batch.id.removeprefix('batch_')}_{line.number}", "custom_id": line.custom_id}
        try:
            if line.refused is not None:
                raise line.refused
            call = line.call
            assert call is not None
            if len(rows) < len(call.items):
                raise self._missing()
            body = call.answer(rows)
        except (ArgosyError, Problem) as error:
            found = _problem(error)
            response = {"status_code": found.status_code, "request_id": base["id"], "body": openai_error(found)}
            told = {"code": found.kind, "message": found.detail}
            return {**base, "response": response, "error": told}, found
        return {**base, "response": {"status_code": 200, "request_id": base["id"], "body": body}, "error": None}, None

    def _missing(self) -> ArgosyError:
        if self.cancelled.is_set():
            return ItemCancelled("the batch was cancelled before this request was computed")
        return ItemExpired("the batch's time was over before this request was computed")

    async def _file(self, kind: str) -> Writing:
        id_ = f"file-{self.batch.id.removeprefix('batch_')}-{kind}"
        await self.gateway.client.ask(lambda store: store.files.remove(id_))
        new = StoredFile(
            id=id_,
            tenant=self.batch.tenant,
            name=f"{self.batch.id}_{kind}.jsonl",
            purpose="batch_output",
            created_at=time.time(),
        )
        return Writing(self.gateway, new)

    async def _finish(self, counts: dict[str, int], *, expired: bool) -> None:
        short = self.batch.id.removeprefix("batch_")
        files: dict[str, str | None] = {"output_file_id": None, "error_file_id": None}
        for kind, count in (("output", counts["completed"]), ("error", counts["failed"])):
            if count:
                files[f"{kind}_file_id"] = f"file-{short}-{kind}"
            else:
                await self.gateway.client.ask(lambda store: store.files.remove(f"file-{short}-{kind}"))  # noqa: B023 - run at once
        await self._store("expired" if expired else "completed", finished_at=time.time(), counts=counts, **files)

    async def _failed(self, errors: list[dict[str, Any]]) -> None:
        await self._store("failed", finished_at=time.time(), errors=errors)

    async def _store(self, status: str, *, finished_at: float | None = None, **detail: Any) -> None:
        if self.cancelled.is_set():
            status = "cancelling" if finished_at is None else "cancelled"
        detail = {**self.batch.detail, **detail}
        self.batch = replace(self.batch, status=status, finished_at=finished_at, detail=detail)
        if await self.gateway.client.ask(lambda store: store.file_batches.record(self.batch, self.worker)):
            return
        found = await self.gateway.client.ask(lambda store: store.file_batches.find(self.batch.id, tenant=None))
        if self.cancelled.is_set() or found is None or found.cancelled_at is None:
            raise Lost(self.batch.id)
        self.cancelled.set()
        await self._store(status, finished_at=finished_at, **detail)


class Rows:
    """A job's results beside the requests that its items came from, both in their order."""

    def __init__(self, job: AsyncJob | None) -> None:
        self._results = None if job is None else job.results()
        self._next: Result | None = None

    async def of(self, line: Line) -> list[Result]:
        """Return what there is of a request."""
        rows: list[Result] = []
        while (row := await self._peek()) is not None and row.key == line.key:
            rows.append(row)
            self._next = None
        return rows

    async def _peek(self) -> Result | None:
        if self._next is None and self._results is not None:
            self._next = await anext(self._results, None)
        return self._next


def _problem(error: ArgosyError | Problem) -> Problem:
    return problem(error) if isinstance(error, Problem | InvalidInput) else item_problem(error)
