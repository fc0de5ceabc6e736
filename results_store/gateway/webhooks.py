"""Webhooks: the addresses to call when jobs have finished, and the state of each call.

The commit that stores a job's last result sets the job's `finished_at`, and with it the webhook is due. A lease keeps
two gateways from telling the same end at once; an end whose teller died is told again.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

from sqlalchemy import ColumnElement, RowMapping, and_, case, or_, select, true, update

from results_store.records import JobStatus
from results_store.sql.columns import clock, text
from results_store.sql.database import Database, Weight
from results_store.sql.reading import job_status
from results_store.sql.result_rows import insert_new
from results_store.sql.schema import OPEN_WEBHOOK, jobs, webhooks

#: The most characters of an error that are kept.
_LONGEST_ERROR = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """The webhook of a job. `status` and `error` are those of the last attempt. Times are Unix seconds.

    `next_at` is None once the job's end was told or given up. `told` is the `finished_at` of that end.
    """

    job: str
    url: str
    host: str
    next_at: float | None
    attempts: int
    attempted_at: float | None
    status: int | None
    error: str | None
    told: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DueWebhook:
    """An end to tell: the finished job, the address with its host, and the number of attempts before this one."""

    job: JobStatus
    url: str
    host: str
    attempts: int


class Webhooks:
    """The webhooks in the store, as `Store.webhooks`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, job: str, url: str) -> None:
        """Add the webhook of a job, whose submission is complete. A later address replaces the earlier one.

        An end that was delivered is not told again, an end that was given up only at another address.
        """
        address = {"url": text(url), "host": text(urlsplit(url).hostname)}
        is_same = webhooks.c.url == address["url"]
        is_over = and_(_ended_at_told(), or_(webhooks.c.error.is_(None), is_same))
        is_under_way = and_(webhooks.c.next_at.is_not(None), is_same)
        again = {
            "next_at": case((is_over, webhooks.c.next_at), else_=0.0),
            "attempts": case((or_(is_over, is_under_way), webhooks.c.attempts), else_=0),
            "told": case((is_over, webhooks.c.told), else_=None),
        }
        with self._database.write(Weight.ACCEPTED) as connection:
            row = {"job": job, "next_at": 0.0, **address}
            connection.execute(insert_new(connection, webhooks), [row])
            connection.execute(update(webhooks).where(webhooks.c.job == job).values(address | again))

    def find(self, job: str) -> Webhook | None:
        """Return the webhook of a job, if it has one."""
        with self._database.read() as connection:
            row = connection.execute(select(webhooks).where(webhooks.c.job == job)).mappings().one_or_none()
        return None if row is None else Webhook(**row)

    def take(
        self, limit: int, lease_s: float, beside: Collection[str] = (), tenants: Collection[str] = ()
    ) -> list[DueWebhook]:
        """Return up to `limit` ends that are due, and keep others from telling them for `lease_s`.

        Ends for the hosts in `beside`, and of the tenants in `tenants`, are left.
        """
        due = (
            select(webhooks.c.job)
            .join(jobs, jobs.c.id == webhooks.c.job)
            .where(OPEN_WEBHOOK, webhooks.c.next_at <= clock(), _untold())
            .where(webhooks.c.host.not_in(beside), jobs.c.tenant.not_in(tenants))
            .order_by(webhooks.c.next_at)
            .limit(limit)
        )
        with self._database.read() as connection:  # most looks find nothing, and need no turn of the writers
            if connection.execute(due.limit(1)).first() is None:
                return []
        with self._database.write(Weight.ACCEPTED) as connection:
            found = list(connection.execute(due.with_for_update(of=webhooks, skip_locked=True)).scalars())
            mine = webhooks.c.job.in_(found)
            connection.execute(
                update(webhooks)
                .where(mine)
                .values(next_at=clock() + lease_s, attempts=webhooks.c.attempts + 1, attempted_at=clock())
            )
            own = {row["job"]: row for row in connection.execute(select(webhooks).where(mine)).mappings()}
            ended = connection.execute(
                select(jobs).where(jobs.c.id.in_(found), jobs.c.finished_at.is_not(None))
            ).mappings()
            return [_due(job_status(row), own[row["id"]]) for row in ended]

    def told(self, due: DueWebhook, status: int) -> None:
        """Note that an end was told. A job that has opened again since keeps its webhook open."""
        self._end(due, {"status": status, "error": None})

    def given_up(self, due: DueWebhook, status: int | None, error: str) -> None:
        """Note that an end is not told any more."""
        self._end(due, {"status": status, "error": text(error[:_LONGEST_ERROR])})

    def failed(self, due: DueWebhook, status: int | None, error: str, retry_in_s: float) -> None:
        """Note a failed attempt. The next one follows after `retry_in_s`."""
        values = {"status": status, "error": text(error[:_LONGEST_ERROR]), "next_at": clock() + retry_in_s}
        with self._database.write(Weight.NOTE) as connection:  # unless another gateway told it meanwhile
            connection.execute(update(webhooks).where(webhooks.c.job == due.job.id, OPEN_WEBHOOK).values(values))

    def _end(self, due: DueWebhook, values: dict[str, object]) -> None:
        mine = update(webhooks).where(webhooks.c.job == due.job.id)
        with self._database.write(Weight.ACCEPTED) as connection:
            connection.execute(mine.values(values | {"told": due.job.finished_at}))
            connection.execute(mine.where(_ended_at_told()).values(next_at=None))


def _due(job: JobStatus, row: RowMapping) -> DueWebhook:
    return DueWebhook(job=job, url=row["url"], host=row["host"], attempts=row["attempts"] - 1)


def _untold() -> ColumnElement[bool]:
    """The end of a job in the same query has not been told."""
    return and_(jobs.c.finished_at.is_not(None), or_(webhooks.c.told.is_(None), webhooks.c.told != jobs.c.finished_at))


def _ended_at_told() -> ColumnElement[bool]:
    """The webhook's job has the end that was told."""
    return select(true()).where(jobs.c.id == webhooks.c.job, jobs.c.finished_at == webhooks.c.told).exists()
