"""The keywords of the methods that submit, stated once: for type checkers as TypedDicts, for `help` as signatures."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypedDict, TypeVar

from producers.client.sending.intake import OnError, Rejected
from producers.wire.messages import Priority

F = TypeVar("F", bound=Callable[..., object])


class ItemOptions(TypedDict, total=False):
    """Keywords of `submit` and `stream`."""

    priority: Priority | str
    deadline_s: float | None
    params: Mapping[str, Any] | None
    key: str | None
    durable: bool
    tenant: str | None


class JobOptions(TypedDict, total=False):
    """Keywords of a job of any kind."""

    name: str | None
    idempotency_key: str | None
    ttl_s: float | None
    on_error: OnError
    on_accepted: Callable[[str, int], object] | None
    on_rejected: Callable[[Rejected], object] | None
    patience_s: float | None
    tenant: str | None


class PipelineOptions(JobOptions, total=False):
    """Keywords of `submit_pipeline`."""

    priority: Priority | str
    deadline_s: float | None


class ManyOptions(PipelineOptions, total=False):
    """Keywords of `submit_many`."""

    params: Mapping[str, Any] | None


def keywords_of(taker: Callable[..., object], **defaults: object) -> Callable[[F], F]:
    """Show, in the signature of a method with ``**options``, the keywords of the function that takes them."""
    parameters = inspect.signature(taker).parameters.values()
    taken = [
        one.replace(default=defaults.get(one.name, one.default)) for one in parameters if one.kind is one.KEYWORD_ONLY
    ]

    def show(method: F) -> F:
        own = inspect.signature(method)
        named = [one for one in own.parameters.values() if one.kind is not one.VAR_KEYWORD]
        setattr(method, "__signature__", own.replace(parameters=[*named, *taken]))  # noqa: B010 - mypy does not know it
        return method

    return show
