"""`argosy status`: the progress of a job, or the newest jobs, the queued work and the sites."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click
import msgspec

from producers.commands.submit_progress import watch
from producers.wire.command_line import ROWS, console, say
from producers.wire.training.training_job import TRAINING, TrainingProgress, training_progress

if TYPE_CHECKING:
    from rich.console import Group

    from producers.client.client import Client
    from results_store.records import JobStatus, Pause

#: Seconds between looks at the jobs with `--watch`.
EVERY_S = 1.0


@click.command()
@click.argument("job", required=False)
@click.option("--limit", type=ROWS, default=20, show_default=True, help="The most jobs to list.")
@click.option("--search", default="", metavar="TEXT", help="Only jobs with this text in their name, tenant or id.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per job, for programs.")
@click.option("-w", "--watch", "watched", is_flag=True, help="Follow the progress until JOB is finished.")
def status(job: str | None, *, limit: int, search: str, as_json: bool, watched: bool) -> None:
    """Show the progress of a job, or list the newest jobs, the queued work and the sites.

    A result is counted for each item and task. The estimate of the queued work is based on the device time of
    recent items. With a job and `--watch`, the exit code is 1 if a result failed, expired or was cancelled.

    In all commands, the first characters of a job's id are enough, if no other id begins with them.

    \b
    argosy status
    argosy status --search reviews
    argosy status 01jd2m3n4p5q6r7s8t9v0w1x2y
    argosy status 01jd2m --watch
    argosy status --json | jq 'select(.failed > 0) | .id'
    """
    from producers.client.client import Client

    if watched and (as_json or (job is None and not console().is_terminal)):
        raise click.UsageError(
            "--watch is for people: name a job, or leave out --json and show the table in a terminal"
        )
    with Client() as client:
        if job is None:
            _of_all(client, limit, search, as_json=as_json, watched=watched)
            return
        id_ = client.ask(lambda store: store.job_id(job))
        if watched:
            click.get_current_context().exit(watch(client.job(id_)))
        _of_one(client, id_, as_json=as_json)


def _of_one(client: Client, job: str, *, as_json: bool) -> None:
    from producers.commands.tables import show_job

    found = client.status(job)
    models = [] if found.finished else client.ask(lambda store: store.unfinished_models(job))
    training = _training(job) if TRAINING in models else None
    if as_json:
        _print([found], **({"training": training} if training else {}))
    else:
        show_job(found)
        if TRAINING in models:
            say(f"training  {training or 'waits for a node with nothing else to do'}")
    if not found.finished:
        _tell_unserved(models)
        _tell_paused(client.ask(lambda store: store.pauses.holding(job)))
        if postponed := client.ask(lambda store: store.retried_work(job)):
            say(f"argosy: {postponed}", err=True)


def _of_all(client: Client, limit: int, search: str, *, as_json: bool, watched: bool) -> None:
    def look() -> list[JobStatus]:
        return client.ask(lambda store: store.jobs(limit=limit, text=search))

    jobs = look()
    if as_json:
        _print(jobs)
        return
    if watched:
        from rich.live import Live

        with Live(_screen(client, jobs), console=console(), auto_refresh=False) as live:
            while True:
                time.sleep(EVERY_S)
                live.update(_screen(client, look()), refresh=True)
    if jobs:
        console().print(_screen(client, jobs))
    else:
        none = "no jobs yet; submit one with `argosy submit`"
        say(f"no job has {search!r} in its name, tenant or id" if search else none, err=True)
    _tell_sites()
    _tell_unserved([work.model for work in client.queued_work()])
    _tell_paused(client.ask(lambda store: store.pauses.every()))


def _screen(client: Client, jobs: Sequence[JobStatus]) -> Group:
    from rich.console import Group

    from producers.commands.tables import jobs_table, queued_lines

    return Group(jobs_table(jobs), *queued_lines(client.queued_work()))


def _print(jobs: Sequence[JobStatus], **more: object) -> None:
    for one in jobs:
        click.echo(msgspec.json.encode(asdict(one) | {"state": one.state} | more).decode())


def _tell_unserved(models: Sequence[str]) -> None:
    from producers.commands.serving import unserved

    if models and (told := unserved(models)):
        say(f"argosy: {told}", err=True)


def _training(job: str) -> TrainingProgress | None:
    """Return the progress of a training; None if no node has begun it, or if Redis cannot be asked."""
    from producers.commands.serving import asked

    return asked(lambda redis: training_progress(redis, job))


def _tell_sites() -> None:
    from producers.commands.serving import asked
    from producers.commands.tables import sites_table
    from producers.wire.edge.told_sites import told_sites

    if sites := asked(told_sites):
        say("")
        console().print(sites_table(sites))


def _tell_paused(pauses: Sequence[Pause]) -> None:
    for one in pauses:
        say(f"argosy: {one}; `argosy resume {one.kind} {one.name or repr('')}` ends it", err=True)
