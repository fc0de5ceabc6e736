"""Checks before the routes, before a byte of the body is read: origin, API key, rate, share, body size and speed."""

from __future__ import annotations

import asyncio
import logging
import math
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from producers.gateway import browsers, connections
from producers.gateway.keys import Caller, Refused
from producers.gateway.problems import Problem, answer, problem
from producers.gateway.schemas import MOST_OPENED, opened
from producers.wire.messages import new_id
from results_store.errors import StoreError

if TYPE_CHECKING:
    from producers.gateway.gateway import Gateway

log = logging.getLogger(__name__)

#: The health checks need neither a key nor a slot.
HEALTH = frozenset({"/healthz", "/readyz"})

#: Paths without a key. The page itself asks with a key for its content.
PUBLIC = frozenset({"/", "/openapi.json"})
PUBLIC_PREFIX = "/static/"

#: The path whose body is read line by line.
STREAM = "/api/jobs/lines"

#: The files of the page share slots of their own, under this name instead of a key's.
PAGE, PAGE_REQUESTS = "the page", 100

#: Answers under these paths are somebody's own.
PRIVATE = ("/api/", "/v1/")

#: The interval at which a body looks again for room.
ROOM_S = 0.25

#: The most bytes that are unpacked at a time, and the most of an answer that are handed to a connection at a time.
PART_BYTES, SENT_BYTES = 2**16, 2**18

#: Paths whose bodies are forms. A form in another coding has no bound of parts while it is read.
FORMS, FORM = ("/v1/files", "/v1/audio"), "multipart/form-data"

#: The header by which an answer can be found in the log.
REQUEST_ID = "x-request-id"

#: The caller if no key is required.
ANYBODY = Caller(tenant="", role="operator", all_tenants=True, name="--no-auth")


class Stalled(Exception):
    """The caller does not read the response."""


class _HeadersSent(BaseException):
    """The whole answer to a HEAD request was sent. No handler of exceptions takes this for an error."""


