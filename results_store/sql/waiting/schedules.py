"""Submissions by the clock: when each is due, and its runs.

The store's clock decides. A look for due runs takes a schedule's time by a row in `schedule_runs`, whose key is the
schedule and the time: of two nodes, and of a clock that passes the same time twice, a single one gets it. A lease keeps
others away while the run submits; a run whose node died is given to another, which continues it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    ScalarSelect,
    Select,
    and_,
    delete,
    func,
    or_,
    select,
    update,
)

from results_store.sql.auditing.audit_log import Actor, note
from results_store.sql.columns import clock, text
from results_store.sql.database import Database, Weight
from results_store.sql.driver_statements import store_time
from results_store.sql.result_rows import insert_new
from results_store.sql.schema import UNFINISHED_RUN, schedule_runs, schedules

#: The seconds of a run's lease, which its submission renews.
LEASE_S = 60.0

#: Seconds by which the store's clock may go back before schedules are planned again, and before a lease is taken for
#: that of a wrong clock: a runner that lives renews it by the right one.
_STEP_S, _LEASE_STEP_S = 1.0, 300.0

#: The attempts of a run beside others, if their process dies.
ATTEMPTS_TOGETHER = 2

#: As the name of a machine: the schedules that no machine in particular has to run.
ANY_HOST = ""

#: The most characters of an error that are kept.
_LONGEST_ERROR = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A submission by the clock. Times are Unix seconds by the store's clock.

    `submission` is the producers' JSON. A `host` is the machine on which a local source is. A run that is late by more
    than `starting_deadline_s` is skipped. `next_at` is None once no time is left.
    """

    name: str
    submission: str
    host: str | None = None
    starting_deadline_s: float | None = None
    next_at: float | None
    paused_at: float | None = None
    created_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleRun:
    """A run of a schedule: ``running``, ``done``, ``failed`` or ``skipped``. `job` is known once rows are accepted."""

    schedule: str
    planned_at: float
    state: str
    attempts: int
    job: str | None
    error: str | None
    begun_at: float
    ended_at: float | None


#: The columns of a `ScheduleRun`.
_RUN = [schedule_runs.c[name] for name in ScheduleRun.__dataclass_fields__]


class Planned(NamedTuple):
    """The newest time of a schedule that has come, if one has, and the next time."""

    due_at: float | None
    next_at: float | None


#: A time, or the store's clock in SQL.
Time: TypeAlias = float | ScalarSelect[float]

#: Returns what is planned for a schedule at a time of the store's clock.
Plan: TypeAlias = Callable[[Schedule, float], Planned]

#: Returns whether a runner can submit a schedule's rows; it leaves others to other runners.
May: TypeAlias = Callable[[Schedule], bool]


@dataclass(frozen=True, slots=True)
class TakenRun:
    """A run to submit now, by the `runner` alone.

    `attempts` were made before. The last of them `died` if nobody noted its end.
    """

    schedule: Schedule
    planned_at: float
    attempts: int
    job: str | None
    runner: str
    died: bool = False

    @property
    def needs_solitude(self) -> bool:
        """Whether it may be the run that ends its process, which other runs should not share then."""
        return self.died and self.attempts >= ATTEMPTS_TOGETHER

    @property
    def mine(self) -> ColumnElement[bool]:
        """The run's row, while this runner has it."""
        key = and_(schedule_runs.c.schedule == self.schedule.name, schedule_runs.c.planned_at == self.planned_at)
        return and_(key, UNFINISHED_RUN, schedule_runs.c.runner == self.runner)


