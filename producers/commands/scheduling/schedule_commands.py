"""`argosy schedule`: submissions by the clock. The commands need only the store."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from producers.commands.operate import Duration, open_store
from producers.commands.submit import SourceOptions, json_option, source_options
from producers.wire.command_line import ROWS, say, user

if TYPE_CHECKING:
    from producers.client.client import Client
    from producers.commands.scheduling.schedule_times import Timing
    from producers.commands.scheduling.scheduled_run import ScheduledSubmission
    from results_store.sql.waiting.schedules import Schedule, ScheduleRun


@click.group()
def schedule() -> None:
    """Submit files by the clock: once, or by a cron expression.

    A worker node submits each run, and of several nodes a single one. Every run is a job. The schedules are in the
    store, so all nodes have the same.
    """


@schedule.command()
@click.argument("schedule_name", metavar="NAME")
@source_options
@click.option("--cron", metavar="'M H DOM MON DOW'", help="Minute, hour, day, month and weekday of the runs.")
@click.option(
    "--zone",
    default="UTC",
    show_default=True,
    metavar="NAME",
    help="Time zone of --cron, --at and {planned_at:…}, such as Europe/Berlin.",
)
@click.option("--at", metavar="TIME", help="Run once at this time: 2027-01-31T02:30.")
@click.option(
    "--starting-deadline",
    "starting_deadline_s",
    type=Duration(),
    help="Skip a run that is later than this: 10m, 2h.  [default: run the newest that was missed, however late]",
)
@click.option(
    "--shared", is_flag=True, help="Every worker's machine has the source at this path.  [default: this machine alone]"
)
def add(
    schedule_name: str,
    *,
    cron: str | None,
    at: str | None,
    zone: str,
    starting_deadline_s: float | None,
    shared: bool,
    **given: Any,
) -> None:
    """Submit SOURCE again and again, or once, under the name NAME.

    Options are those of `argosy submit`. A SOURCE is read when the run is due, by a worker's machine: this one, for
    paths. The worker's fleet.toml must name its folder, or the beginning of its URL, in `[worker] schedules`.
    {planned_at:%Y-%m-%d} in it becomes the run's time. Times are by the store's clock.

    \b
    argosy schedule add nightly s3://logs/{planned_at:%Y-%m-%d}.jsonl -t topic --cron '30 2 * * *' --zone Asia/Tokyo
    argosy schedule add reviews /data/reviews.csv -t sentiment --cron '0 * * * mon-fri' --starting-deadline 30m
    argosy schedule add once reviews.csv -t sentiment --at 2027-01-31T02:30
    """
    import msgspec

    from producers.client.client import Client
    from producers.commands.scheduling.scheduled_run import ScheduledSubmission, checked_name
    from producers.commands.serving import unscheduled
    from results_store.sql.waiting.schedules import Schedule

    name = checked_name(schedule_name)
    where = tuple(map(_absolute, given["where"]))
    host = None if shared or not any(map(_is_local, where)) else platform.node()
    with Client() as client:
        rows = _checked(client, SourceOptions(**{**given, "where": where, "params": json_option(given["params"])}))
        now = client.ask(lambda store: store.now())
        timing = _timing(cron, at, zone, now)
        submission = ScheduledSubmission(timing=timing, rows=rows)
        _tell_absent(submission)
        new = Schedule(
            name=name,
            submission=msgspec.json.encode(submission).decode(),
            host=host,
            starting_deadline_s=starting_deadline_s,
            next_at=timing.next_after(now),
        )
        if not client.ask(lambda store: store.schedules.add(new, by=user())):
            raise click.UsageError(f"there is already a schedule {name!r}; `argosy schedule remove {name}` first")
    on = f" on {host}" if host else ""
    say(f"schedule {name}: next run {_when(new.next_at, timing.zone)}{on}", err=True)
    if remedy := unscheduled(new.submission, host):
        say(f"argosy: no running worker may read its source, and it waits until one may: {remedy}", err=True)


@schedule.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per schedule, for programs.")
def list_(*, as_json: bool) -> None:
    """List the schedules with their next time, and the end of their last run."""
    import msgspec

    from producers.commands.scheduling.schedule_view import schedule_view

    with open_store() as store:
        found, last_runs = store.schedules.every(), store.schedules.last_runs()
    for one in found:
        last = last_runs.get(one.name)
        if as_json:
            click.echo(msgspec.json.encode(schedule_view(one, last)).decode())
        else:
            say("  ".join(_described(one, last)))
    if not found:
        say("argosy: nothing is scheduled", err=True)


@schedule.command()
@click.argument("name")
@click.option("--limit", type=ROWS, default=20, show_default=True, help="The most runs to list.")
def runs(name: str, *, limit: int) -> None:
    """List the runs of a schedule, newest first: submitted, skipped and given up."""
    with open_store() as store:
        _known(name, store.schedules.every())
        found = store.schedules.runs(name, limit)
    for run in found:
        say(f"{_when(run.planned_at)}  {_outcome(run)}")
    if not found:
        say("argosy: it had no run yet", err=True)


@schedule.command()
@click.argument("name")
def remove(name: str) -> None:
    """Remove a schedule. Its jobs stay; `argosy cancel` ends them."""
    with open_store() as store:
        _known(name, store.schedules.every())
        store.schedules.remove(name, by=user())
    say(f"schedule {name} removed", err=True)


@schedule.command()
@click.argument("name")
def pause(name: str) -> None:
    """Let a schedule have no more runs until it is resumed. A run that has begun goes on."""
    with open_store() as store:
        _known(name, store.schedules.every())
        store.schedules.pause(name, by=user())
    say(f"schedule {name} is paused", err=True)


@schedule.command()
@click.argument("name")
def resume(name: str) -> None:
    """End the pause of a schedule. Times that passed meanwhile are left out."""
    from producers.commands.scheduling.schedule_times import planned

    with open_store() as store:
        _known(name, store.schedules.every())
        store.schedules.resume(name, planned, by=user())
        (now,) = [one for one in store.schedules.every() if one.name == name]
    say(f"schedule {name} goes on: next run {_when(now.next_at)}", err=True)


def _absolute(where: str) -> str:
    from producers.sources.places import STDIN

    if where == STDIN:
        raise click.UsageError("SOURCE: standard input is empty when the run is due; name a file or a URL")
    return where if "://" in where or "::" in where else os.path.abspath(where)  # noqa: PTH100 - keeps patterns


def _is_local(where: str) -> bool:
    return "://" not in where or where.startswith(("file://", "local://"))


def _checked(client: Client, rows: SourceOptions) -> SourceOptions:
    """Return the options with their tenant. Raises InvalidInput for options that every run would be refused for."""
    import msgspec

    from producers.client.request import Request

    Request.check(client.catalogue, rows.task, priority=rows.priority, deadline_s=rows.deadline_s, params=rows.params)
    return msgspec.structs.replace(rows, tenant=rows.owner)


def _timing(cron: str | None, at: str | None, zone: str, now: float) -> Timing:
    from producers.commands.scheduling.schedule_times import Timing, moment

    if (cron is None) == (at is None):
        raise click.UsageError("name the times by --cron, or a single one by --at")
    timing = Timing(cron=cron, zone=zone) if cron is not None else Timing(zone=zone, at=moment(at or "", zone))
    timing.check()
    if timing.next_after(now) is None:
        raise click.UsageError(f"--at: {at} has passed by the store's clock; submit it now by `argosy submit`")
    return timing


def _tell_absent(submission: ScheduledSubmission) -> None:
    """Warn about a file that is not there yet: it may come until it is due."""
    from producers.sources.places import find
    from producers.wire.errors import InvalidInput

    for name in submission.rows.where:
        if _is_local(name) and not submission.is_dated:
            try:
                find(name, Counter())
            except InvalidInput as error:
                say(f"argosy: {error.field} {error.problem}; each run fails unless it is there by then", err=True)


def _known(name: str, every: list[Schedule]) -> None:
    if all(one.name != name for one in every):
        raise click.UsageError(f"no schedule {name!r}; there are: {', '.join(one.name for one in every) or 'none'}")


def _described(one: Schedule, last: ScheduleRun | None) -> Iterator[str]:
    from producers.commands.scheduling.scheduled_run import understood
    from producers.wire.errors import InvalidInput

    yield one.name
    try:
        found = understood(one)
    except InvalidInput as error:
        yield f"{error.problem}; {error.remedy}"
        return
    yield f"{found.timing.cron or 'once'} {found.timing.zone}"
    yield "paused" if one.paused_at is not None else f"next {_when(one.next_at, found.timing.zone)}"
    yield f"{'+'.join(found.rows.tasks)} of {', '.join(found.rows.where)}"
    if one.host:
        yield f"on {one.host}"
    if last is not None:
        yield f"last {_when(last.planned_at, found.timing.zone)}: {_outcome(last)}"


def _outcome(run: ScheduleRun) -> str:
    parts = [run.state, *([f"job {run.job}"] if run.job else [])]
    if run.state == "running" and run.attempts > 1:
        parts.append(f"attempt {run.attempts}")
    return ", ".join(parts) + (f": {run.error}" if run.error else "")


def _when(at: float | None, zone: str = "UTC") -> str:
    from zoneinfo import ZoneInfo

    return "none" if at is None else f"{datetime.fromtimestamp(at, UTC).astimezone(ZoneInfo(zone)):%Y-%m-%d %H:%M%z}"
