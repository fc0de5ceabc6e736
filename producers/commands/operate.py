"""Commands for failed and finished work: `argosy failures`, `dead`, `replay`, `purge`.

They need the store, `dead` also Redis.
"""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from producers.wire.command_line import ROWS, say, user

if TYPE_CHECKING:
    from producers.wire.connection import Connection
    from producers.wire.queues import RefusedMessage
    from results_store.records import DeadLetter
    from results_store.store import Store

#: The longest duration: dates far off have no place in a calendar.
_LONGEST_S = 100 * 366 * 86400

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


class Duration(click.ParamType[float]):
    """A number with a unit, as seconds: ``90s``, ``45m``, ``12h``, ``30d``, ``8w``."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", str(value))
        if match is None:
            self.fail(f"{value!r} is not a duration; write a number and a unit (s, m, h, d, w), e.g. 30d", param, ctx)
        seconds = float(match[1]) * _UNITS_S[match[2]]
        if seconds > _LONGEST_S:
            self.fail(f"{value!r} is over 100 years", param, ctx)
        return seconds


@click.command()
@click.argument("job", required=False)
@click.option("--limit", type=ROWS, default=20, show_default=True, help="The most envelopes to list.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object per envelope, with its inputs and tracebacks."
)
def dead(job: str | None, *, limit: int, as_json: bool) -> None:
    """List the envelopes that failed after too many attempts, and the refused messages, newest first.

    An envelope holds several items. Only `--json` shows the inputs, because they may be private. Workers refuse
    messages that cannot be run; only the cause and the digest of such a message are kept.

    \b
    argosy dead
    argosy dead JOB --json | jq '.payload.items[].input'
    """
    import msgspec

    with open_store() as store:
        if job is not None:
            job = store.job_id(job)  # a misspelt id raises, instead of counting as a job without dead letters
        letters = store.dead_letters.newest(job=job, limit=limit)
    for letter in letters:
        if as_json:
            click.echo(msgspec.json.encode(_whole(letter)).decode())
        else:
            why = letter.error["message"] if letter.error else "its worker reported no error"
            items = f"{len(letter.failures)} failed result{'' if len(letter.failures) == 1 else 's'}"
            say(f"{letter.id}  job {letter.job}  {letter.attempts} attempts  {items}  {why}")
    refused = _refused(limit) if job is None else []
    for message in refused:
        if as_json:
            click.echo(msgspec.json.encode({"refused": message}).decode())
        else:
            when = datetime.fromtimestamp(message.at, UTC).isoformat(timespec="seconds")
            say(f"refused {when}  {message.queue}  {message.cause}  {message.bytes} bytes, sha256 {message.sha256}")
    if not letters:
        say("argosy: no dead letters", err=True)
    elif not as_json:
        say("argosy: queue them again with `argosy replay --error TooManyAttempts`", err=True)


@click.command()
@click.argument("job", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per task and error, for programs.")
def failures(job: str | None, *, as_json: bool) -> None:
    """Count the failed results by task and error, of all jobs or of one, with a message of each as an example.

    \b
    argosy failures
    argosy failures JOB
    argosy replay JOB --error ModelError    # queue those with this error again
    """
    import msgspec

    with open_store() as store:
        if job is not None:
            job = store.job_id(job)  # a misspelt id raises, instead of counting as a job without failures
        counts = store.count_failures(job=job)
    for found in counts:
        if as_json:
            click.echo(msgspec.json.encode(found).decode())
        else:
            say(f"{found.count:>9,}  {found.task}  {found.kind}  {' '.join(found.message.split())}")
    if not counts:
        say("argosy: no failed results", err=True)
    elif not as_json:
        again = " ".join(["argosy replay", *([job] if job else []), "--error", counts[0].kind])
        say(f"argosy: queue failed items again with `{again}`; a faulty input fails again", err=True)


@click.command()
@click.argument("job", required=False)
@click.option(
    "--error", "error_kind", metavar="KIND", help="Only items that failed with this error, e.g. `ModelError`."
)
@click.option("--all", "everything", is_flag=True, help="Failed items of all jobs, with any error.")
@click.pass_context
def replay(ctx: click.Context, job: str | None, *, error_kind: str | None, everything: bool) -> None:
    """Queue failed items again: all, or only those of a job or with a kind of error.

    The command deletes their failed results. Their envelopes are published again within seconds, and attempts are
    counted from zero. Succeeded results stay. Items that could only fail again are skipped: in a cancelled job,
    after their deadline, or if their input is no longer kept.

    \b
    argosy replay JOB
    argosy replay --error TooManyAttempts
    argosy replay --all
    """
    if job is None and error_kind is None and not everything:
        raise click.UsageError("name a job, an error with --error, or --all", ctx)
    envelopes = results = 0
    with open_store() as store:
        began_at = store.now()
        if job is not None:
            job = store.job_id(job)  # a misspelt id raises, instead of replaying nothing
        again = partial(store.dead_letters.replay, job=job, error_kind=error_kind, failed_before=began_at)
        portion = again(by=user())  # the audit log has one entry
        while portion.envelopes:
            envelopes += portion.envelopes
            results += portion.results
            portion = again()
    say(f"{results:,} failed results of {envelopes:,} envelopes queued again")


@click.command()
@click.option(
    "--older-than", "older_than_s", type=Duration(), help="Also jobs that finished longer ago than this: 12h, 30d, 8w."
)
@click.option("--inputs", "inputs_only", is_flag=True, help="Delete only the inputs; keep jobs and results.")
@click.option("--vacuum", is_flag=True, help="Then make SQLite's file smaller, while all that writes waits.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask, as if the command did not run in a terminal.")
def purge(*, older_than_s: float | None, inputs_only: bool, vacuum: bool, yes: bool) -> None:
    """Delete finished jobs with their inputs and results.

    A job with its own time to live is deleted once that has passed. Other jobs are deleted only by `--older-than`.
    Unfinished jobs always stay. `--older-than` also deletes older results of your own Celery tasks in this database.
    If a purge is interrupted, the next one completes it.

    \b
    argosy purge --older-than 30d
    argosy purge --older-than 1d --inputs
    """
    from producers.wire.blobs import Blobs
    from producers.wire.connection import Connection

    connection = Connection()
    with open_store() as store:
        before = None if older_than_s is None else store.now() - older_than_s
        if not yes and sys.stdin.isatty() and (due := store.retention.due(before)):
            what = "the inputs" if inputs_only else "all inputs and results"
            click.confirm(f"Delete {what} of {due:,} finished jobs?", abort=True)
        gone = store.retention.purge(finished_before=before, keep_results=inputs_only, by=user())
        blobs = Blobs(connection.blobs).sweep(store.retention.with_inputs)
        files = _sweep_files(connection, store)
        freed = store.retention.vacuum() if vacuum else None
    removed = {"jobs": gone.jobs, "results": gone.results, "inputs": gone.payloads + blobs, "batches": gone.batches}
    removed |= {"files": files} if files else {}
    removed |= {"Celery results": gone.celery_results} if gone.celery_results else {}
    say(f"removed {', '.join(f'{count:,} {name}' for name, count in removed.items())}")
    if freed is not None:
        say(f"the database's file is {freed:,} bytes smaller")


def _sweep_files(connection: Connection, store: Store) -> int:
    from producers.wire.errors import ConfigurationError

    try:
        files = connection.files
    except ConfigurationError:  # a fleet without a place for files has no files
        return 0
    return files.sweep(store.retention.existing)


def open_store() -> Store:
    """Return the store of the environment or of the local fleet, for a ``with`` statement."""
    from producers.wire.connection import Connection
    from results_store.store import Store

    return Store(Connection().store_url)


def _refused(limit: int) -> list[RefusedMessage]:
    """Return the newest messages that workers refused. If Redis cannot be asked, say so."""
    from producers.wire.connection import Connection
    from producers.wire.errors import ArgosyError
    from producers.wire.publisher import as_unavailable, connect
    from producers.wire.queues import refused_messages

    try:
        with connect(Connection().broker_url) as redis, as_unavailable(redis):
            return refused_messages(redis, limit)
    except ArgosyError as error:
        say(f"argosy: refused messages are not listed: {error}", err=True)
        return []


def _whole(letter: DeadLetter) -> dict[str, Any]:
    """Return the letter with its payload decoded, or as it is if the payload is unreadable."""
    from dataclasses import fields

    from producers.wire.errors import InvalidMessage
    from producers.wire.messages import decode_bytes

    row = {field.name: getattr(letter, field.name) for field in fields(letter)}
    with suppress(InvalidMessage):
        row["payload"] = decode_bytes(letter.payload, letter.content_type)
    return row


COMMANDS = (failures, dead, replay, purge)
