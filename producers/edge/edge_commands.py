"""`argosy edge`: start a site; look at its cascade, and find the thresholds of its tasks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from producers.wire.command_line import Finite, say

if TYPE_CHECKING:
    from results_store.store import Store

#: The command of the workers' package that starts a site's fleet. `argosy edge` alone runs it.
START = "edge-site"

FLEET_FILE = click.option(
    "--config", type=click.Path(path_type=Path, dir_okay=False), envvar="ARGOSY_FLEET", help="The site's fleet.toml."
)


@click.group(invoke_without_command=True)
@FLEET_FILE
@click.pass_context
def edge(context: click.Context, config: Path | None) -> None:
    """Start a site and run it until Ctrl-C: a fleet that answers alone, and sends doubtful items on.

    \b
    The site is embedded Valkey, SQLite, a worker, and a forwarder. [edge] in its fleet.toml names
    the centre's gateway and the tasks of the cascade. Programs at the site use it like any fleet.

    \b
        argosy edge --config fleet.toml
        argosy edge status
        argosy edge answers JOB
    """
    if context.invoked_subcommand is not None:
        return
    root = context.find_root()
    start = root.command.get_command(root, START) if isinstance(root.command, click.Group) else None
    if start is None:
        raise click.UsageError("a site needs the workers; pip install 'argosy[edge]'")
    context.invoke(start, config=config)


@edge.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for programs.")
def status(*, as_json: bool) -> None:
    """Show the site's spool, its link to the centre, and who answered so far."""
    found = _asked(_status)
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    counted = found["counted"]
    say(f"site      {found['site'] or 'not started yet'}")
    say(f"link      {found['link'] or 'not used yet'}")
    spool = ", ".join(f"{count:,} {state}" for state, count in found["spool"].items())
    say(f"spool     {spool or 'empty'} ({found['spool_bytes']:,} bytes of inputs)")
    own, others = counted.get("by site", 0), counted.get("by centre", 0)
    say(f"answers   {own:,} by the site, {others:,} by the centre, {counted.get('sent', 0):,} items sent")
    reasons = ("deadline", "spool-full", "centre-refused", "centre-failed")
    if told := ", ".join(f"{counted[reason]:,} {reason}" for reason in reasons if counted.get(reason)):
        say(f"          {told}")
    both = counted.get("agreed", 0) + counted.get("differed", 0)
    if both:
        say(f"agreement {counted.get('agreed', 0) / both:.1%} of {both:,} items that both answered")
    say(f"bytes     {counted.get('sent_bytes', 0):,} sent, {counted.get('received_bytes', 0):,} received")


@edge.command()
@click.argument("job")
def answers(job: str) -> None:
    """Print the site's answers to the items of JOB that wait for the centre, a line of JSON each.

    Results that are final are in `argosy results JOB`.
    """
    for line in _asked(lambda store: _answers(store, job)):
        click.echo(msgspec.json.encode(line).decode())


@edge.command()
@FLEET_FILE
@click.argument("rows", type=click.Path(path_type=Path, exists=True), nargs=-1, required=True)
@click.option("--task", required=True, help="A task of [edge].")
@click.option("--accuracy", type=Finite(0, 1), help="Send on as little as gives this accuracy.")
@click.option("--share", type=Finite(0, 1), help="Send on at most this share.")
@click.option("--label-column", help="The column with the right labels.  [default: the centre's answers are right]")
@click.option("--input-column", help="The column with the inputs.  [default: by its name]")
@click.option("--limit", type=click.IntRange(1), default=1000, show_default=True, help="The most rows that are asked.")
def calibrate(
    rows: tuple[Path, ...],
    *,
    config: Path | None,
    task: str,
    accuracy: float | None,
    share: float | None,
    label_column: str | None,
    input_column: str | None,
    limit: int,
) -> None:
    """Find the threshold of a task from ROWS, which a running site and its centre both answer.

    \b
    ROWS are files or folders as for `argosy submit`. All of them are sent to the centre. The
    threshold is chosen on half of the rows and judged on the other half. With labels, an answer
    is right if it is the row's label; without, if it is the centre's.

    \b
        argosy edge calibrate mails.csv --task spam --label-column label --accuracy 0.97
        argosy edge calibrate frames/ --task image-classification --share 0.4
    """
    import asyncio

    from producers.edge import calibrating, thresholds
    from producers.edge.forwarder import settings_of
    from producers.wire.connection import Connection

    if (accuracy is None) == (share is None):
        raise click.UsageError("give one of --accuracy and --share")
    where = Connection()
    settings, own = settings_of(config or where.fleet_file or "fleet.toml")
    wanted = calibrating.checked_task(settings, task)
    name = wanted.site or task
    given = calibrating.read_rows(rows, name, own, label_column=label_column, input_column=input_column, limit=limit)
    answered = asyncio.run(calibrating.answered(given, task, settings, own, where))
    if answered.left_out:
        say(f"argosy: {answered.left_out:,} rows are left out: site or centre has no answer to them", err=True)
    found = thresholds.calibrate(answered.rows, accuracy=accuracy, share=share)
    right = "accuracy" if answered.labelled else "agreement with the centre"
    say(
        f"{right} on {found.rows:,} other rows: {found.held_out.accuracy:.1%}, {found.held_out.share:.1%} sent on",
        err=True,
    )
    say(f"the site alone {found.site_alone:.1%}, the centre alone {found.centre_alone:.1%}", err=True)
    click.echo(calibrating.as_toml(task, found.chosen.threshold))


def _asked(question: Any) -> Any:
    from producers.wire.connection import Connection
    from results_store.store import Store

    with Store(Connection().store_url) as store:
        return question(store)


def _status(store: Store) -> dict[str, Any]:
    noted, counts = store.edge.noted("status"), store.edge.counts()
    return {
        "site": noted.get("site", ""),
        "link": noted.get("link", ""),
        "noted_at": noted.get("at"),
        "spool": {state.value: count for state, (count, _) in counts.items()},
        "spool_bytes": sum(size for _, size in counts.values()),
        "counted": noted.get("counted", {}),
    }


def _answers(store: Store, job: str) -> list[dict[str, Any]]:
    return [
        {"seq": item.seq, "task": item.task, "key": item.key, "state": item.state.value, "answer": item.site}
        for item in store.edge.of_job(store.job_id(job))
    ]
