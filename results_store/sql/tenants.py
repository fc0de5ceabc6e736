"""Tenants: lanes, shares and limits.

A tenant gets its row, and thus its lane, before any item of it is accepted or published. Rows are never deleted. So the
table always lists every lane that can hold an envelope.
"""

from __future__ import annotations

import time
from dataclasses import replace

from sqlalchemy import Connection, func, insert, select, update

from results_store.records import Tenant
from results_store.sql.auditing.audit_log import Actor, note
from results_store.sql.database import Database, Weight
from results_store.sql.schema import jobs, tenants

#: A worker polls all lanes in Redis at once, so their number is limited. With more tenants than lanes, tenants share
#: lanes, and the envelopes of a lane are served first in, first out.
LANES = 64

_COLUMNS = (tenants.c.name, tenants.c.lane, tenants.c.weight, tenants.c.max_items_per_s, tenants.c.max_in_flight)
_done = jobs.c.succeeded + jobs.c.failed + jobs.c.cancelled + jobs.c.expired


class Tenants:
    """The tenants of the store, as `Store.tenants`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def every(self) -> list[Tenant]:
        """Return every tenant that ever submitted or was configured, and the tenant with the empty name, by name."""
        with self._database.read() as connection:
            rows = connection.execute(select(*_COLUMNS).order_by(tenants.c.name)).mappings()
            return [Tenant(**row) for row in rows]

    def enrol(self, name: str) -> Tenant:
        """Return a tenant. A new tenant gets its lane here, before any item of it is accepted."""
        with self._database.read() as connection:
            known = _find(connection, name)
        if known is not None:
            return known
        with self._database.write(Weight.ACCEPTED) as connection:
            return _enrol(connection, name)

    def configure(self, tenant: Tenant, *, by: Actor | None = None) -> Tenant:
        """Set a tenant's weight and limits; workers and clients apply them within seconds. Its lane stays the same."""
        settings = {
            "weight": tenant.weight,
            "max_items_per_s": tenant.max_items_per_s,
            "max_in_flight": tenant.max_in_flight,
        }
        with self._database.write(Weight.ACCEPTED) as connection:
            lane = _enrol(connection, tenant.name).lane
            connection.execute(update(tenants).where(tenants.c.name == tenant.name).values(**settings))
            note(connection, by, "tenants set", f"tenant:{tenant.name}", **settings)
        return replace(tenant, lane=lane)

    def in_flight(self, name: str) -> int:
        """Return roughly how many durable items of a tenant wait for results.

        Each running job counts its items in proportion to its missing results.
        """
        left = func.sum(jobs.c["items"] * (jobs.c.total - _done) * 1.0 / jobs.c.total)
        running = (jobs.c.tenant == name, jobs.c.finished_at.is_(None), jobs.c.total > 0)
        with self._database.read() as connection:
            return int(connection.execute(select(func.coalesce(left, 0)).where(*running)).scalar_one())


def _find(connection: Connection, name: str) -> Tenant | None:
    row = connection.execute(select(*_COLUMNS).where(tenants.c.name == name)).mappings().one_or_none()
    return None if row is None else Tenant(**row)


def _enrol(connection: Connection, name: str) -> Tenant:
    """Return the tenant; a new tenant gets its own lane if any is left."""
    # The row that always exists is the lock: two tenants enrolled at the same time get two lanes.
    connection.execute(select(tenants.c.name).where(tenants.c.name == "").with_for_update())
    if (known := _find(connection, name)) is not None:
        return known
    others = connection.execute(select(func.count()).where(tenants.c.name != "")).scalar_one()
    lane = 1 + others % (LANES - 1)
    connection.execute(insert(tenants).values(name=name, lane=lane, created_at=time.time()))
    return Tenant(name=name, lane=lane)
