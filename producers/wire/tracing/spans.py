"""The spans of an item's way, in a program that uses OpenTelemetry. Elsewhere each costs a look into a dictionary.

submit (producer) → the message's header `traceparent`, as W3C has it → process (worker), with wait, compute and store.
A micro-batch is a trace of its own, whose links are the spans of its envelopes. No span has an input or an output.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.trace import Span, SpanContext

    from producers.wire.messages import Priority

#: The headers of a message: W3C's two, and the parents of further items.
PARENT, STATE, OTHERS = "traceparent", "tracestate", "argosy_traceparents"

#: The most further parents in a message.
MOST_OTHERS = 32

#: A W3C context, as a header has it.
TraceContext = Mapping[str, str]

_PARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def _api() -> Any:
    """Return OpenTelemetry's module of traces, if the program has loaded it and set a provider."""
    api: Any = sys.modules.get("opentelemetry.trace")
    return None if api is None or isinstance(api.get_tracer_provider(), api.ProxyTracerProvider) else api


@contextmanager
def _span(name: str, **options: Any) -> Iterator[Span]:
    """Make a span the current one. It has the class of an exception alone: a message may hold a part of an input."""
    api = _api()
    tracer = api.get_tracer("argosy")
    with tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False, **options) as span:
        try:
            yield span
        except BaseException as error:
            span.set_status(api.StatusCode.ERROR, type(error).__name__)
            raise


# --- the producer's side ---


@contextmanager
def submitting(tasks: Iterable[str], priority: Priority, items: int | None = None) -> Iterator[TraceContext | None]:
    """Span a submission. Yields the header of its messages; None without a trace. `items` is None for any number."""
    api = _api()
    if api is None:
        yield None
        return
    with _span("argosy submit", kind=api.SpanKind.PRODUCER) as span:
        if span.is_recording():
            span.set_attributes({"argosy.tasks": [*tasks], "argosy.priority": priority.name.lower()})
            if items is not None:
                span.set_attribute("messaging.batch.message_count", items)
        yield carried()


def carried() -> TraceContext | None:
    """Return the context of this thread's or task's span, for a message; None without one."""
    if _api() is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier or None


def headers(carriers: Iterable[TraceContext]) -> dict[str, Any]:
    """Return the headers of a message whose items came with these contexts."""
    first, *others = dict.fromkeys(map(_frozen, carriers))
    further = {OTHERS: [dict(one)[PARENT] for one in others[:MOST_OTHERS]]} if others else {}
    return {**dict(first), **further}


def _frozen(carrier: TraceContext) -> tuple[tuple[str, str], ...]:
    return tuple(carrier.items())


# --- the worker's side ---


@contextmanager
def processing(request: Mapping[str, Any], queue: str) -> Iterator[None]:
    """Span the run of an envelope, under the context of its message's headers."""
    api = _api()
    if api is None:
        yield
        return
    with _span(
        f"process {queue}",
        context=_context(request.get(PARENT), request.get(STATE)),
        kind=api.SpanKind.CONSUMER,
        links=[api.Link(found) for found in _contexts(request.get(OTHERS))],
        attributes={"messaging.system": "celery", "messaging.destination.name": queue},
    ):
        yield


def current() -> SpanContext | None:
    """Return the context of this thread's span, if it is recorded."""
    api = _api()
    span: Span | None = api.get_current_span() if api else None
    return span.get_span_context() if span is not None and span.is_recording() else None


def ids() -> dict[str, str]:
    """Return the ids of this thread's span, as OpenTelemetry names them in log lines; none if it is not recorded."""
    context = current()
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"} if context else {}


def told(about: Mapping[str, str], done: Mapping[str, int], times: tuple[float, float] | None) -> None:
    """Complete this thread's span when the results are committed.

    `done` are the numbers of results by state; `times` are those (Unix) between which the last batch was computed.
    """
    api = _api()
    span: Any = api.get_current_span() if api else None
    if span is None or not span.is_recording():
        return
    span.set_attributes({f"argosy.{name}": value for name, value in about.items()})
    span.set_attributes({f"argosy.results.{state}": count for state, count in done.items()})
    begun, now = getattr(span, "start_time", None), time.time_ns()
    if times is None or begun is None:
        return
    batched_ns, computed_ns = (int(at * 1e9) for at in times)
    for name, begin, end in (
        ("wait", begun, batched_ns),
        ("compute", batched_ns, computed_ns),
        ("store", computed_ns, now),
    ):
        if begin <= end:
            api.get_tracer("argosy").start_span(name, start_time=begin).end(end)


def batched(
    name: str, attributes: Mapping[str, Any], members: Sequence[SpanContext | None], ran: tuple[float, float]
) -> None:
    """Span a micro-batch on its device, which ran between two times (Unix), with links to its members' spans."""
    contexts = {one.span_id: one for one in members if one is not None}
    api = _api()
    if not contexts or api is None:
        return
    from opentelemetry.context import Context

    begin, end = (int(at * 1e9) for at in ran)
    span = api.get_tracer("argosy").start_span(
        name,
        context=Context(),
        links=[api.Link(one) for one in contexts.values()],
        start_time=begin,
        attributes={f"argosy.{key}": value for key, value in attributes.items()},
    )
    span.end(end)


def _context(parent: object, state: object) -> Any:
    """Return the context that a header names; an empty one for a header that is none."""
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    if not isinstance(parent, str) or not _PARENT.fullmatch(parent):
        return Context()
    carrier = {PARENT: parent, **({STATE: state} if isinstance(state, str) else {})}
    return TraceContextTextMapPropagator().extract(carrier, Context())


def _contexts(parents: object) -> Iterator[SpanContext]:
    api = _api()
    for parent in parents[:MOST_OTHERS] if isinstance(parents, list) else ():
        found = api.get_current_span(_context(parent, None)).get_span_context()
        if found.is_valid:
            yield found