class Guard:
    """ASGI middleware that admits or refuses requests; `Gateway` holds the counts."""

    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        self._app = app
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req_{new_id()}"
        send = self._sending(scope, request_id, send)
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        scope.setdefault("state", {})["request_id"] = request_id
        try:
            await self._serve(scope, receive, send)
        except _HeadersSent:
            pass
        except Stalled:
            log.info("%s: cut off: the caller read nothing for %s s", scope["path"], self._gateway.settings.stall_s)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        try:
            gzip = _gzip(Headers(scope=scope))
            _check_form(scope)
            caller = Caller(tenant="") if path in HEALTH else await self._admit(scope, path)
        except Problem as refused:
            await answer(refused, path)(scope, receive, send)
            return
        if path in HEALTH:
            scope["state"]["caller"] = caller
            await self._app(scope, receive, send)
            return
        settings, serving, key = self._gateway.settings, self._gateway.serving, PAGE if _is_public(path) else caller.key
        limit = self._limit(path)
        body = GuardedBody(
            receive if gzip is None else partial(gzip.next, receive),
            limit,
            settings.stall_s,
            partial(self._gateway.bodies.hold, key),
            0 if path == STREAM or _is_public(path) else settings.max_body_bytes,
            MOST_OPENED if limit == settings.max_body_bytes else math.inf,  # files and streams are read in parts
        )
        scope["state"].update(caller=caller, body=body)
        serving[key] += 1
        try:
            await body.check(Headers(scope=scope), settings.patience_s)
            await self._app(scope, body.receive, send)
        except Problem as refused:  # raised before a route ran
            await answer(refused, path)(scope, receive, send)
        finally:
            body.keep(0)
            serving[key] -= 1
            if not serving[key]:
                del serving[key]

    async def _admit(self, scope: Scope, path: str) -> Caller:
        gateway, headers = self._gateway, Headers(scope=scope)
        browsers.check(scope["method"], headers, gateway.settings)
        if _is_public(path):
            if gateway.serving[PAGE] >= PAGE_REQUESTS:
                raise Problem(503, "Overloaded", "too many ask for the page at once", retry_after_s=1)
            return Caller(tenant="")
        caller = await self._caller(headers)
        most = min(gateway.settings.max_requests, connections.most_connections())  # each request has a connection
        free = most - gateway.serving.total() + gateway.serving[PAGE]
        if gateway.serving[caller.key] >= free:
            detail = "the key holds its share of the requests that the gateway serves at once"
            remedy = "wait for answers before more requests; send many items in one request"
            raise Problem(429, "TooManyRequests", detail, remedy=remedy, retry_after_s=1)
        wait_s = gateway.rates.take(caller.key, caller.rate_per_s or gateway.settings.rate_per_s, time.monotonic())
        if wait_s and gateway.settings.auth:
            raise Problem(
                429,
                "RateLimited",
                f"the key makes more than {caller.rate_per_s or gateway.settings.rate_per_s:g} requests per second",
                remedy="wait for the time in Retry-After; send many items in one request",
                retry_after_s=wait_s,
            )
        return caller

    async def _caller(self, headers: Headers) -> Caller:
        if not self._gateway.settings.auth:
            return ANYBODY
        try:
            # keys expire by this gateway's clock, like certificates: a look at the store's would cost each request one
            return await self._gateway.keyring.holder(headers.get("authorization"), time.time())
        except Refused as error:
            raise Problem(401, "Unauthorized", str(error), headers={"WWW-Authenticate": "Bearer"}) from None
        except StoreError as error:
            raise problem(error) from error

    def _limit(self, path: str) -> int:
        settings = self._gateway.settings
        if path == STREAM:
            return settings.max_stream_bytes
        if path.startswith(FORMS):
            return settings.max_file_bytes + 2**16  # plus the form around the file
        return settings.max_body_bytes

    def _sending(self, scope: Scope, request_id: str, send: Send) -> Send:
        is_private = scope["path"].startswith(PRIVATE)
        began = time.monotonic()

        async def bounded(message: Message) -> None:
            begins = message["type"] == "http.response.start"
            if begins:
                self._gateway.metrics.http.note(scope, message["status"], began)
                headers = MutableHeaders(raw=message["headers"])
                headers[REQUEST_ID] = request_id
                if is_private:
                    headers.setdefault("Cache-Control", "no-store")
                    headers.setdefault("X-Content-Type-Options", "nosniff")
            try:
                for part in _parts(message):  # so that a large answer holds its request's place until it is taken
                    async with asyncio.timeout(self._gateway.settings.stall_s):
                        await send(part)
            except TimeoutError:
                raise Stalled from None
            if begins and scope["method"] == "HEAD":
                await send({"type": "http.response.body"})
                raise _HeadersSent

        return bounded


def _parts(message: Message) -> Iterator[Message]:
    """Yield a message in parts of at most `SENT_BYTES`."""
    body: bytes = message.get("body", b"")
    if len(body) <= SENT_BYTES:
        yield message
        return
    for start in range(0, len(body), SENT_BYTES):
        more = message.get("more_body", False) or start + SENT_BYTES < len(body)
        yield {**message, "body": body[start : start + SENT_BYTES], "more_body": more}


def _is_public(path: str) -> bool:
    return path in PUBLIC or path.startswith(PUBLIC_PREFIX)


def _check_form(scope: Scope) -> None:
    """Raise Problem (415) for a form in another coding than the one whose parts are bounded while it is read."""
    sent = Headers(scope=scope).get("content-type", FORM)
    if scope["method"] == "POST" and scope["path"].startswith(FORMS) and not sent.lower().startswith(FORM):
        raise Problem(415, "UnsupportedMediaType", f"the body must be {FORM}, not {sent}", field="content-type")


def _gzip(headers: Headers) -> Gzip | None:
    """Return what unpacks the body, or None for a plain one. Raises Problem (415) for any other coding."""
    coding = headers.get("content-encoding", "identity").lower()
    if coding in ("gzip", "x-gzip"):
        return Gzip()
    if coding == "identity":
        return None
    detail, headers_ = f"the body has the Content-Encoding {coding!r}", {"Accept-Encoding": "gzip, identity"}
    raise Problem(415, "UnsupportedMediaType", detail, remedy="send it plain, or with gzip", headers=headers_)


