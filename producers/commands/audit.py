"""The audit log: `argosy audit`. It needs only the store."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from producers.commands.operate import Duration, open_store
from producers.wire.command_line import ROWS, say

if TYPE_CHECKING:
    from results_store.sql.auditing.audit_log import AuditEntry


@click.command()
@click.argument("text", default="")
@click.option("--limit", type=ROWS, default=50, show_default=True, help="The most entries to list.")
@click.option("--since", "since_s", type=Duration(), help="Only entries of this time until now: 12h, 30d, 8w.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per entry, for programs.")
def audit(text: str, *, limit: int, since_s: float | None, as_json: bool) -> None:
    """List the changes of operators and members, newest first: who, when, from where.

    These are pauses, cancellations, replays, purges, priorities, schedules, keys, tenants and reloads of models, from
    the page, over HTTP and by commands. TEXT limits them to entries with this text in their action, subject, tenant
    or name. Times are by the store's clock. Workers delete entries after `audit_days`.

    \b
    argosy audit
    argosy audit model:text
    argosy audit cancel --since 1d --json
    """
    import msgspec

    with open_store() as store:
        since = None if since_s is None else store.now() - since_s
        found = store.audit.newest(limit=limit, since=since, text=text)
    for entry in found:
        if as_json:
            click.echo(msgspec.json.encode(entry).decode())
        else:
            say(_line(entry))
    if not found:
        say("argosy: no such entries", err=True)


def _line(entry: AuditEntry) -> str:
    when = datetime.fromtimestamp(entry.at, UTC).isoformat(timespec="seconds")
    who = f"{entry.name} of tenant {entry.tenant!r}" if entry.tenant else entry.name
    detail = " ".join(f"{name}={value}" for name, value in entry.detail.items())
    origin = f"({entry.source}{f' from {entry.address}' if entry.address else ''})"
    return "  ".join([when, entry.action, entry.subject, f"by {who} {origin}", *([detail] if detail else [])])
