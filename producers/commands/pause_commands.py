"""Work that waits: `argosy pause`, `argosy resume` and `argosy priority`. They need only the store."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from producers.commands.operate import open_store
from producers.commands.submit import PRIORITIES
from producers.wire.command_line import say, user

if TYPE_CHECKING:
    from producers.wire.catalogue import Catalogue
    from results_store.records import PauseKind
    from results_store.store import Store

#: As `PauseKind`; importing the records would slow the start of every command.
KINDS = ("model", "task", "tenant")

#: The batches in which names are looked up that the catalogue does not have.
_LOOKED_AT = 500


@click.command()
@click.argument("kind", type=click.Choice(KINDS), required=False)
@click.argument("name", required=False)
@click.option("--reason", default="", metavar="TEXT", help="A sentence for those who wait; everybody may read it.")
@click.option("--json", "as_json", is_flag=True, help="Without a name: print one JSON object per pause, for programs.")
def pause(kind: PauseKind | None, name: str | None, *, reason: str, as_json: bool) -> None:
    """Pause a model, a task or a tenant; without a name, list the pauses.

    Nothing of it starts from now on, on any worker. Batches that run end. Submissions are still accepted and wait,
    without a slot, until `argosy resume`; deadlines go on. Only items with `durable=False` cannot wait: they fail as
    `Paused`. The tenant without a name is ''.

    \b
    argosy pause model text --reason "new weights are wrong"
    argosy pause task sentiment
    argosy pause tenant acme
    argosy pause
    """
    from producers.wire.connection import Connection

    if kind is None:
        _list(as_json=as_json)
        return
    if name is None:
        raise click.UsageError(f"name the {kind}, as in `argosy pause {kind} NAME`")
    with open_store() as store:
        check_name(kind, name, Connection().catalogue, store)
        new = store.pauses.pause(kind, name, reason, by=user())
    say(f"{kind} {name!r} is paused" if new else f"{kind} {name!r} was already paused", err=True)


@click.command()
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("name")
def resume(kind: PauseKind, name: str) -> None:
    """End a pause. Its waiting work is published again within seconds.

    \b
    argosy resume model text
    """
    with open_store() as store:
        ended = store.pauses.resume(kind, name, by=user())
        paused = [f"{one.kind} {one.name}" for one in store.pauses.every()]
    if not ended:
        raise click.UsageError(f"{kind} {name!r} is not paused; paused: {', '.join(paused) or 'nothing'}")
    say(f"{kind} {name!r} goes on", err=True)


def check_name(kind: PauseKind, name: str, catalogue: Catalogue, store: Store) -> None:
    """Raise InvalidInput unless the fleet has such a model, task or tenant: a misspelt pause would hold nothing."""
    from producers.wire.errors import InvalidInput
    from producers.wire.fleet_file import known

    names = _names(kind, catalogue, store)
    if name not in names:
        remedy = f"{known(name, sorted(names))}; ARGOSY_FLEET names the fleet's own file"
        raise InvalidInput("name", f"the fleet has no {kind} {name!r}", remedy)


def _names(kind: PauseKind, catalogue: Catalogue, store: Store) -> set[str]:
    if kind == "tenant":
        return {tenant.name for tenant in store.tenants.every()}
    batches = store.flight.recent(limit=_LOOKED_AT)
    if kind == "task":
        return {*catalogue.tasks, *(task for batch in batches for task in batch.heads)}
    models = {task.model for task in catalogue.tasks.values()} | {work.model for work in store.depth()}
    return models | {batch.model for batch in batches}


def _list(*, as_json: bool) -> None:
    import msgspec

    with open_store() as store:
        found = store.pauses.every()
    for one in found:
        if as_json:
            click.echo(msgspec.json.encode(one).decode())
            continue
        since = datetime.fromtimestamp(one.paused_at, UTC).isoformat(timespec="seconds")
        waiting = f"{one.waiting:,} envelopes wait"
        say("  ".join([f"{one.kind} {one.name!r}", f"since {since}", waiting, *([one.reason] if one.reason else [])]))
    if not found:
        say("argosy: nothing is paused", err=True)


@click.command()
@click.argument("job")
@click.argument("level", type=click.Choice(PRIORITIES), metavar="bulk|standard|interactive")
def priority(job: str, level: str) -> None:
    """Give a job another priority. Envelopes that no worker holds move to it within seconds.

    \b
    argosy priority JOB interactive
    """
    from producers.wire.messages import Priority

    with open_store() as store:
        job = store.job_id(job)
        moved = store.prioritize_job(job, int(Priority[level.upper()]), by=user())
    say(f"job {job}: {moved:,} envelopes are {level} now", err=True)


COMMANDS = (pause, resume, priority)