class Schedules:
    """The schedules in the store, as `Store.schedules`. Raises StoreUnavailable, like the store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, schedule: Schedule, *, by: Actor | None = None) -> bool:
        """Add a schedule. Return False if there is another with its name."""
        row: dict[str, Any] = {
            "name": schedule.name,
            "submission": text(schedule.submission),
            "host": text(schedule.host),
        }
        row |= {"starting_deadline_s": schedule.starting_deadline_s, "next_at": schedule.next_at}
        times = {"planned_from": clock(), "created_at": clock()}
        with self._database.write(Weight.ACCEPTED) as connection:
            new = insert_new(connection, schedules).values(row | times).returning(schedules.c.name)
            if connection.execute(new).first() is None:
                return False
            note(connection, by, "schedule add", f"schedule:{schedule.name}")
            return True

    def every(self) -> list[Schedule]:
        """Return the schedules by name."""
        with self._database.read() as connection:
            found = connection.execute(select(schedules).order_by(schedules.c.name)).mappings()
            return [_schedule(row) for row in found]

    def runs(self, name: str, limit: int = 1) -> list[ScheduleRun]:
        """Return the newest runs of a schedule, newest first."""
        newest = select(*_RUN).where(schedule_runs.c.schedule == name)
        newest = newest.order_by(schedule_runs.c.planned_at.desc()).limit(limit)
        with self._database.read() as connection:
            return [ScheduleRun(**row) for row in connection.execute(newest).mappings()]

    def last_runs(self) -> dict[str, ScheduleRun]:
        """Return the newest run of each schedule that has one, by the schedule's name."""
        other = schedule_runs.alias()
        newest_at = select(func.max(other.c.planned_at)).where(other.c.schedule == schedules.c.name)
        newest = select(*_RUN).where(
            schedule_runs.c.schedule == schedules.c.name,
            schedule_runs.c.planned_at == newest_at.correlate(schedules).scalar_subquery(),
        )
        with self._database.read() as connection:
            return {row["schedule"]: ScheduleRun(**row) for row in connection.execute(newest).mappings()}

    def remove(self, name: str, *, by: Actor | None = None) -> bool:
        """Remove a schedule with its runs. Return whether there was one. Jobs that were submitted stay."""
        with self._database.write(Weight.ACCEPTED) as connection:
            # its row first: a node that takes a run has it locked, and its run must be there when runs are deleted
            if not connection.execute(delete(schedules).where(schedules.c.name == name)).rowcount:
                return False
            connection.execute(delete(schedule_runs).where(schedule_runs.c.schedule == name))
            note(connection, by, "schedule remove", f"schedule:{name}")
            return True

    def pause(self, name: str, *, by: Actor | None = None) -> bool:
        """Let a schedule have no more runs. Return whether there is one; a run that has begun goes on."""
        mine = schedules.c.name == name
        running = update(schedules).where(mine, schedules.c.paused_at.is_(None))
        with self._database.write(Weight.ACCEPTED) as connection:
            if connection.execute(running.values(paused_at=clock())).rowcount:
                note(connection, by, "schedule pause", f"schedule:{name}")
                return True
            return connection.execute(select(schedules.c.name).where(mine)).first() is not None

    def resume(self, name: str, plan: Plan, *, by: Actor | None = None) -> bool:
        """End a pause. Return whether there is such a schedule. Times that passed meanwhile are left out."""
        with self._database.write(Weight.ACCEPTED) as connection:
            mine = schedules.c.name == name
            found = connection.execute(select(schedules).where(mine).with_for_update()).mappings().one_or_none()
            if found is None:
                return False
            if found["paused_at"] is not None:
                now = store_time(connection)
                _replan(connection, name, plan(_schedule(found), now).next_at, now)
                connection.execute(update(schedules).where(mine).values(paused_at=None))
                note(connection, by, "schedule resume", f"schedule:{name}")
            return True

    # --- runs ---

    def due(self, host: str) -> list[Schedule]:
        """Return the schedules of which a machine can begin or continue a run, or which it has to plan again."""
        due = _due_on(host, clock()).with_only_columns(schedules.c.name)
        abandoned = _abandoned_on(host, clock()).with_only_columns(schedule_runs.c.schedule)
        wanted = select(schedules).where(or_(schedules.c.name.in_(due), schedules.c.name.in_(abandoned)))
        with self._database.read() as connection:
            return [_schedule(row) for row in connection.execute(wanted).mappings()]

    def late(self, by_s: float) -> list[Schedule]:
        """Return the schedules whose time passed over `by_s` ago, and of which nobody has begun the run."""
        late = select(schedules).where(schedules.c.paused_at.is_(None), schedules.c.next_at < clock() - by_s)
        with self._database.read() as connection:
            return [_schedule(row) for row in connection.execute(late.order_by(schedules.c.name)).mappings()]

    def take(
        self,
        host: str,
        runner: str,
        plan: Plan,
        now: float | None = None,
        *,
        may: May = lambda _: True,
        alone: bool = True,
    ) -> TakenRun | None:
        """Begin or continue a run that is due on this machine, for `LEASE_S`; None if there is none.

        Of several times that have passed, the newest is run and the others are left out. Schedules that the runner
        must not run (`may`) are passed over. A runner that is not `alone`, as it has other runs, gets none while one
        waits that `needs_solitude`.
        """
        with self._database.write(Weight.ACCEPTED) as connection:
            now = store_time(connection) if now is None else now
            first = _abandoned(connection, host, runner, now, may)
            if first is None:
                return _begun(connection, host, runner, plan, now, may)
            if first.needs_solitude and not alone:
                return None
            _continue(connection, first, now)
            return first

    def renew(self, run: TakenRun, job: str | None = None) -> bool:
        """Renew the lease of a run, and note its job. Return whether the runner still has it."""
        values = {"leased_until": clock() + LEASE_S, "job": func.coalesce(text(job), schedule_runs.c.job)}
        with self._database.write(Weight.NOTE) as connection:
            return connection.execute(update(schedule_runs).where(run.mine).values(values)).rowcount > 0

    def end(self, run: TakenRun, state: str, *, job: str | None = None, error: str | None = None) -> None:
        """Note that a run is ``done`` or ``failed``."""
        values: dict[str, Any] = {"state": state, "ended_at": clock(), "leased_until": None, "runner": None}
        self._note(run, values | {"error": _short(error), "job": func.coalesce(text(job), schedule_runs.c.job)})

    def postpone(self, run: TakenRun, retry_in_s: float, error: str) -> None:
        """Note a failed attempt. Any node may make the next one after `retry_in_s`, at most `LEASE_S`."""
        again_at = clock() + min(retry_in_s, LEASE_S)
        self._note(run, {"leased_until": again_at, "runner": None, "error": _short(error)})

    def _note(self, run: TakenRun, values: dict[str, Any]) -> None:
        with self._database.write(Weight.ACCEPTED) as connection:
            connection.execute(update(schedule_runs).where(run.mine).values(values))


