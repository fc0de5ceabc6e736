"""The times of a schedule, by a cron expression in a time zone or as a single time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from producers.wire.errors import ConfigurationError, InvalidInput
from results_store.sql.waiting.schedules import Planned, Schedule


class Timing(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A cron expression of five fields in a time zone, or a single time (Unix seconds)."""

    cron: str = ""
    zone: str = "UTC"
    at: float | None = None

    def check(self) -> None:
        """Raise InvalidInput for an expression that cannot be read or has no time, and for an unknown time zone."""
        _zone(self.zone)
        self.next_after(datetime.now(UTC).timestamp())

    def next_after(self, at: float) -> float | None:
        """Return the first time after `at`."""
        if self.at is not None:
            return self.at if self.at > at else None
        # in an hour that comes twice, the library may begin with a time that has passed
        return next(time for time in self._times(at) if time > at)

    def newest_until(self, at: float) -> float:
        """Return the last time that has come at `at`."""
        if self.at is not None:
            return self.at
        return next(time for time in self._times(at + 1, reverse=True) if time <= at)

    def _times(self, at: float, *, reverse: bool = False) -> Iterator[float]:
        start = datetime.fromtimestamp(math.floor(at), _zone(self.zone))
        for time in _simulated(self.cron, start, reverse=reverse):
            yield time.timestamp()
        raise InvalidInput("cron", f"{self.cron!r} has no time", "write a day that its months have")


def _simulated(expression: str, start: datetime, *, reverse: bool) -> Iterator[datetime]:
    """Return the times of an expression in the order of time, or backwards.

    In a zone with daylight saving time they are those of Debian's cron (see cronsim): a time of day that is left out is
    run at once, and one that comes twice is run once.
    """
    try:
        from cronsim import CronSim, CronSimError
    except ImportError as error:
        raise ConfigurationError("schedules need cronsim; pip install cronsim") from error
    if len(expression.split()) != 5:
        raise InvalidInput("cron", f"{expression!r} has not five fields", "write minute hour day month weekday")
    try:
        return CronSim(expression, start, reverse=reverse)
    except CronSimError as error:
        remedy = "write minute hour day month weekday, such as '30 2 * * mon-fri'"
        raise InvalidInput("cron", f"{expression!r} cannot be read: {error}", remedy) from error


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        remedy = "write a name such as Europe/Berlin; a system without time zones needs `pip install tzdata`"
        raise InvalidInput("zone", f"{name!r} is no time zone here", remedy) from error


def moment(text: str, zone: str) -> float:
    """Return the time that `--at` names, in a time zone unless it names its own offset. Raises InvalidInput."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidInput("at", f"{text!r} is no time", "write it as 2027-01-31T02:30") from error
    return (time if time.tzinfo else time.replace(tzinfo=_zone(zone))).timestamp()


#: The errors of a description that this version does not read.
NOT_READ = (msgspec.MsgspecError, UnicodeError)


def unreadable(schedule: Schedule, error: Exception) -> InvalidInput:
    """Return the error for a schedule whose description this version does not read."""
    problem = f"{schedule.name!r} has a form that this version does not read: {error}"
    return InvalidInput("schedule", problem, "use the version that added it, or remove it")


class _WithTiming(msgspec.Struct):
    timing: Timing


def planned(schedule: Schedule, now: float) -> Planned:
    """Return what is planned for a schedule at a time of the store's clock: a `results_store` Plan.

    Raises InvalidInput for a schedule that cannot be understood here.
    """
    try:
        timing = msgspec.json.decode(schedule.submission, type=_WithTiming).timing
    except NOT_READ as error:
        raise unreadable(schedule, error) from error
    following = timing.next_after(now)
    if schedule.next_at is None or schedule.next_at > now:
        return Planned(None, following)
    return Planned(max(schedule.next_at, timing.newest_until(now)), following)
