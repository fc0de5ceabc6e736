"""The state of a gateway process: the client, the API keys, the request rates, and the handles of recent items."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Annotated, Any, TypeAlias, TypeVar

from cachetools import LRUCache
from fastapi import Depends, Request
from pydantic import BaseModel

from producers.client.async_client import AsyncClient
from producers.client.async_handles import AsyncHandle
from producers.gateway.activity import Activity, RecordedDays
from producers.gateway.keys import Caller, Keyring
from producers.gateway.metrics.gateway_metrics import GatewayMetrics
from producers.gateway.problems import Gone, Problem
from producers.gateway.rates import HeldBytes, Rates
from producers.gateway.settings import GatewaySettings
from producers.wire.errors import InvalidInput, without_text
from producers.wire.forms import FILES
from producers.wire.messages import is_id
from results_store.errors import UnknownJob
from results_store.records import JobFilter, JobStatus
from results_store.sql.auditing.audit_log import Actor

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Makes the text of token ids. Raises ValueError.
Detokenizer: TypeAlias = Callable[[Sequence[int]], str]

#: Recent handles that are kept for callers who come back; older items are looked up in the store.
HANDLES = 20_000


class Gateway:
    """The gateway of a process. Made in its event loop."""

    def __init__(self, settings: GatewaySettings, client: AsyncClient, detokenizer: Detokenizer | None = None) -> None:
        self.settings = settings
        self.detokenizer = detokenizer
        self.client = client
        self.keyring = Keyring(lambda id_: client.ask(lambda store: store.keys.find(id_)))
        self.rates = Rates()
        self.bodies = HeldBytes(settings.max_held_bytes)
        self.activity = Activity(client.ask, client.live_nodes)
        self.days = RecordedDays(client.ask)
        self.serving: Counter[str] = Counter()  # requests by key
        self.metrics = GatewayMetrics(client, self.serving, self.bodies)
        self._handles: LRUCache[tuple[str, int], AsyncHandle] = LRUCache(HANDLES)
        self._later: set[asyncio.Task[None]] = set()

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Do some work in a task of its own: a request whose caller has left is cancelled at each of its turns."""
        task = asyncio.create_task(work)
        self._later.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._later.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("the end of a request failed: %s", without_text(error))

    async def close(self) -> None:
        """Wait for the work that was left for later."""
        await asyncio.gather(*self._later, return_exceptions=True)

    def keep(self, handle: AsyncHandle) -> None:
        """Keep a handle, so that waiting for its result needs no queries."""
        self._handles[handle.job, handle.seq] = handle

    def kept(self, job: str, seq: int) -> AsyncHandle | None:
        return self._handles.get((job, seq))

    def drop(self, job: str, seq: int) -> None:
        self._handles.pop((job, seq), None)

    async def takes_files(self, task: str | Sequence[str]) -> bool:
        """Return whether the inputs of a task, or of several tasks, are files. An unknown task takes none."""
        names = (task,) if isinstance(task, str) else task
        tasks = (await self.client.catalogue()).tasks
        return any(tasks[name].kind.modality in FILES for name in names if name in tasks)

    async def job(self, id_: str, caller: Caller) -> JobStatus:
        """Return a job. Raises UnknownJob, also for another tenant's job."""
        if not is_id(id_):
            raise UnknownJob(f"no job {id_!r}; an id looks like 01jd2m3n4p5q6r7s8t9v0w1x2y")
        status = await self.client.status(id_)
        if not caller.sees(status.tenant):
            raise UnknownJob(f"no job {id_!r}; GET /api/jobs lists yours")
        return status

    async def paused(self, job: str) -> str | None:
        """Return a sentence if an operator has paused something that a job waits for."""
        found = await self.client.ask(lambda store: store.pauses.holding(job))
        return f"{', '.join(map(str, found))}; its items wait until it is resumed" if found else None

    async def postponed(self, job: str) -> str | None:
        """Return a sentence if results of a job wait to be tried again."""
        found = await self.client.ask(lambda store: store.retried_work(job))
        return None if found is None else str(found)

    async def jobs(
        self,
        caller: Caller,
        *,
        limit: int,
        before: tuple[float, str] | None = None,
        text: str = "",
        having: JobFilter | None = None,
    ) -> list[JobStatus]:
        """Return a page of the caller's jobs, newest first."""
        return await self.client.ask(
            lambda store: store.jobs(limit=limit, before=before, tenant=caller.scope, text=text, having=having)
        )


async def check_query(request: Request) -> None:
    """Raise InvalidInput for a parameter of the query that the route does not have: it would be ignored."""
    known = [name for parameter in request.scope["route"].dependant.query_params for name in _names(parameter)]
    if unknown := next((name for name in request.query_params if name not in known), None):
        remedy = f"leave it out; the parameters are: {', '.join(known)}" if known else "leave it out"
        raise InvalidInput(unknown, "is not a parameter of the query here", remedy)


def _names(parameter: Any) -> Iterable[str]:
    """Return the names of a parameter of a route: those of its fields, if it is a model."""
    kind = parameter.field_info.annotation
    return kind.model_fields if isinstance(kind, type) and issubclass(kind, BaseModel) else [parameter.alias]


# FastAPI calls a dependency that is no coroutine in a thread
async def gateway_of(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


class Right:
    """The right that a route needs. Each route with a key has one as the dependency that gives it its caller."""

    def __init__(self, holds: Callable[[Caller], bool], detail: str = "", remedy: str = "") -> None:
        self.holds = holds
        self._detail = detail
        self._remedy = remedy

    async def __call__(self, request: Request) -> Caller:
        """Return the caller. Raises Problem if its key lacks the right."""
        caller: Caller = request.state.caller
        if not self.holds(caller):
            raise Problem(403, "Forbidden", self._detail, remedy=self._remedy)
        return caller


_READ = Right(lambda _: True)
_CHANGE = Right(
    lambda caller: caller.changes, "a viewer's key only reads", "use a member's or an operator's key for changes"
)
_READ_ALL = Right(
    lambda caller: caller.all_tenants,
    "the route is for keys that see all tenants",
    "use an operator's key, or a viewer's that was made with --all-tenants",
)
_OPERATE = Right(lambda caller: caller.operator, "only operators may use this route", "use an operator's key")


async def actor_of(request: Request) -> Actor:
    """Return the caller for the audit log, with its address: a proxy's, if it stands between."""
    caller: Caller = request.state.caller
    from_page = request.headers.get("x-requested-with") == "argosy-page"
    return Actor(
        name=caller.name,
        tenant=caller.tenant,
        key=caller.key or None,
        source="page" if from_page else "http",
        address=request.client.host if request.client else "",
    )


Here = Annotated[Gateway, Depends(gateway_of)]
By = Annotated[Actor, Depends(actor_of)]
Viewer = Annotated[Caller, Depends(_READ)]
Member = Annotated[Caller, Depends(_CHANGE)]
FleetViewer = Annotated[Caller, Depends(_READ_ALL)]
Operator = Annotated[Caller, Depends(_OPERATE)]


async def while_there(request: Request, awaited: Awaitable[T]) -> T:
    """Await something while the caller stays connected. Raises Gone and cancels the waiting if the caller leaves.

    The body must have been read. Accepted items are computed anyway.
    """
    work = asyncio.ensure_future(awaited)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait([work, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise Gone
        return work.result()
    finally:
        for one in (work, leaving):
            one.cancel()
        await asyncio.gather(work, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
