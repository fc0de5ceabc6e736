"""All errors of the HTTP API: problem+json (RFC 9457), and under /v1 the shape that OpenAI's clients read."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, NotRequired, TypedDict

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match, Route

from producers.gateway.answers import Json
from producers.gateway.openapi.schema_of import schema_of
from producers.wire.errors import (
    ArgosyError,
    BlobsUnavailable,
    BrokerUnavailable,
    ConfigurationError,
    FileUnavailable,
    InputTooLarge,
    InvalidInput,
    ItemExpired,
    ItemFailed,
    KeyConflict,
    Overloaded,
    RateLimited,
    ResultTimeout,
    without_text,
)
from results_store.errors import (
    InvalidRow,
    SchemaMismatch,
    StoreUnavailable,
    SubmissionConflict,
    TooManyChanges,
    UnknownJob,
)

log = logging.getLogger(__name__)

#: Retry-After if the fleet itself gives no time.
RETRY_AFTER_S = 2.0

OPENAI_PREFIX = "/v1/"


class Gone(Exception):
    """The caller closed the connection before the answer."""


class Problem(HTTPException):
    """An error as the caller sees it: its name `kind`, the wrong `field` of the request, and a `remedy`.

    `job` is the job with the items that were accepted before the error.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        *,
        field: str | None = None,
        remedy: str = "",
        retry_after_s: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        sent = dict(headers or {})
        if retry_after_s is not None:
            sent["Retry-After"] = str(max(1, math.ceil(retry_after_s)))
        super().__init__(status, detail, sent)
        self.kind = kind
        self.field = field
        self.remedy = remedy
        self.job: str | None = None


class ProblemBody(TypedDict):
    """The body of an error (RFC 9457): the `field` of the request at fault, and a remedy."""

    type: str
    title: str
    status: int
    detail: str
    field: NotRequired[str]
    remedy: NotRequired[str]
    job: NotRequired[str]


class ErrorDetail(TypedDict):
    """An error of OpenAI's API: `param` is the parameter at fault."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(TypedDict):
    """The body of an error under /v1."""

    error: ErrorDetail


_SCHEMA = schema_of(ProblemBody)
_EXAMPLE = {
    "type": "urn:argosy:problem:UnknownTask",
    "title": "Unprocessable Content",
    "status": 422,
    "detail": "task: no task 'sentimnt'; did you mean 'sentiment'?",
    "field": "task",
}

#: OpenAPI's description of every route's errors.
RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {
        "description": "The request is wrong; `detail` says how to correct it.",
        "content": {"application/problem+json": {"schema": _SCHEMA, "example": _EXAMPLE}},
    },
    "5XX": {
        "description": "The fleet cannot answer now; try again after `Retry-After`.",
        "content": {"application/problem+json": {"schema": _SCHEMA}},
    },
}

_OPENAI_ERROR = {"application/json": {"schema": schema_of(ErrorBody)}}

#: The same under /v1.
OPENAI_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "The request is wrong; `param` is the parameter at fault.", "content": _OPENAI_ERROR},
    "5XX": {"description": "The fleet cannot answer now; try again after `Retry-After`.", "content": _OPENAI_ERROR},
}

#: HTTP status of the errors of client and store. Subclasses stand before their bases.
_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (KeyConflict, 409),
    (InputTooLarge, 413),
    (InvalidInput, 422),
    (InvalidRow, 422),
    (UnknownJob, 404),
    (SubmissionConflict, 409),
    (ResultTimeout, 504),
    (RateLimited, 429),
    (TooManyChanges, 429),
    (Overloaded, 503),
    (BrokerUnavailable, 503),
    (BlobsUnavailable, 503),
    (FileUnavailable, 404),
    (StoreUnavailable, 503),
    (SchemaMismatch, 503),
    (ConfigurationError, 503),
)


def problem(error: Exception) -> Problem:
    """Return the problem for an error of the client, the store or the framework."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException) and isinstance(error.__cause__, ValueError | RecursionError):
        return _unreadable(error.__cause__)
    if isinstance(error, HTTPException):
        kind = HTTPStatus(error.status_code).phrase.title().replace(" ", "")
        return Problem(error.status_code, kind, str(error.detail), headers=dict(error.headers or {}))
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    if status == 500:
        return Problem(
            500, "InternalError", "the gateway failed; its log says why", remedy="try again, or tell the operator"
        )
    retry_after_s = getattr(error, "retry_after_s", None)
    if status in (429, 503) and retry_after_s is None:
        retry_after_s = RETRY_AFTER_S
    field = error.field if isinstance(error, InvalidInput) else None
    found = Problem(status, type(error).__name__, _text(error), field=field, retry_after_s=retry_after_s)
    found.job = getattr(error, "job", None)
    return found


#: Kinds of errors whose cause is the item's input.
_INPUTS_FAULT = {"InvalidInput", "InputTooLarge", "InputUnavailable", "UnknownTask", "InvalidMessage"}


