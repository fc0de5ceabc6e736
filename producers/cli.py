"""The `argosy` command: submit, follow and read. What needs a worker's packages registers under ``argosy.commands``."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

import click
import msgspec

from producers.command_line import CommandLine
from producers.errors import InvalidInput
from producers.messages import Priority
from producers.operator_commands import COMMANDS

if TYPE_CHECKING:
    from producers.handles import Job
    from results_store.store import Store

PRIORITIES = [priority.name.lower() for priority in Priority]


@click.group("argosy", cls=CommandLine, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="argosy")
def main() -> None:
    """Put texts and images through a fleet of shared models; one result for each in SQL.

    \b
    argosy up                                          start a fleet on this machine
    argosy submit reviews.csv --task sentiment --watch submit a file, follow it
    argosy results JOB --output results.jsonl          fetch what came out

    The fleet is the one named by ARGOSY_BROKER_URL and ARGOSY_STORE_URL; without them, the one that `argosy up` runs
    on this machine.
    """
    logging.basicConfig(format="argosy: %(message)s", level=logging.WARNING)


@main.command()
@click.argument("source", type=click.Path(path_type=Path), metavar="FILE|FOLDER")
@click.option("-t", "--task", "tasks", multiple=True, required=True, help="A task to compute; repeat it for several.")
@click.option(
    "-p", "--priority", type=click.Choice(PRIORITIES), default="bulk", show_default=True, help="How urgent it is."
)
@click.option(
    "--params", metavar="JSON", help="Parameters: of the one task, or by task if several are named. See `argosy tasks`."
)
@click.option("--name", help="What to call the job.  [default: the file's name]")
@click.option("--deadline", "deadline_s", type=float, metavar="SECONDS", help="What is not computed by then expires.")
@click.option("--input-column", metavar="NAME", help="Column with the text, or with the image's path or URL.")
@click.option("--id-column", metavar="NAME", help="Column kept with each result as its key.")
@click.option("--paths", "send_paths", is_flag=True, help="Send images as paths, for a folder the workers see too.")
@click.option(
    "--on-error", type=click.Choice(["stop", "skip"]), default="stop", show_default=True, help="What a bad row does."
)
@click.option(
    "--idempotency-key", metavar="KEY", help="Run the command again with the same key: nothing is submitted twice."
)
@click.option("-w", "--watch", is_flag=True, help="Stay until it is finished, with a progress bar.")
@click.pass_context
def submit(
    ctx: click.Context,
    source: Path,
    tasks: tuple[str, ...],
    *,
    priority: str,
    params: str | None,
    name: str | None,
    deadline_s: float | None,
    input_column: str | None,
    id_column: str | None,
    send_paths: bool,
    on_error: Literal["stop", "skip"],
    idempotency_key: str | None,
    watch: bool,
) -> None:
    """Submit a file or a folder of images and print the job's id.

    \b
    .jsonl .ndjson   a JSON object or string a line
    .csv .tsv        with a header line
    images, folders  every image in the folder and below
    anything else    plain text, one item a line

    The input column is `--input-column`, or the first there of: input, text, sentence, review, content (for images:
    input, image, path, file, url). A result's key is the id column (`--id-column`, or id, or key), else the line's
    number; for images it is the path within the folder.

    Images are read here and their bytes sent, because a worker on another machine cannot see this one's files.

    A bad row stops the submission, naming file and line; what went out before it stays submitted. With `--on-error
    skip` it is left out and counted.

    With `--watch` the exit code is 1 if any result failed, expired or was cancelled. Ctrl-C stops watching, and the job goes on.

    \b
    argosy submit reviews.csv --task sentiment --task topic --input-column review --watch
    argosy submit lines.txt -t topic --params '{"top_k": 3}' --priority standard
    argosy submit lines.txt -t topic -t spam --params '{"topic": {"top_k": 3}}'
    argosy submit photos/ --task image-classification
    """
    from producers.client import Client
    from producers.sources import Source

    with Client() as client:
        task: str | tuple[str, ...] = tasks[0] if len(tasks) == 1 else tasks
        rows = Source(
            source,
            client.catalogue.task(tasks[0]).kind.modality,
            client.catalogue.limits,
            input_column=input_column,
            key_column=id_column,
            send_paths=send_paths,
        ).rows()
        with _counting() as count:
            job = client.submit_many(
                task,
                rows,
                priority=priority,
                name=name or source.name,
                idempotency_key=idempotency_key,
                deadline_s=deadline_s,
                params=_json(params),
                on_error="raise" if on_error == "stop" else "skip",
                on_accepted=count,
            )
        click.echo(job.id)
        _tell_rejected(job)
        if watch:
            ctx.exit(_watch(job))
        if sys.stdout.isatty():
            click.echo(f"follow it with `argosy status {job.id}`", err=True)


@main.command()
@click.argument("job", required=False)
@click.option("--limit", default=20, show_default=True, help="How many jobs to list.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a job, for programs.")
def status(job: str | None, *, limit: int, as_json: bool) -> None:
    """Show how far a job is, or list the newest jobs.

    Counts are of results: one for each item and task.

    \b
    argosy status
    argosy status 01jd2m3n4p5q6r7s8t9v0w1x2y
    argosy status --json | jq 'select(.failed > 0) | .id'
    """
    from producers.client import Client
    from producers.presentation import show_job, show_jobs

    with Client() as client:
        jobs = client.jobs(limit) if job is None else [client.status(job)]
    if as_json:
        for one in jobs:
            click.echo(msgspec.json.encode(one).decode())
    elif job is not None:
        show_job(jobs[0])
    elif jobs:
        show_jobs(jobs)
    else:
        click.echo("no jobs yet; submit one with `argosy submit`", err=True)


@main.command()
@click.argument("job")
@click.option(
    "-f",
    "--format",
    "format_",
    type=click.Choice(["jsonl", "csv", "parquet"]),
    help="[default: by --output's name, else jsonl]",
)
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="[default: standard output]")
def results(job: str, *, format_: str | None, output: Path | None) -> None:
    """Write a job's results, one line for each item and task, in the order of the items.

    They are streamed, whatever their number. FILE appears under its name only once it is complete. If the job is not
    finished, what is there so far is written, and a note on standard error says so.

    \b
    argosy results JOB | jq -r 'select(.state == "succeeded") | [.key, .output[0].label] | @tsv'
    argosy results JOB --output results.csv
    argosy results JOB --output results.parquet
    """
    from producers.connection import Connection
    from results_store.store import Store

    named = "" if output is None else output.suffix.lower().lstrip(".")
    write = _writer(format_ or (named if named in ("csv", "parquet") else "jsonl"))
    with Store(Connection().store_url) as store:
        progress = store.job(job)
        with _writing(output) as out:
            write(store, job, out)
    if not progress.finished:
        click.echo(f"argosy: the job is not finished: {progress.done:,} of {progress.total:,} results", err=True)


@main.command()
@click.argument("job")
def cancel(job: str) -> None:
    """Cancel what a job has not computed yet. Results that are there stay.

    The rest ends `cancelled` as the workers come to it, without being computed.
    """
    from producers.client import Client

    with Client() as client:
        progress = client.job(job).cancel()
    if progress.finished:
        click.echo(f"job {job} was finished already", err=True)
    else:
        click.echo(f"job {job}: cancelled, with {progress.done:,} of {progress.total:,} results there", err=True)


@main.command()
def tasks() -> None:
    """List the tasks that can be submitted, with their parameters and defaults.

    These are the built-in ones, and those of the fleet.toml that ARGOSY_FLEET names.
    """
    from producers.connection import Connection
    from producers.presentation import show_tasks

    show_tasks(Connection().catalogue)


def _json(params: str | None) -> Any:
    if params is None:
        return None
    try:
        return msgspec.json.decode(params)
    except msgspec.DecodeError as error:
        raise click.UsageError(f"--params: not JSON: {error}") from error


class _Count:
    """What was accepted so far, to tell when the user stops the submission."""

    def __init__(self) -> None:
        self.job = ""
        self.items = 0

    def __call__(self, job: str, items: int) -> None:
        self.job, self.items = job, items
        if sys.stderr.isatty():
            click.echo(f"\r{items:,} items submitted", nl=False, err=True)


@contextmanager
def _counting() -> Iterator[_Count]:
    count = _Count()
    try:
        yield count
    except KeyboardInterrupt:
        if count.items:
            click.echo(
                f"\nargosy: stopped; job {count.job} keeps the {count.items:,} items submitted so far; "
                f"drop them with `argosy cancel {count.job}`",
                err=True,
            )
        raise
    finally:
        if count.items and sys.stderr.isatty():
            click.echo("", err=True)


def _tell_rejected(job: Job) -> None:
    if not job.rejected_count:
        return
    if job.progress().items == 0:
        raise InvalidInput("input", f"no row could be submitted: {job.rejected[0].error}")
    click.echo(f"argosy: {job.rejected_count:,} rows left out; the first: {job.rejected[0].error}", err=True)


def _watch(job: Job) -> int:
    """Show the progress until the job is finished; return the exit code."""
    try:
        from producers.presentation import progress_bar, summary

        with progress_bar() as show:
            finished = job.wait(on_progress=show)
    except KeyboardInterrupt:
        click.echo(f"argosy: the job goes on; see `argosy status {job.id}`", err=True)
        raise
    click.echo(summary(finished), err=True)
    return 0 if finished.succeeded == finished.total else 1


def _writer(format_: str) -> Callable[[Store, str, TextIO], object]:
    if format_ == "parquet":
        from results_store.export_parquet import write_parquet

        return lambda store, job, out: write_parquet(store, job, out.buffer)
    from results_store import export

    return export.write_csv if format_ == "csv" else export.write_jsonl


@contextmanager
def _writing(output: Path | None) -> Iterator[TextIO]:
    if output is None:
        yield sys.stdout
        return
    part = output.with_name(f"{output.name}.part")
    try:
        with part.open("w", encoding="utf-8", newline="") as file:
            yield file
        part.replace(output)
    finally:
        part.unlink(missing_ok=True)


for _command in COMMANDS:
    main.add_command(_command)

if __name__ == "__main__":
    main()