class Gzip:
    """A packed body, unpacked in parts of `PART_BYTES`, so that a bomb is refused before it is whole."""

    def __init__(self) -> None:
        self._inflater = zlib.decompressobj(wbits=31)
        self._arrived = False  # whether all of the packed body has
        self._more = False  # whether there is more to unpack of what has arrived
        self._empty = True  # a request without a body has no gzip stream either

    async def next(self, receive: Receive) -> Message:
        """Return the next message as if the body had come plain. Raises Problem (400)."""
        packed = b""
        if self._more:
            await asyncio.sleep(0)  # a megabyte may unpack to a gigabyte: others have their turns between its parts
        else:
            message = await receive()
            if message["type"] != "http.request":
                return message
            packed, self._arrived = message.get("body", b""), not message.get("more_body", False)
        self._empty = self._empty and not packed
        try:
            part = self._inflater.decompress(self._inflater.unconsumed_tail + packed, PART_BYTES)
        except zlib.error as error:
            raise _no_gzip(str(error)) from None
        self._more = bool(self._inflater.unconsumed_tail) or len(part) == PART_BYTES
        whole = self._arrived and not self._more
        if self._inflater.unused_data or (whole and not self._empty and not self._inflater.eof):
            raise _no_gzip("it ends early, or goes on after its end")
        return {"type": "http.request", "body": part, "more_body": not whole}


def _no_gzip(problem: str) -> Problem:
    detail = f"the body has the Content-Encoding gzip, and is not one gzip stream: {problem}"
    return Problem(400, "InvalidGzip", detail, remedy="pack it once, or send it plain", headers={"Connection": "close"})


class GuardedBody:
    """A request's body: counted while it arrives, refused if it stops arriving or if there is no room for it in memory.

    `hold` counts bytes in memory. The first `held_most` bytes of the body count; a route that keeps other parts says so
    with `keep`. A body of JSON has at most `most_opened` lists and objects.
    """

    def __init__(
        self,
        receive: Receive,
        limit: int,
        stall_s: float,
        hold: Callable[[int], bool] = lambda _: True,
        held_most: int = 0,
        most_opened: float = math.inf,
    ) -> None:
        self._receive = receive
        self._limit = limit
        self._stall_s = stall_s
        self._hold = hold
        self._held_most = held_most
        self._most_opened = most_opened
        self._held = 0
        self._seen = 0
        self._opened = 0
        self._whole = False

    async def check(self, headers: Headers, patience_s: float) -> None:
        """Refuse a body whose declared length is over the limit, and wait for room for any other. Raises Problem."""
        declared = headers.get("content-length", "")
        length = int(declared[:19]) if declared.isdecimal() else 0
        if length > self._limit:
            raise _too_large(f"the body is longer than {self._limit:,} bytes")
        until = time.monotonic() + patience_s
        while not self._holds(min(length, self._held_most)):
            if time.monotonic() > until:
                raise _no_room()
            await asyncio.sleep(ROOM_S)

    def keep(self, held: int) -> None:
        """Hold so many bytes in memory from now on. Raises Problem (429) if there is no room for them."""
        if not self._holds(held):
            raise _no_room()

    async def receive(self) -> Message:
        """Return the next message. Raises Problem: 413 over the limit, 408 if nothing arrives in time."""
        if self._whole:
            return await self._receive()  # the disconnect, waited for without limit
        try:
            async with asyncio.timeout(self._stall_s):
                message: dict[str, Any] = dict(await self._receive())
        except TimeoutError:
            raise Problem(408, "RequestTimeout", f"no more of the body arrived within {self._stall_s:g} s") from None
        self._seen += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if self._seen > self._limit:
            raise _too_large(f"the body is longer than {self._limit:,} bytes")
        if self._most_opened < math.inf:
            self._opened += opened(message.get("body", b""))
            if self._opened > self._most_opened:
                raise _too_large(f"the body has over {MOST_OPENED:,} lists and objects")
        self.keep(max(self._held, min(self._seen, self._held_most)))
        return message

    def _holds(self, held: int) -> bool:
        if held != self._held:
            if not self._hold(held - self._held):
                return False
            self._held = held
        return True


def _too_large(detail: str) -> Problem:
    return Problem(
        413,
        "BodyTooLarge",
        detail,
        remedy="send less at once; send many items as JSON Lines to /api/jobs/lines",
        headers={"Connection": "close"},
    )


def _no_room() -> Problem:
    return Problem(
        429,
        "TooManyBytes",
        "the key's requests hold their share of the gateway's memory for bodies",
        remedy="wait for answers before more requests; send large inputs by URL",
        headers={"Connection": "close"},
        retry_after_s=1,
    )