def item_problem(error: ArgosyError) -> Problem:
    """Return the problem for a failed item, if the answer is the item's output or an error."""
    if isinstance(error, ItemFailed) and error.kind == "Paused":
        return Problem(503, error.kind, error.message, retry_after_s=RETRY_AFTER_S)
    if isinstance(error, ItemFailed):
        return Problem(400 if error.kind in _INPUTS_FAULT else 500, error.kind, error.message)
    status = 504 if isinstance(error, ItemExpired) else 409
    return Problem(status, type(error).__name__, str(error))


def answer(found: Problem, path: str) -> Response:
    """Return the response for a problem, in the shape for callers of `path`."""
    if path.startswith(OPENAI_PREFIX):
        return Json(openai_error(found), openai_status(found), dict(found.headers or {}))
    body: ProblemBody = {
        "type": f"urn:argosy:problem:{found.kind}",
        "title": HTTPStatus(found.status_code).phrase,
        "status": found.status_code,
        "detail": found.detail,
    }
    if found.field is not None:
        body["field"] = found.field
    if found.job is not None:
        body["job"] = found.job
    if found.remedy:
        body["remedy"] = found.remedy
    return Json(body, found.status_code, dict(found.headers or {}), media_type="application/problem+json")


def openai_status(found: Problem) -> int:
    """Return the status of a problem under /v1: OpenAI's API has 400 for every fault of a parameter."""
    return 400 if found.status_code == 422 else found.status_code


def openai_error(found: Problem) -> ErrorBody:
    """Return a problem in the shape of OpenAI's errors."""
    kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
    general = "server_error" if found.status_code >= 500 else "invalid_request_error"
    message = f"{found.detail}; {found.remedy}" if found.remedy else found.detail
    return {
        "error": {
            "message": message,
            "type": kinds.get(found.status_code, general),
            "param": found.field,
            "code": found.kind,
        }
    }


def _no_route(error: HTTPException, request: Request, routes: Sequence[Route]) -> HTTPException:
    """Return the error for a path or method that is not served, with all methods, or with a path that is."""
    path = request.url.path

    def methods(path: str) -> set[str]:
        scope = {**request.scope, "path": path}
        found = [route for route in routes if route.matches(scope)[0] is not Match.NONE]
        exact = [route for route in found if route.path == path]  # /api/jobs/lines is no job
        every = {name for route in exact or found for name in route.methods or ()}
        return every | {"HEAD"} if "GET" in every else every

    if error.status_code == 405:
        return HTTPException(405, error.detail, {"Allow": ", ".join(sorted(methods(path)))})
    if error.status_code != 404 or error.detail != "Not Found":
        return error
    plain = path.rstrip("/")
    if methods(f"/v1{plain}"):
        remedy = f"there is /v1{plain}; the base_url of OpenAI's clients is {request.base_url}v1"
    elif methods(plain):
        remedy = f"there is {plain}"
    elif f"{plain}/".startswith(OPENAI_PREFIX):
        remedy = f"there are: {', '.join(sorted({one.path for one in routes if one.path.startswith(OPENAI_PREFIX)}))}"
    else:
        remedy = "see /openapi.json"
    return Problem(404, "NotFound", str(error.detail), remedy=remedy)


def install(app: FastAPI, routes: Sequence[Route]) -> None:
    """Make the application, with these routes, answer every error in this way."""

    async def handle(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException) and not isinstance(error, Problem):
            error = _no_route(error, request, routes)
        found = problem(error)
        sent = request.headers.get("content-type", "no content-type")
        if found.field == "body" and not sent.startswith("application/json"):
            found = Problem(415, "UnsupportedMediaType", f"the body must be application/json, not {sent}")
        if found.status_code == 500:
            place = f"{request.method} {request.url.path}"
            id_ = request.state.request_id
            log.error("%s, request %s: failed: %s", place, id_, without_text(error), extra={"request": id_})
        return answer(found, request.url.path)

    async def nobody_there(_: Request, __: Exception) -> Response:
        return Response(status_code=499)  # only the log shows it, because the caller has left

    for left in (Gone, ClientDisconnect):
        app.add_exception_handler(left, nobody_there)
    for kind in (HTTPException, RequestValidationError, ArgosyError, *(k for k, _ in _STATUS), Exception):
        app.add_exception_handler(kind, handle)


def _invalid(error: RequestValidationError) -> Problem:
    first = error.errors()[0]
    # ("body", 17) is the position of a JSON error; ("body", "inputs", 3) is a field
    place = [part for part in first["loc"] if part not in ("body", "query", "path", "header")]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "not JSON")
        return Problem(400, "InvalidJson", f"the body is not JSON: {reason} at character {place[-1] if place else 0}")
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".") or "body"
    return Problem(422, "InvalidInput", f"{field}: {first['msg']}", field=field, remedy="see /openapi.json")


def _unreadable(cause: BaseException) -> Problem:
    """Return the problem for a body of JSON that ends Python's reader, of which FastAPI tells no reason."""
    reason = "it has lists and objects within each other too many times" if isinstance(cause, RecursionError) else cause
    return Problem(400, "InvalidJson", f"the body is not JSON: {reason}")


def _text(error: Exception) -> str:
    return "; ".join([str(error), *getattr(error, "__notes__", ())])
