"""A submission by the clock: its description in the store, and a run of it.

The idempotency key of a run is its schedule and its time. So a run that is begun again, by whomever, goes on after the
rows that were accepted, and one that was complete adds nothing.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import msgspec

from producers.commands.scheduling.schedule_times import NOT_READ, Timing, unreadable
from producers.commands.submit import SourceOptions, source_of
from producers.commands.submit_progress import rejecting
from producers.wire.errors import InvalidInput
from producers.wire.outside.allowed_places import AllowedPlaces
from results_store.errors import StoreError
from results_store.sql.waiting.schedules import LEASE_S, Schedule, TakenRun

if TYPE_CHECKING:
    from producers.client.client import Client

#: A part of a source that is the run's time, in the schedule's zone: ``{planned_at:%Y-%m-%d}``.
_TIME = re.compile(r"\{planned_at:([^{}]+)\}")


class ScheduledSubmission(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The times and the rows of a schedule, as the store keeps them. A newer form of it is not read as this one."""

    timing: Timing
    rows: SourceOptions

    def where(self, planned_at: float) -> tuple[str, ...]:
        """Return the sources of a run, with its time in place of ``{planned_at:…}``."""
        time = datetime.fromtimestamp(planned_at, ZoneInfo(self.timing.zone))
        return tuple(_TIME.sub(lambda found: time.strftime(found[1]), name) for name in self.rows.where)

    @property
    def is_dated(self) -> bool:
        """Whether each run has sources of its own."""
        return any(map(_TIME.search, self.rows.where))


class RunLost(Exception):
    """Another runner has the run, or its schedule was removed."""


def described(schedule: Schedule) -> ScheduledSubmission:
    """Return the submission of a schedule."""
    return msgspec.json.decode(schedule.submission, type=ScheduledSubmission)


def understood(schedule: Schedule) -> ScheduledSubmission:
    """Return the submission of a schedule.

    Raises InvalidInput for a form of another version, and for times that are none here, such as a time zone's.
    """
    try:
        found = described(schedule)
    except NOT_READ as error:
        raise unreadable(schedule, error) from error
    found.timing.check()
    return found


def run_key(name: str, planned_at: float) -> str:
    """Return the idempotency key of a run."""
    return f"schedule {name} {datetime.fromtimestamp(planned_at, UTC):%Y-%m-%dT%H:%M:%SZ}"


def submit_run(client: Client, run: TakenRun, allowed: AllowedPlaces) -> str:
    """Submit the rows of a run, or the rest of them, and return the id of its job. Nothing outside `allowed` is opened.

    Raises RunLost if another runner goes on with it, and the errors of `Client.submit_many`.
    """
    if run.job is not None and not client.ask(lambda store: store.retention.existing([run.job or ""])):
        return run.job  # it was accepted before, has finished, and was purged
    submission = described(run.schedule)
    rows = msgspec.structs.replace(submission.rows, where=submission.where(run.planned_at))
    source = source_of(client, rows, allowed=allowed)
    with _renewing(client, run) as lost, rejecting(None) as rejections:

        def accepted(job: str, items: int) -> None:
            if lost.is_set() or not client.ask(lambda store: store.schedules.renew(run, job)):
                raise RunLost

        job = client.submit_many(
            rows.task,
            rejections.unless_all(source.rows()),
            priority=rows.priority,
            name=rows.name or run.schedule.name,
            idempotency_key=run_key(run.schedule.name, run.planned_at),
            deadline_s=rows.deadline_s,
            params=rows.params,
            on_error="raise" if rows.on_error == "stop" else "skip",
            on_accepted=accepted,
            on_rejected=rejections,
            tenant=rows.tenant,
        )
    return job.id


@contextmanager
def _renewing(client: Client, run: TakenRun) -> Iterator[threading.Event]:
    """Renew the lease of a run, however slow its source is. The event is set once another runner has it."""
    over, lost = threading.Event(), threading.Event()

    def renew() -> None:
        while not over.wait(LEASE_S / 3):
            try:
                if not client.ask(lambda store: store.schedules.renew(run)):
                    lost.set()
                    return
            except StoreError:  # it may be back before the lease ends
                continue

    thread = threading.Thread(target=renew, name="argosy schedule lease", daemon=True)
    thread.start()
    try:
        yield lost
    finally:
        over.set()
        thread.join()


def checked_name(name: str) -> str:
    """Return a valid name of a schedule. Raises InvalidInput."""
    if not re.fullmatch(r"[\w.@+-]{1,100}", name) or name in (".", ".."):  # which URLs take for steps
        raise InvalidInput("name", f"{name!r} is no name of a schedule", "use letters, digits and . _ @ + - signs")
    return name
