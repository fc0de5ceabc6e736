"""Tenants: lanes, shares and limits. Each function runs in the caller's transaction.

A tenant gets its row, and with it its lane, before anything of it is accepted or published; rows are never deleted. So
whoever reads the table knows every lane that anything can be in.
"""

from __future__ import annotations

import time

from sqlalchemy import Connection, func, insert, select, update

from results_store.records import Tenant
from results_store.schema import jobs, tenants

#: A worker asks Redis for all lanes at once, so there is a most: beyond it, tenants share lanes, and what is in one lane
#: comes first in, first out.
LANES = 64

_COLUMNS = (tenants.c.name, tenants.c.lane, tenants.c.weight, tenants.c.max_items_per_s, tenants.c.max_in_flight)


def every(connection: Connection) -> list[Tenant]:
    rows = connection.execute(select(*_COLUMNS).order_by(tenants.c.name)).mappings()
    return [Tenant(**row) for row in rows]


def find(connection: Connection, name: str) -> Tenant | None:
    row = connection.execute(select(*_COLUMNS).where(tenants.c.name == name)).mappings().one_or_none()
    return None if row is None else Tenant(**row)


def enrol(connection: Connection, name: str) -> Tenant:
    """Return the tenant, with a lane of its own if there is one left when it is new."""
    # The one row that is always there is the lock: two tenants enrolled at the same time get two lanes.
    connection.execute(select(tenants.c.name).where(tenants.c.name == "").with_for_update())
    if (known := find(connection, name)) is not None:
        return known
    others = connection.execute(select(func.count()).where(tenants.c.name != "")).scalar_one()
    lane = 1 + others % (LANES - 1)
    connection.execute(insert(tenants).values(name=name, lane=lane, created_at=time.time()))
    return Tenant(name=name, lane=lane)


def configure(connection: Connection, tenant: Tenant) -> Tenant:
    """Give a tenant, enrolled if need be, its weight and limits; its lane stays."""
    enrol(connection, tenant.name)
    settings = {
        "weight": tenant.weight,
        "max_items_per_s": tenant.max_items_per_s,
        "max_in_flight": tenant.max_in_flight,
    }
    connection.execute(update(tenants).where(tenants.c.name == tenant.name).values(**settings))
    found = find(connection, tenant.name)
    assert found is not None
    return found


_done = jobs.c.succeeded + jobs.c.failed + jobs.c.cancelled + jobs.c.expired


def in_flight(connection: Connection, name: str) -> int:
    """Return how many durable items of a tenant have not all their results, about: a job's items count as they end on average."""
    left = func.sum(jobs.c["items"] * (jobs.c.total - _done) * 1.0 / jobs.c.total)
    running = (jobs.c.tenant == name, jobs.c.finished_at.is_(None), jobs.c.total > 0)
    return int(connection.execute(select(func.coalesce(left, 0)).where(*running)).scalar_one())
