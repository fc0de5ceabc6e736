"""`argosy submit --dry-run`: check the rows and estimate the work, without submitting anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from producers.wire.command_line import say

if TYPE_CHECKING:
    from producers.client.client import Client
    from producers.client.request import Request
    from producers.client.sending.intake import Rejected
    from results_store.records import Batch, Pause
    from results_store.store import Store

#: The newest batches from which tokens are estimated.
_LOOKED_AT = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The work of rows for a model: seconds of the fleet and tokens, None if no batch of the model is known."""

    model: str
    tasks: Sequence[str]
    seconds: float | None
    tokens: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """The rows of a source, of which `bad` cannot be submitted."""

    rows: int
    bad: int


def counted(
    request: Request, rows: Iterable[object], *, skip: bool, on_rejected: Callable[[Rejected], object]
) -> Counted:
    """Check every row as a submission does. Raises InvalidInput at the first bad row, unless they are skipped."""
    from producers.client.sending.intake import Intake

    intake = Intake(request, "skip" if skip else "raise", on_rejected=on_rejected)
    for row in rows:
        intake.take(row)
    return Counted(rows=intake.seen, bad=intake.rejected_count)


def estimates(store: Store, models: Mapping[str, Sequence[str]], items: int) -> list[Estimate]:
    """Return the work of so many items for each model with its tasks, from the fleet's recent batches."""
    rates, batches = store.flight.seconds_per_item(), store.flight.recent(limit=_LOOKED_AT)
    return [
        Estimate(
            model=model,
            tasks=tasks,
            seconds=items * rates[model] if model in rates else None,
            tokens=_tokens(items, [batch for batch in batches if batch.model == model]),
        )
        for model, tasks in models.items()
    ]


def _tokens(items: int, batches: Sequence[Batch]) -> float | None:
    computed = sum(batch.items for batch in batches)
    return items * sum(batch.tokens for batch in batches) / computed if computed else None


def tell_estimate(client: Client, request: Request, found: Counted, tenant: str) -> None:
    """Print the rows, the work and the time at which it would be done."""
    work = client.ask(lambda store: estimates(store, request.models, found.rows - found.bad))
    say(f"{found.rows:,} rows{f', {found.bad:,} of them bad' if found.bad else ''}; nothing was submitted")
    for one in work:
        say(f"{one.model} ({', '.join(one.tasks)}): {_amount(one)}")
    for paused in client.ask(lambda store: _paused(store, request, tenant)):
        say(f"argosy: {paused}; rows would wait", err=True)
    ahead_s = client.ask(lambda store: _ahead_s(store, request, tenant))
    known = [one.seconds for one in work if one.seconds is not None]
    if len(known) < len(work):
        say("the time is not known: submit some rows first, and estimate from their batches")
        return
    left_s = ahead_s + sum(known)
    done_at = datetime.now().astimezone() + timedelta(seconds=left_s)
    behind = f"{_duration(ahead_s)} of it behind other work"
    say(f"done in about {_duration(left_s)}, {behind}: {done_at:%Y-%m-%d %H:%M:%S%z}")
    if request.deadline_s is not None and left_s > request.deadline_s:
        say(f"argosy: the deadline of {request.deadline_s:g} s comes before that: rows would expire", err=True)


def _amount(one: Estimate) -> str:
    if one.seconds is None:
        return "no recent batches"
    tokens = f", {one.tokens:,.0f} tokens" if one.tokens else ""
    return f"about {_duration(one.seconds)} of the fleet's time{tokens}"


def _ahead_s(store: Store, request: Request, name: str) -> float:
    """Return the seconds of work that comes before a new submission, as admission estimates it."""
    from producers.client.sending.admission import QueueSnapshot
    from results_store.records import Tenant

    tenants = {tenant.name: tenant for tenant in store.tenants.every()}
    own = tenants.get(name) or Tenant(name=name, lane=0)
    return QueueSnapshot(tenants=tenants, work=store.flight.queued_work()).queued_s(
        request.models, request.priority, own
    )


def _paused(store: Store, request: Request, tenant: str) -> list[Pause]:
    own = {("model", name) for name in request.models} | {("task", name) for name in request.names}
    return [one for one in store.pauses.every() if (one.kind, one.name) in own | {("tenant", tenant)}]


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))
