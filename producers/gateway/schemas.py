"""The request bodies, as OpenAPI shows them, and their checks before the client sees them."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from producers.client.request import NewItem
from producers.client.sending.submission import MOST_JOB_NAME
from producers.wire.errors import InvalidInput
from producers.wire.messages import InlineBytes, PathInput, UrlInput
from results_store.gateway.api_keys import Role
from results_store.records import PauseKind

_Value = TypeVar("_Value")

#: A list of a request's body. Its check ends at the first wrong value: an error for each of millions of them would fill
#: the gateway's memory.
Listed: TypeAlias = Annotated[list[_Value], Field(fail_fast=True)]

#: The most fields of a body, or of an object whose fields are checked one by one, for the same reason.
MOST_FIELDS = 100

#: The most lists and objects of a body or a line. Python reads a million of them in half a second, in which the gateway
#: answers nobody.
MOST_OPENED = 3_000_000

#: A text that the store is queried for. Control characters are excluded because PostgreSQL cannot store them.
Word = Annotated[str, Field(pattern=r"^[\w.:+@ -]*$", max_length=200)]

Webhook = Annotated[
    str | None,
    Field(
        max_length=2000,
        description="Where to POST that the job has finished, as Standard Webhooks do; see docs/gateway.md.",
        examples=["https://app.example/hooks/argosy"],
    ),
]

PriorityName = Literal["interactive", "standard", "bulk"]

#: The largest number that both databases hold.
MAX_COUNT = 2**53

_Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
_Short = Annotated[str, Field(max_length=200)]

Task = Annotated[
    str | Listed[str],
    Field(
        description="A task's name, or several names; params and outputs are then by task name. See /api/tasks.",
        json_schema_extra={"minLength": 1, "minItems": 1},
    ),
]
Params = Annotated[
    dict[str, Any] | None, Field(description="The task's parameters; by task name if there are several tasks.")
]


def _no_truth_value(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number of seconds, not true or false")  # noqa: TRY004 - pydantic's errors are values
    return value


#: A number of seconds. To pydantic, true would be one second.
Seconds = Annotated[float, BeforeValidator(_no_truth_value)]

DeadlineS = Annotated[
    Seconds | None, Field(gt=0, le=MAX_COUNT, description="Items not computed within so many seconds expire.")
]
AnyInput = Annotated[
    Any,
    Field(
        description='Text; an image or a clip as {"bytes": BASE64}, {"url": …} or {"path": …}; or an object of the '
        "task's input form.",
        examples=["A fine, moving film."],
    ),
]


def opened(text: bytes) -> int:
    """Return the number of lists and objects in JSON, about: texts may hold brackets too."""
    return text.count(b"[") + text.count(b"{")


def few_fields(given: Any) -> Any:
    """Return a body, or an object in it. Raises ValueError if it has too many fields."""
    if isinstance(given, dict) and len(given) > MOST_FIELDS:
        raise ValueError(f"has over {MOST_FIELDS} fields")
    return given


class Body(BaseModel):
    """A request body that refuses unknown fields. Null is the same as a field that is left out."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _given(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        optional = {name for name, field in cls.model_fields.items() if not field.is_required()}
        return {name: value for name, value in few_fields(given).items() if value is not None or name not in optional}

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        found = handler.resolve_ref_schema(handler(schema))
        for name in {*found["properties"]} - {*found.get("required", ())}:
            own = found["properties"][name]
            if {"type": "null"} not in own.get("anyOf", ()):
                found["properties"][name] = {"anyOf": [own, {"type": "null"}]}
        return found


class Asked(Body):
    """The common fields of single and multiple submissions."""

    task: Task
    params: Params = None
    deadline_s: DeadlineS = None


class NewOne(Asked):
    """A single item."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"task": "sentiment", "input": "A fine, moving film.", "wait_s": 10}]}
    )

    input: AnyInput
    priority: PriorityName = "interactive"
    key: str | None = Field(None, description="Your own identifier, kept with the result.")
    durable: bool = Field(True, description="Store the item before accepting it. Otherwise a crash may lose it.")
    wait_s: Seconds = Field(0, ge=0, le=3600, description="Time to wait for the result, in seconds; 120 at most.")
    webhook: Webhook = None


class SubmissionOptions(Asked):
    """The options that all items of a job share."""

    priority: PriorityName = "bulk"
    name: str | None = Field(None, max_length=MOST_JOB_NAME)
    idempotency_key: str | None = Field(
        None,
        min_length=1,
        max_length=MOST_JOB_NAME,
        description="Submitting again with the same key and inputs adds nothing twice.",
    )
    ttl_s: Seconds | None = Field(None, gt=0, le=MAX_COUNT, description="Purge the job so many seconds after its end.")
    on_error: Literal["stop", "skip"] = Field("stop", description="On an invalid input, stop or skip it.")
    webhook: Webhook = None


class NewJobBody(SubmissionOptions):
    """Many items at once."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"task": ["sentiment", "topic"], "inputs": ["Shares fell.", {"input": "They won.", "key": "a2"}]}
            ]
        }
    )

    inputs: list[Any] = Field(
        description='Inputs, each plain or as {"input": …, "key": …, "params": …}.', examples=[["A fine film."]]
    )


