"""The times of schedules: those of cron, in a time zone with its two odd nights."""

from __future__ import annotations

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import msgspec
import pytest

from producers.commands.scheduling.schedule_times import Timing, moment, planned
from producers.wire.errors import InvalidInput
from results_store.sql.waiting.schedules import Planned, Schedule

BERLIN = "Europe/Berlin"


def at(text: str, zone: str = "UTC", *, fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp()


def following(cron: str, begin: float, zone: str, times: int) -> list[str]:
    timing, found = Timing(cron=cron, zone=zone), []
    for _ in range(times):
        begin = timing.next_after(begin) or 0.0
        found.append(datetime.fromtimestamp(begin, ZoneInfo(zone)).strftime("%d %H:%M%z"))
    return found


@pytest.mark.parametrize(
    ("cron", "times"),
    [
        ("30 2 * * *", ["28 02:30+0100", "29 03:00+0200", "30 02:30+0200"]),
        ("*/30 * * * *", ["28 00:30+0100", "28 01:00+0100", "28 01:30+0100"]),
        ("0 9 13 * fri", ["03 09:00+0200", "10 09:00+0200", "13 09:00+0200"]),
    ],
    ids=["a time that is left out is run at once", "steps", "day or weekday, as in cron"],
)
def test_times_around_the_night_without_half_past_two(cron: str, times: list[str]) -> None:
    assert following(cron, at("2026-03-28T00:00", BERLIN), BERLIN, 3) == times


def test_a_time_that_comes_twice_is_run_once() -> None:
    """In the second of the two hours, the time of the first has passed."""
    twice = "2026-10-25T02:{}"
    assert following("45 2 * * *", at("2026-10-25T00:00", BERLIN), BERLIN, 2) == ["25 02:45+0200", "26 02:45+0100"]
    again = at(twice.format(40), BERLIN, fold=1)
    assert following("45 2 * * *", again, BERLIN, 1) == ["26 02:45+0100"]


def test_every_hour_of_a_year_has_a_next_time_that_is_later() -> None:
    """A next time that has passed would be due again at once, for ever."""
    for cron in ("45 2 * * *", "*/15 * * * *", "0 */6 * * *"):
        timing, begin = Timing(cron=cron, zone=BERLIN), datetime(2026, 10, 24, tzinfo=ZoneInfo("UTC"))
        for step in range(200):
            now = (begin + timedelta(minutes=17 * step)).timestamp()
            assert (timing.next_after(now) or 0.0) > now >= timing.newest_until(now)


@pytest.mark.parametrize(
    ("cron", "zone", "problem"),
    [
        ("* * * *", "UTC", "cron: '. . . .' has not five fields; write minute hour"),
        ("0 * * * * *", "UTC", "has not five fields"),
        ("@daily", "UTC", "has not five fields"),
        ("61 * * * *", "UTC", "cannot be read: Bad minute; write minute hour"),
        ("0 0 30 2 *", "UTC", "cannot be read: Bad day-of-month"),
        ("* * * * *", "Europe/Nowhere", "zone: 'Europe/Nowhere' is no time zone here; write a name such as"),
        ("* * * * *", "../etc", "is no time zone here"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(cron: str, zone: str, problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem):
        Timing(cron=cron, zone=zone).next_after(0.0)


def test_a_single_time_has_the_zone_unless_it_has_its_own() -> None:
    assert moment("2027-01-31T02:30", BERLIN) == at("2027-01-31T01:30")
    assert moment("2027-01-31T02:30+05:00", BERLIN) == at("2027-01-30T21:30")
    with pytest.raises(InvalidInput, match="at: 'tomorrow' is no time; write it as 2027-01-31T02:30"):
        moment("tomorrow", BERLIN)


@pytest.mark.parametrize(
    ("next_at", "now", "expected"),
    [
        ("10:02", "10:01:59", (None, "10:02")),
        ("10:02", "10:02", ("10:02", "10:03")),
        ("10:02", "11:30:10", ("11:30", "11:31")),
        ("11:30", "10:00:30", (None, "10:01")),
    ],
    ids=["not yet", "now", "the newest of those that were missed", "the clock was set back"],
)
def test_what_is_planned(next_at: str, now: str, expected: tuple[str | None, str]) -> None:
    def that_day(time: str | None) -> float | None:
        return None if time is None else at(f"2026-11-30T{time}")

    timing = msgspec.json.encode({"timing": Timing(cron="* * * * *")}).decode()
    found = planned(Schedule(name="s", submission=timing, next_at=that_day(next_at)), that_day(now) or 0.0)
    assert found == Planned(*map(that_day, expected))
