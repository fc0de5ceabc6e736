"""The link to the centre: HTTPS requests to its gateway, with one key. Nothing else of a site talks to the outside."""

from __future__ import annotations

import asyncio
import gzip
import ssl
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx2
import msgspec

from producers.edge.departure import Departing
from producers.wire.edge.edge_settings import EdgeSettings
from producers.wire.edge.told_sites import SiteReport
from producers.wire.errors import ArgosyError

#: Seconds after which the centre may purge a batch's job that has ended: the site fetches it within days.
KEPT_S = 14 * 86400.0

#: Refusals that pass: the key's rate, a full fleet, a store or broker that is away.
_PASSING = frozenset((408, 425, 429, 502, 503, 504))

#: What a gateway's errors begin with. Any other error is of something before it, such as a reverse proxy.
_PROBLEM = "urn:argosy:problem:"

#: Problems of a gateway that say nothing of the request: a path that this gateway does not serve, and a batch that
#: meets its own first request.
_NO_REFUSAL = ("NotFound", "MethodNotAllowed", "SubmissionConflict")

#: The remedy for answers that are not a gateway's.
_WHOSE = "is `edge.centre` the address of a gateway?"

#: The first bytes of a packed body; JSON begins otherwise.
_GZIP = b"\x1f\x8b"


