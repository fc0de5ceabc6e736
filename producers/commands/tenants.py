"""The operator's commands for tenants: `argosy tenants list`, `set`, `remove`. They need only the store."""

from __future__ import annotations

import click

from producers.commands.operate import open_store
from producers.wire.command_line import Finite, user


@click.group()
def tenants() -> None:
    """Show and set the tenants: their shares of the fleet, and their limits.

    Tenants take turns with work of the same priority, in proportion to their weights. A tenant needs no setup: its
    first submission creates it, with weight 1 and no limits. Submissions without a tenant belong to the tenant with
    the empty name (here: '').
    """


@tenants.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per tenant, for programs.")
def show(*, as_json: bool) -> None:
    """List the tenants, with the approximate number of their items in flight."""
    import msgspec

    from producers.commands.tables import show_tenants

    with open_store() as store:
        found = [(tenant, store.tenants.in_flight(tenant.name)) for tenant in store.tenants.every()]
    if not as_json:
        show_tenants(found)
        return
    for tenant, in_flight in found:
        click.echo(msgspec.json.encode({**msgspec.to_builtins(tenant), "in_flight": in_flight}).decode())


@tenants.command("set")
@click.argument("name")
@click.option("--weight", type=Finite(1e-6, 1e6), help="Its share, in proportion to other tenants' weights.")
@click.option("--rate", "max_items_per_s", type=Finite(0), help="The most items per second it may submit; 0: no limit.")
@click.option(
    "--in-flight",
    "max_in_flight",
    type=click.IntRange(0, 10**9),
    help="The most items it may have in flight; 0: no limit.",
)
def configure(name: str, *, weight: float | None, max_items_per_s: float | None, max_in_flight: int | None) -> None:
    """Set a tenant's weight and limits; other settings stay. Workers and clients apply them within seconds.

    \b
    argosy tenants set acme --weight 3
    argosy tenants set trial --rate 10 --in-flight 1000
    argosy tenants set '' --weight 0.5
    """
    from dataclasses import replace

    from producers.wire.connection import checked_tenant

    with open_store() as store:
        tenant = store.tenants.enrol(checked_tenant(name, "NAME"))
        if weight is not None:
            tenant = replace(tenant, weight=weight)
        if max_items_per_s is not None:
            tenant = replace(tenant, max_items_per_s=max_items_per_s or None)
        if max_in_flight is not None:
            tenant = replace(tenant, max_in_flight=max_in_flight or None)
        store.tenants.configure(tenant, by=user())


@tenants.command()
@click.argument("name")
def remove(name: str) -> None:
    """Delete a tenant's weight and limits. Its jobs and results stay, and it may submit again like a new tenant.

    The tenant stays in the list: workers read its queues for good, so that no item in them is ever lost.
    """
    from results_store.records import Tenant

    with open_store() as store:
        known = {tenant.name: tenant for tenant in store.tenants.every()}
        if name not in known:
            raise click.UsageError(f"no tenant {name!r}; known tenants: {', '.join(map(repr, known))}")
        store.tenants.configure(Tenant(name=name, lane=known[name].lane), by=user())
