"""The keywords of the submitting methods, stated once: as TypedDicts for type checkers, as signatures for `help`."""

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
    """Keywords of every job."""

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
    """Return a decorator that adds `taker`'s keywords to the signature of a method with ``**options``."""
    parameters = inspect.signature(taker).parameters.values()
    taken = [
        item.replace(default=defaults.get(item.name, item.default))
        for item in parameters
        if item.kind is item.KEYWORD_ONLY
    ]

    def show(method: F) -> F:
        own = inspect.signature(method)
        named = [item for item in own.parameters.values() if item.kind is not item.VAR_KEYWORD]
        setattr(method, "__signature__", own.replace(parameters=[*named, *taken]))  # noqa: B010 - mypy does not know it
        return method

    return show