def _short(error: str | None) -> str | None:
    return None if error is None else text(error[:_LONGEST_ERROR])


def _schedule(row: RowMapping) -> Schedule:
    return Schedule(**{name: row[name] for name in Schedule.__dataclass_fields__})


def _here(host: str) -> ColumnElement[bool]:
    return or_(schedules.c.host.is_(None), schedules.c.host == host)


def _due_on(host: str, now: Time) -> Select[Any]:
    """Return a query for the schedules whose time has come, or was planned by a clock that was set back since."""
    due = or_(schedules.c.next_at <= now, schedules.c.planned_from > now + _STEP_S)
    return select(schedules).where(schedules.c.paused_at.is_(None), _here(host), due)


def _abandoned_on(host: str, now: Time) -> Select[Any]:
    """Return a query for the unfinished runs without a lease. A lease that ends too late was given by a wrong clock."""
    until = schedule_runs.c.leased_until
    over = or_(until < now, until > now + (LEASE_S + _LEASE_STEP_S))
    theirs = schedules.c.name == schedule_runs.c.schedule
    return select(schedule_runs).join(schedules, theirs).where(UNFINISHED_RUN, _here(host), over)


def _abandoned(connection: Connection, host: str, runner: str, now: float, may: May) -> TakenRun | None:
    """Lock and return the first run to continue."""
    found = _abandoned_on(host, now).order_by(schedule_runs.c.planned_at, schedule_runs.c.schedule)
    passed: list[str] = []
    while True:
        first = found.where(schedule_runs.c.schedule.not_in(passed)).limit(1)
        row = connection.execute(first.with_for_update(of=schedule_runs, skip_locked=True)).mappings().one_or_none()
        if row is None:
            return None
        own = connection.execute(select(schedules).where(schedules.c.name == row["schedule"])).mappings().one()
        if may(schedule := _schedule(own)):
            died = row["runner"] is not None
            return TakenRun(schedule, row["planned_at"], row["attempts"], row["job"], runner, died)
        passed.append(schedule.name)


def _continue(connection: Connection, run: TakenRun, now: float) -> None:
    key = and_(schedule_runs.c.schedule == run.schedule.name, schedule_runs.c.planned_at == run.planned_at)
    taken = {"runner": run.runner, "leased_until": now + LEASE_S, "attempts": schedule_runs.c.attempts + 1}
    connection.execute(update(schedule_runs).where(key).values(taken))


def _begun(connection: Connection, host: str, runner: str, plan: Plan, now: float, may: May) -> TakenRun | None:
    passed: list[str] = []
    while True:
        first = _due_on(host, now).where(schedules.c.name.not_in(passed))
        first = first.order_by(schedules.c.next_at, schedules.c.name).limit(1)
        row = connection.execute(first.with_for_update(skip_locked=True)).mappings().one_or_none()
        if row is None:
            return None
        schedule = _schedule(row)
        if not may(schedule):
            passed.append(schedule.name)
            continue
        planned = plan(schedule, now)
        _replan(connection, schedule.name, planned.next_at, now)
        if planned.due_at is not None and (run := _insert(connection, schedule, planned.due_at, runner, now)):
            return run


def _replan(connection: Connection, name: str, next_at: float | None, now: float) -> None:
    planned = update(schedules).where(schedules.c.name == name)
    connection.execute(planned.values(next_at=next_at, planned_from=now))


def _insert(connection: Connection, schedule: Schedule, due_at: float, runner: str, now: float) -> TakenRun | None:
    """Insert the run of a time; None if it has one already, or is too late to begin."""
    late_s, most_s = now - due_at, schedule.starting_deadline_s
    is_late = most_s is not None and late_s > most_s
    row: dict[str, Any] = {"schedule": schedule.name, "planned_at": due_at, "begun_at": now}
    if is_late:
        error = f"nobody could begin it within {most_s:g} s; it is {late_s:,.0f} s late"
        row |= {"state": "skipped", "ended_at": now, "error": error}
    else:
        row |= {"state": "running", "attempts": 1, "runner": runner, "leased_until": now + LEASE_S}
    new = insert_new(connection, schedule_runs).values(row).returning(schedule_runs.c.schedule)
    if connection.execute(new).first() is None or is_late:
        return None
    return TakenRun(schedule, due_at, 0, None, runner)
