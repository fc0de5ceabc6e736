"""Tenants, as an operator sees and sets them: `argosy tenants list`, `set`, `remove`. They need only the store."""

from __future__ import annotations

import click

from producers.commands.operate import open_store
from producers.wire.command_line import Finite


@click.group()
def tenants() -> None:
    """Whose work it is: shares of the fleet, and limits.

    Work of the same priority is done in turns between tenants, each by its weight. A tenant needs no setting up: it is there
    once something is submitted for it, with weight 1 and no limits. Work for which no tenant is named is that of one
    with an empty name (here: '').
    """


@tenants.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a tenant, for programs.")
def show(*, as_json: bool) -> None:
    """List the tenants, with about how many of their items are in flight."""
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
@click.option("--weight", type=Finite(0, min_open=True), help="Its share against other tenants' weights.")
@click.option("--rate", "max_items_per_s", type=Finite(0), help="The most items it may submit a second; 0: any.")
@click.option(
    "--in-flight", "max_in_flight", type=click.IntRange(0), help="The most items it may have waiting; 0: any."
)
def configure(name: str, *, weight: float | None, max_items_per_s: float | None, max_in_flight: int | None) -> None:
    """Set a tenant's weight and limits; what is not named stays. Workers and clients heed it within seconds.

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
        store.tenants.configure(tenant)


@tenants.command()
@click.argument("name")
def remove(name: str) -> None:
    """Forget a tenant's weight and limits. Its jobs and results stay, and it may submit as one that is new.

    It goes on being listed: the queues it has are looked into for good, so that nothing in them is ever forgotten.
    """
    from results_store.records import Tenant

    with open_store() as store:
        known = {tenant.name: tenant for tenant in store.tenants.every()}
        if name not in known:
            raise click.UsageError(f"no tenant {name!r}; there are {', '.join(repr(one) for one in known)}")
        store.tenants.configure(Tenant(name=name, lane=known[name].lane))
