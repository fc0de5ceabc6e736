"""The lines of a batch's input file: each is read, checked, and turned into items."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

from producers.client.request import NewItem
from producers.gateway.gateway import Detokenizer
from producers.gateway.openai.endpoint_calls import Call
from producers.gateway.openai.endpoints import ENDPOINTS
from producers.gateway.problems import Problem, problem
from producers.gateway.schemas import MOST_OPENED, opened
from producers.wire.catalogue import Catalogue
from producers.wire.errors import ArgosyError, InvalidInput

#: OpenAI's limit for a batch.
MAX_REQUESTS = 50_000

#: The number of errors that a batch reports. A file with errors in every line needs no more.
ERRORS = 100

#: The number of blank lines between two turns of the event loop.
BLANKS = 4096


@dataclass(frozen=True, slots=True)
class Line:
    """A request of a batch: `number` is its line in the file, `custom_id` the caller's name for it.

    `call` is None if the request is `refused`.
    """

    number: int
    custom_id: str
    call: Call | None
    refused: Problem | None = None

    @property
    def key(self) -> str:
        """The key of its results: all data needed to answer the request from them. ASCII for any `custom_id`."""
        options = {} if self.call is None else self.call.options
        return json.dumps({"custom_id": self.custom_id, "line": self.number, "options": options})

    @property
    def places(self) -> int:
        """The number of items of the job that belong to the request: one, if it was refused."""
        return 1 if self.call is None else len(self.call.items)

    def items(self) -> list[NewItem]:
        """Return the items to submit, in order."""
        call = self.call
        return [] if call is None else [NewItem(item.input, self.key, item.params) for item in call.items]


class LineError(ArgosyError):
    """An invalid line, which makes the whole file invalid. `code` and `param` are fields of OpenAI's errors."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


def read(number: int, text: bytes, endpoint: str, catalogue: Catalogue, detokenizer: Detokenizer | None = None) -> Line:
    """Return the request of a line, with the reason if its body alone is invalid. Raises LineError."""
    if opened(text) > MOST_OPENED:
        raise LineError("invalid_json_line", f"has over {MOST_OPENED:,} lists and objects")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LineError("invalid_json_line", f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise LineError("invalid_json_line", f"must be an object, not {type(value).__name__}")
    custom_id, body = value.get("custom_id"), value.get("body")
    if not isinstance(custom_id, str) or not custom_id:
        raise LineError("missing_required_parameter", "needs a custom_id of type text", "custom_id")
    if value.get("method", "POST") != "POST":
        raise LineError("invalid_method", "the method must be POST", "method")
    if value.get("url") != endpoint:
        raise LineError("mismatched_url", f"the url must be the batch's endpoint, {endpoint}", "url")
    if not isinstance(body, dict):
        raise LineError("missing_required_parameter", "needs a body of type object", "body")
    try:
        if body.get("stream"):
            raise InvalidInput("stream", "is not available in a batch", "leave it out")
        call = ENDPOINTS[endpoint].plan(catalogue, body, detokenizer)
    except (InvalidInput, Problem) as error:
        return Line(number, custom_id, None, problem(error))
    return Line(number, custom_id, call)


class RequestReader:
    """Read the requests of a file, and collect its errors, the number of its requests and their task."""

    def __init__(
        self,
        texts: AsyncIterator[bytes],
        endpoint: str,
        catalogue: Catalogue,
        detokenizer: Detokenizer | None = None,
    ) -> None:
        self.errors: list[dict[str, Any]] = []
        self.total = 0
        self.refused = 0
        self.task: str | None = None
        self._texts = texts
        self._endpoint = endpoint
        self._catalogue = catalogue
        self._detokenizer = detokenizer
        self._ids: set[str] = set()

    async def lines(self) -> AsyncGenerator[Line, None]:
        """Yield the requests. Invalid lines become `errors`; empty lines are skipped."""
        number = 0
        async for text in self._texts:
            number += 1
            if not text.strip():
                if not number % BLANKS:
                    await asyncio.sleep(0)  # a file of blank lines alone would hold the loop
                continue
            try:
                line = self._line(number, text)
            except LineError as error:
                self._wrong(number, error)
            else:
                yield line
            if len(self.errors) >= ERRORS:
                return
        if not self.total and not self.errors:
            self._wrong(None, LineError("empty_file", "the file has no requests"))

    def _line(self, number: int, text: bytes) -> Line:
        line = read(number, text, self._endpoint, self._catalogue, self._detokenizer)
        self.total += 1
        if self.total > MAX_REQUESTS:
            raise LineError("too_many_requests", f"a batch holds at most {MAX_REQUESTS:,} requests")
        if line.custom_id in self._ids:
            raise LineError("duplicate_custom_id", f"the custom_id {line.custom_id!r} occurs twice", "custom_id")
        self._ids.add(line.custom_id)
        if line.call is None:
            self.refused += 1
        else:
            self.task = self.task or line.call.task
            if line.call.task != self.task:
                raise LineError(
                    "mismatched_model", f"all requests of a batch must name the same model, {self.task}", "model"
                )
        return line

    def _wrong(self, number: int | None, error: LineError) -> None:
        self.errors.append({"code": error.code, "message": str(error), "param": error.param, "line": number})
