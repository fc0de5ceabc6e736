"""Tables and progress bars of the command. rich is imported only when something is shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from producers.wire.command_line import console
from producers.wire.messages import Priority
from results_store.records import JobStatus, QueuedWork, Tenant

if TYPE_CHECKING:
    from rich.table import Table

    from producers.wire.catalogue import Catalogue, Task
    from producers.wire.edge.told_sites import ToldSite


def jobs_table(jobs: Sequence[JobStatus]) -> Table:
    """Return a table of jobs."""
    from rich.table import Table

    table = Table("job", "name", "priority", "created", "state", "done", "failed", box=None, pad_edge=False)
    for job in jobs:
        done = f"{job.done:,} / {job.total:,}"
        table.add_row(job.id, job.name or "", _priority(job), _when(job.created_at), job.state, done, f"{job.failed:,}")
    for column in table.columns[-2:]:
        column.justify = "right"
    table.columns[0].no_wrap = True
    return table


def queued_lines(work: Sequence[QueuedWork]) -> Iterator[str]:
    """Yield a line for the queued items of each model and priority, with an estimate of their time if known."""
    items: Counter[tuple[str, int]] = Counter()
    seconds: dict[tuple[str, int], float | None] = {}
    for one in work:
        line = (one.model, one.priority)
        items[line] += one.items
        before, more = seconds.get(line, 0.0), one.seconds
        seconds[line] = None if before is None or more is None else before + more
    for (model, priority), count in items.items():
        took_s = seconds[model, priority]
        estimate = "no estimate yet" if took_s is None else f"about {took_s:,.0f} s of work"
        yield f"waiting: {model}, {Priority(priority).name.lower()}: {count:,} items, {estimate}"


def sites_table(sites: Sequence[ToldSite]) -> Table:
    """Return a table of sites, as they told last."""
    from rich.table import Table

    table = Table("site", "tenant", "last seen", "waiting", "sent on", "agreement", "models", box=None, pad_edge=False)
    for site in sites:
        seen = _when(site.at) + (", away" if site.away else "")
        waiting, models = f"{site.waiting:,}", ", ".join(f"{name} {own}" for name, own in site.models.items())
        share, agreement = map(_share, (site.share_sent, site.agreement))
        table.add_row(site.site, site.tenant, seen, waiting, share, agreement, models)
    return table


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def show_job(job: JobStatus) -> None:
    """Print a job, a line per fact."""
    facts = [
        ("job", job.id),
        ("name", job.name or "-"),
        *([("tenant", job.tenant)] if job.tenant else []),
        ("state", job.state),
        ("priority", _priority(job)),
        ("created", _when(job.created_at)),
        ("finished", "-" if job.finished_at is None else _when(job.finished_at)),
        ("items", f"{job.items:,}"),
        ("results", f"{job.done:,} of {job.total:,}: {_counts(job)}"),
    ]
    shown = console()
    for name, fact in facts:
        shown.print(f"{name:<10}{fact}", markup=False, highlight=False)


def show_tenants(tenants: Sequence[tuple[Tenant, int]]) -> None:
    """Print a table of tenants, each with its items in flight."""
    from rich.table import Table

    table = Table("tenant", "weight", "items/s", "in flight", "of at most", "lane", box=None, pad_edge=False)
    for tenant, in_flight in tenants:
        rate = "-" if tenant.max_items_per_s is None else f"{tenant.max_items_per_s:g}"
        most = "-" if tenant.max_in_flight is None else f"{tenant.max_in_flight:,}"
        table.add_row(tenant.name or "''", f"{tenant.weight:g}", rate, f"{in_flight:,}", most, str(tenant.lane))
    for column in table.columns[1:]:
        column.justify = "right"
    console().print(table)


def show_tasks(catalogue: Catalogue) -> None:
    """Print the tasks with their parameters and defaults."""
    from rich.table import Table

    table = Table("task", "kind", "model", "input", "parameters", "output", box=None, pad_edge=False)
    for task in catalogue.tasks.values():
        table.add_row(
            task.name,
            task.kind.name,
            task.model,
            task.kind.modality,
            _parameters(task),
            task.summary or task.kind.summary,
        )
    table.columns[0].no_wrap = True
    console().print(table)


def show_kinds() -> None:
    """Print the kinds of tasks, for people who write a model's class."""
    from rich.table import Table

    from producers.wire.kinds.described import described

    table = Table("kind", "input", "prepare gets", "parameters", "answer", box=None, pad_edge=False)
    for row in described():
        table.add_row(*row)
    table.columns[0].no_wrap = True
    console().print(table, markup=False)


@contextmanager
def submission_bar() -> Iterator[Callable[[int, float | None], None]]:
    """Show the submitted items, their rate and the remaining time; yield a function to call with items and share.

    Only on a terminal. The share of the source that was read is from 0 to 1.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    items = TextColumn("{task.description} {task.fields[items]} items, {task.fields[rate]}/s")
    columns = (items, BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("submitting", total=None, items="0", rate="-")

        def show(count: int, share: float | None) -> None:
            elapsed_s = progress.tasks[0].elapsed or 0.0
            rate = f"{count / elapsed_s:,.0f}" if elapsed_s else "-"
            total = None if share is None else 1.0
            progress.update(bar, total=total, completed=share, items=f"{count:,}", rate=rate)

        yield show


@contextmanager
def progress_bar() -> Iterator[Callable[[JobStatus], None]]:
    """Show a bar with the rate on standard error if it is a terminal; yield a function to call with the progress."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    rate = TextColumn("{task.fields[rate]} results/s")
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate, *times)
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("results", total=None, rate="-")

        def show(job: JobStatus) -> None:
            speed = progress.tasks[0].speed
            rate_shown = "-" if speed is None else f"{speed:,.0f}"
            progress.update(bar, completed=job.done, total=job.total, rate=rate_shown)

        yield show


def summary(job: JobStatus) -> str:
    """Return a one-line summary of a finished job."""
    line = f"{_counts(job)} of {job.total:,} results"
    if job.finished_at is None or job.finished_at <= job.created_at:
        return line
    took_s = job.finished_at - job.created_at
    return f"{line} in {took_s:,.1f} s, {job.total / took_s:,.0f}/s"


def _counts(job: JobStatus) -> str:
    counts = {
        "succeeded": job.succeeded,
        "failed": job.failed,
        "cancelled": job.cancelled,
        "expired": job.expired,
    }
    return ", ".join(f"{count:,} {state}" for state, count in counts.items() if count or state == "succeeded")


def _priority(job: JobStatus) -> str:
    return Priority(job.priority).name.lower()


def _when(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _parameters(task: Task) -> str:
    return " ".join(f"{field.name}={_default(task, field)}" for field in msgspec.structs.fields(task.kind.params))


def _default(task: Task, field: msgspec.structs.FieldInfo) -> str:
    if field.name not in task.params and field.required:
        return "(required)"
    return msgspec.json.encode(task.params.get(field.name, field.default)).decode()