class LinkDown(ArgosyError):
    """The centre was not reached, or cannot take work now. `retry_s` is its own wish, if it has one."""

    def __init__(self, message: str, retry_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_s = retry_s


class KeyRefused(LinkDown):
    """The centre refuses the site's key."""


class CentreFault(LinkDown):
    """The centre failed at this request (500). Another batch may pass."""


class BatchRefused(ArgosyError):
    """The centre does not take this batch, and will not: a task that it does not have, an input over its limits."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class BatchTooLarge(BatchRefused):
    """The body is over a limit, of the centre or of a proxy before it (413). A part of the batch may pass."""


class JobGone(ArgosyError):
    """The centre no longer has the job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutgoingBatch:
    """Items for the same task of the centre's. Its `id` makes a second submission find the first."""

    id: str
    task: str
    items: Sequence[Departing]
    priority: str
    deadline_s: float | None = None


class Link:
    """Requests to the centre's gateway. Use it as a context manager. For one event loop."""

    def __init__(self, settings: EdgeSettings, key: str) -> None:
        self._site = settings.site
        self.sent_bytes = 0
        self.received_bytes = 0
        self._plain = False  # whether the centre takes plain bodies alone
        # an own context, so that a site can trust its own authority alone
        trust: ssl.SSLContext | bool = ssl.create_default_context(cafile=settings.ca_file) if settings.ca_file else True
        self._client = httpx2.AsyncClient(
            base_url=settings.centre.rstrip("/"),
            headers={"Authorization": f"Bearer {key}", "User-Agent": "argosy-edge"},
            timeout=settings.answer_s,
            verify=trust,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def submit(self, batch: OutgoingBatch) -> str:
        """Submit a batch and return its job. Raises LinkDown, KeyRefused, BatchTooLarge or BatchRefused.

        An input that the centre refuses is left out; it gets no result.
        """
        head = {
            "task": batch.task,
            "priority": batch.priority,
            "name": f"edge {self._site}",
            "idempotency_key": f"{self._site}/{batch.id}",
            "ttl_s": KEPT_S,
            "on_error": "skip",
            **({} if batch.deadline_s is None else {"deadline_s": batch.deadline_s}),
        }
        inputs = b",".join(item.body for item in batch.items)
        body = msgspec.json.encode(head)[:-1] + b',"inputs":[' + inputs + b"]}"
        answer = await self._ask("POST", "/api/jobs", await self._packed(body))
        if not isinstance(answer, dict) or not isinstance(answer.get("id"), str):
            raise LinkDown(f"the centre's answer names no job; {_WHOSE}")
        return str(answer["id"])

    async def greet(self) -> None:
        """Ask the centre for any answer. Raises LinkDown."""
        try:
            await self._ask("GET", "/api/jobs?limit=1")
        except (BatchRefused, JobGone) as error:
            raise LinkDown(f"the centre: {error}; {_WHOSE}") from error

    async def tell(self, report: SiteReport) -> None:
        """Tell how the site does. Raises LinkDown, also by a centre of an older version, or BatchRefused."""
        await self._ask("PUT", f"/api/sites/{self._site}", msgspec.json.encode(report))

    async def is_finished(self, job: str) -> bool:
        """Return whether a job has all its results. Raises LinkDown or JobGone."""
        answer = await self._ask("GET", f"/api/jobs/{job}")
        if not isinstance(answer, dict) or "finished" not in answer:
            raise LinkDown(f"the centre's answer is no job; {_WHOSE}")
        return bool(answer["finished"])

    async def results(self, job: str) -> AsyncIterator[list[dict[str, Any]]]:
        """Yield a job's results as they come, those that arrive together in a list, until it has ended.

        Raises LinkDown, also if none comes for `answer_s`: the link may have been dropped silently. Raises JobGone.
        """
        rest = b""
        path = f"/api/jobs/{job}/results"
        try:
            async with self._client.stream("GET", path, params={"follow": "true"}) as answer:
                if answer.status_code != 200:
                    await answer.aread()
                    self._check(answer)
                async for part in answer.aiter_raw():
                    self.received_bytes += len(part)
                    *lines, rest = (rest + part).split(b"\n")
                    if rows := [msgspec.json.decode(line, type=dict[str, Any]) for line in lines if line.strip()]:
                        yield rows
        except (httpx2.HTTPError, ssl.SSLError, OSError) as error:
            raise LinkDown(f"the centre: {type(error).__name__}") from error
        except msgspec.DecodeError as error:
            raise LinkDown("the centre's results are not JSON Lines") from error

    async def _packed(self, body: bytes) -> bytes:
        """Return the body, packed if that makes it smaller, and until a centre says that it cannot read that."""
        if self._plain:
            return body
        packed = await asyncio.to_thread(gzip.compress, body)
        return min(body, packed, key=len)

    async def _ask(self, method: str, path: str, body: bytes | None = None) -> Any:
        headers = {} if body is None else {"Content-Type": "application/json"}
        if body is not None and body.startswith(_GZIP):
            headers["Content-Encoding"] = "gzip"
        self.sent_bytes += len(body or b"")
        try:
            answer = await self._client.request(method, path, content=body, headers=headers)
        except (httpx2.HTTPError, ssl.SSLError, OSError) as error:
            raise LinkDown(f"the centre: {type(error).__name__}") from error  # its text has nothing that helps more
        self.received_bytes += len(answer.content)
        if answer.status_code == 415 and "Content-Encoding" in headers and body is not None:  # an older centre
            self._plain = True
            return await self._ask(method, path, gzip.decompress(body))
        self._check(answer)
        try:
            return msgspec.json.decode(answer.content)
        except msgspec.DecodeError as error:
            raise LinkDown(f"the centre's answer is not JSON; {_WHOSE}") from error

    def _check(self, answer: httpx2.Response) -> None:
        status = answer.status_code
        if status < 400 and status not in range(300, 400):
            return
        if status in (401, 403):
            raise KeyRefused(f"the centre refuses the site's key ({status}); renew it in `edge.key_file`")
        told = _problem(answer)
        kind = str(told.get("type", "")).removeprefix(_PROBLEM)
        detail = str(told.get("detail") or f"the centre answers {status}")
        if status == 413:
            raise BatchTooLarge(kind or f"Status{status}", detail)
        if not kind or kind in _NO_REFUSAL or status in _PASSING:
            hint = "" if kind or status in _PASSING else f"; {_WHOSE}"
            raise LinkDown(f"the centre answers {status}{hint}", _seconds(answer.headers.get("Retry-After")))
        if status == 500:
            raise CentreFault("the centre answers 500; its log has the reason")
        if status == 404 and answer.request.method == "GET":
            raise JobGone("the centre does not have the job")
        raise BatchRefused(kind, detail)


def _seconds(text: str | None) -> float | None:
    return float(text) if text is not None and text.isdecimal() else None


def _problem(answer: httpx2.Response) -> dict[str, Any]:
    """Return the problem of a gateway; empty if the answer is none."""
    try:
        found = msgspec.json.decode(answer.content)
    except msgspec.DecodeError:
        return {}
    return found if isinstance(found, dict) and str(found.get("type", "")).startswith(_PROBLEM) else {}