class LinesOptions(Body):
    """The options of a job whose items come as lines, in the query string."""

    task: list[str] = Field(description="A task's name; repeat it for several tasks.", min_length=1)
    params: str | None = Field(None, description="Parameters, as JSON.")
    deadline_s: DeadlineS = None
    priority: PriorityName = "bulk"
    name: str | None = Field(None, max_length=MOST_JOB_NAME)
    idempotency_key: str | None = Field(None, min_length=1, max_length=MOST_JOB_NAME)
    ttl_s: float | None = Field(None, gt=0, le=MAX_COUNT)
    on_error: Literal["stop", "skip"] = "stop"
    webhook: Webhook = None

    def options(self) -> SubmissionOptions:
        """Return the options as the options of any job. Raises InvalidInput."""
        try:
            params = None if self.params is None else json.loads(self.params)
        except (ValueError, RecursionError) as error:
            raise InvalidInput("params", f"is not JSON: {error}") from error
        if params is not None and not isinstance(params, dict):
            raise InvalidInput("params", f"must be an object, not {type(params).__name__}")
        task = self.task[0] if len(self.task) == 1 else self.task
        return SubmissionOptions(**{**self.model_dump(), "task": task, "params": params})


class Replay(Body):
    """Filter of the failed items to queue again: a job, a kind of error, or both. Operators may omit both."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"job": "01jd2m3n4p5q6r7s8t9v0w1x2y"}]})

    job: Word | None = None
    error_kind: Word | None = None


class NewPriority(Body):
    """The priority that a job gets."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"priority": "interactive"}]})

    priority: PriorityName


class Resumption(Body):
    """The model, task or tenant that goes on."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"kind": "model", "name": "text"}]})

    kind: PauseKind
    name: str = Field(max_length=500, description="Its name; empty for the tenant without a name.")


class NewPause(Resumption):
    """The model, task or tenant that is paused, and the reason."""

    reason: str = Field("", max_length=500, description="A sentence for those who wait.")


class ReportedSite(Body):
    """A site's report of itself: models, versions and counts (`producers.wire.edge.told_sites.SiteReport`).

    Unknown fields are those of a newer site, and are left out.
    """

    model_config = ConfigDict(
        extra="ignore", json_schema_extra={"examples": [{"version": "0.1.0", "models": {"text": "3f2a"}, "sent": 17}]}
    )

    version: str = Field("", max_length=100)
    models: dict[_Short, _Short] = Field({}, max_length=MOST_FIELDS)
    waiting: _Count = 0
    waiting_bytes: _Count = 0
    sent: _Count = 0
    by_centre: _Count = 0
    by_site: _Count | None = None
    agreed: _Count = 0
    differed: _Count = 0


class NewKey(Body):
    """A new key of the gateway: its role, and its tenant or all tenants."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "laptop", "tenant": "research"}]})

    name: str = Field(min_length=1, max_length=200, pattern=r"^[^\x00]*$")
    role: Role = Field("member", description="A viewer only reads, an operator runs the whole fleet.")
    tenant: str | None = None
    all_tenants: bool = Field(False, description="For viewers and operators.")
    expires_s: Seconds | None = Field(None, gt=0, le=100 * 366 * 86400, description="Its lifetime; unlimited if null.")
    rate_per_s: Seconds | None = Field(None, gt=0, le=MAX_COUNT, description="The most requests per second.")


class TenantSettings(Body):
    """A tenant's share of the fleet and its limits. Settings that are left out stay."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "acme", "weight": 3}]})

    name: str = Field(description="Its name; empty for the tenant without a name.")
    weight: Seconds | None = Field(None, ge=1e-6, le=1e6, description="Its share, against other tenants' weights.")
    max_items_per_s: Seconds | None = Field(None, ge=0, le=MAX_COUNT, description="0: no limit.")
    max_in_flight: int | None = Field(None, ge=0, le=10**9, description="In items; 0: no limit.")


def input_of(value: object, field: str) -> object:
    """Return the input of a task for files in the client's form. Raises InvalidInput for invalid base64."""
    if isinstance(value, dict) and value.keys() == {"text", "image"}:
        return value | {"image": input_of(value["image"], f"{field}.image")}
    if not isinstance(value, dict) or len(value) != 1:
        return value
    ((form, inner),) = value.items()
    if form not in ("bytes", "url", "path"):
        return value
    if not isinstance(inner, str):
        raise InvalidInput(f"{field}.{form}", f"must be text, not {type(inner).__name__}")
    if form == "url":
        return UrlInput(inner)
    if form == "path":
        return PathInput(inner)
    try:
        return InlineBytes(base64.b64decode(inner, validate=True))
    except (binascii.Error, ValueError) as error:
        raise InvalidInput(f"{field}.bytes", f"is not base64: {error}") from error


def item_of(value: object, place: str, *, files: bool) -> NewItem:
    """Return the item of an entry: an input, or an object with `input`, `key` and `params`. Raises InvalidInput.

    Only for tasks that take `files` is an input read as one: a row or JSON may have columns of any names.
    """
    if not isinstance(value, dict) or "input" not in value:
        return NewItem(input_of(value, place) if files else value, origin=place)
    if unknown := sorted(set(value) - {"input", "key", "params"}):
        raise InvalidInput(f"{place}.{unknown[0]}", "is not a field of an item", "the fields are: input, key, params")
    content = input_of(value["input"], f"{place}.input") if files else value["input"]
    return NewItem(content, value.get("key"), value.get("params"), origin=place)
