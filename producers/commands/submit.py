"""`argosy submit`: turn files into a job and, if requested, join its results to the rows."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
import msgspec

from producers.commands.csv_output import SPREADSHEET, csv_cells, tell_formulas
from producers.commands.output_file import OUTPUT, OutputFile
from producers.commands.submit_progress import counting, rejecting, tell, tell_left_out, watch
from producers.wire.command_line import say
from producers.wire.errors import InvalidInput, KeyOfCancelledJob
from producers.wire.messages import Priority

if TYPE_CHECKING:
    from producers.client.client import Client
    from producers.client.handles import Job
    from producers.sources import Source
    from producers.wire.outside.allowed_places import AllowedPlaces
    from results_store.export.spreadsheet import Cells

PRIORITIES = [priority.name.lower() for priority in Priority]
FORMATS = ["text", "json", "jsonl", "csv", "tsv", "parquet", "arrow"]


class SourceOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options that say which rows are submitted, and how."""

    where: tuple[str, ...]
    tasks: tuple[str, ...]
    format: str | None
    priority: str
    params: Any
    name: str | None
    deadline_s: float | None
    input_columns: tuple[str, ...]
    id_column: str | None
    send_paths: bool
    on_error: Literal["stop", "skip"]
    tenant: str | None

    @property
    def task(self) -> str | tuple[str, ...]:
        """The task as the client takes it."""
        return self.tasks[0] if len(self.tasks) == 1 else self.tasks

    @property
    def owner(self) -> str:
        """The tenant of the job. Raises InvalidInput."""
        from producers.wire.connection import Connection, checked_tenant

        return Connection().tenant if self.tenant is None else checked_tenant(self.tenant, "--tenant")


class Options(SourceOptions, frozen=True, kw_only=True):
    """The options of the command line."""

    errors: Path | None
    idempotency_key: str | None
    again: bool
    patience_s: float | None
    dry_run: bool
    watch: bool
    output: OutputFile | None
    revisions: bool
    spreadsheet: bool


#: The argument and the options of `SourceOptions`, for commands that submit rows.
SOURCE_OPTIONS: tuple[Callable[[Callable[..., Any]], Callable[..., Any]], ...] = (
    click.argument("where", nargs=-1, required=True, metavar="SOURCE..."),
    click.option(
        "-t", "--task", "tasks", multiple=True, required=True, help="A task to compute; repeat it for several."
    ),
    click.option(
        "-f", "--format", type=click.Choice(FORMATS), help="Format of the files.  [default: by each file's name]"
    ),
    click.option(
        "-p",
        "--priority",
        type=click.Choice(PRIORITIES),
        default="bulk",
        show_default=True,
        help="Priority of the job.",
    ),
    click.option(
        "--params", metavar="JSON", help="Parameters of the task, or by task if there are several. See `argosy tasks`."
    ),
    click.option("--name", help="Name of the job.  [default: the file's name]"),
    click.option(
        "--deadline", "deadline_s", type=float, metavar="SECONDS", help="Items not computed by then end as `expired`."
    ),
    click.option(
        "--input-column",
        "input_columns",
        multiple=True,
        metavar="NAME",
        help="Column with the text, the path or the URL; several columns make one input with these fields.",
    ),
    click.option("--id-column", metavar="NAME", help="Column with each result's key; no key may occur twice."),
    click.option(
        "--paths", "send_paths", is_flag=True, help="Send paths, not bytes: for a folder that the workers can read."
    ),
    click.option(
        "--on-error",
        type=click.Choice(["stop", "skip"]),
        default="stop",
        show_default=True,
        help="On a bad row, stop or skip the row.",
    ),
    click.option("--tenant", metavar="NAME", help="Tenant that owns the job.  [default: ARGOSY_TENANT]"),
)


def source_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of `SourceOptions`."""
    for option in reversed(SOURCE_OPTIONS):
        command = option(command)
    return command


@click.command()
@source_options
@click.option(
    "--errors", type=click.Path(path_type=Path, dir_okay=False), help="Write each bad row to this file, as JSON Lines."
)
@click.option(
    "--idempotency-key",
    metavar="KEY",
    help="The same key adds nothing twice.  [default: derived from files and options]",
)
@click.option("--again", is_flag=True, help="Submit again, even if the same files were submitted before.")
@click.option(
    "--patience",
    "patience_s",
    type=float,
    metavar="SECONDS",
    help="Give up after SECONDS if the fleet stays full.  [default: wait without limit]",
)
@click.option("--dry-run", is_flag=True, help="Check all rows and estimate the work; submit nothing.")
@click.option("-w", "--watch", "--wait", "watch", is_flag=True, help="Show a progress bar until the job is finished.")
@click.option(
    "-o",
    "--output",
    type=OUTPUT,
    help="Wait, then write the rows with their results: .parquet, .csv or .jsonl, also at a URL that fsspec knows.",
)
@click.option(
    "--revisions",
    is_flag=True,
    help="With --output: a further column per task with its model's revision.",
)
@SPREADSHEET
def submit(**given: Any) -> None:
    """Submit files or a folder of images or clips, and print the job's id.

    \b
    .jsonl .ndjson .json   a JSON object or string per line, or a list of them
    .csv .tsv              with a header line
    .parquet .arrow        an item per row (argosy[parquet])
    images, clips, folders every file in the folder and below that is not hidden
    .txt .log, no suffix   plain text, an item per line
    -                      standard input: text, or as --format says

    SOURCE can be several paths, a quoted pattern ('logs/*.jsonl.gz'), or a URL (s3://bucket/a.parquet, with
    argosy[fsspec] and the package for that store). gzip, bzip2, xz, zstd and lz4 files are unpacked.

    The input column is `--input-column`, or the first of these that exists: input, text, sentence, review, content (for
    images and clips: input, image or audio, path, file, url). A result's key comes from the id column (`--id-column`,
    or else id or key), or else is the line's number; for images it is the path within the folder.

    For a table model, the input is the model's own columns: cells are numbers or words as the model has them, an empty
    cell is unknown, and other columns are only kept for `--output`. For sensor values, a column holds a channel, and
    consecutive rows with the same id are one series; without an id column, the whole file is one.

    Images and clips are read here and sent as bytes, because a worker on another machine cannot read local files.

    A bad row stops the submission with an error that names file and line; the rows before it stay submitted. With
    `--on-error skip` a bad row is left out and counted. `--errors FILE` lists all bad rows.

    After an interruption, run the same command again: it resumes and submits nothing twice. The key of a submission is
    derived from the files and options, so it changes when a file's size or time changes. `--again` submits anew.

    `--dry-run` reads and checks all rows, and prints how long the fleet would take for them: as long as for as many
    items of its recent batches, behind the work that waits now.

    With `--output` the rows are written in their order: all their columns, a column per task, and `error`. With
    `--output` or `--watch` the exit code is 1 if a result failed, expired or was cancelled. Ctrl-C ends only the wait.

    \b
    argosy submit reviews.csv --task sentiment --task topic --input-column review --watch
    argosy submit reviews.parquet -t sentiment --id-column id --on-error skip --errors bad.jsonl --output rated.parquet
    zcat logs.gz | argosy submit - -t topic --params '{"top_k": 3}' --priority standard
    argosy submit lines.txt -t topic -t spam --params '{"topic": {"top_k": 3}}'
    argosy submit customers.csv --task churn --id-column customer --output rated.csv
    argosy submit photos/ --task image-classification
    """
    from producers.client.client import Client
    from producers.joining import check_columns, check_output

    options = Options(**{**given, "params": json_option(given["params"])})
    named = options.output.format if options.output is not None else ""
    cells = csv_cells(named, escaped=options.spreadsheet)
    if options.output is not None:
        check_output(options.output.path)
        options.output.check()
    elif options.revisions:
        raise click.UsageError("--revisions is for --output; name a file, or leave the option out")
    with Client() as client:
        source = source_of(client, options, reread=options.output is not None)
        for option, file in (("--output", options.output), ("--errors", options.errors)):
            if file is not None and source.reads(str(file)):
                raise click.UsageError(
                    f"{option}: {file} is one of the sources, or their pattern matches it, so that it would be "
                    "overwritten or read; name another file"
                )
        if options.output is not None:
            check_columns(source, options.output.path)
        if options.dry_run:
            _estimated(client, source, options)
            return
        fingerprint = None if options.output is None else source.fingerprint()
        job = _found_or_submitted(client, source, options)
        say(job.id)
        if options.watch or options.output is not None:
            code = watch(job)
            if options.output is not None:
                _write(client, job, source, fingerprint, options, options.output, cells)
            click.get_current_context().exit(code)
        if sys.stdout.isatty():
            say(f"follow it with `argosy status {job.id}`", err=True)


def source_of(
    client: Client, options: SourceOptions, *, reread: bool = False, allowed: AllowedPlaces | None = None
) -> Source:
    """Return the rows to submit; `reread` lets standard input be read again, `allowed` bounds the files read."""
    from producers.sources import Source

    task = client.catalogue.task(options.tasks[0])
    return Source(
        options.where,
        task.kind.modality,
        client.catalogue.limits,
        input_column=options.input_columns or None,
        key_column=options.id_column,
        send_paths=options.send_paths,
        format=options.format,
        reread=reread,
        declared=_declared(client, options) if task.kind.modality in ("row", "series") else {},
        allowed=allowed,
    )


def _declared(client: Client, options: SourceOptions) -> Mapping[str, Any]:
    """Return the schema of the tasks' input, as a worker has described it in the store; empty if none has.

    Raises InvalidInput for tasks whose models have different columns.
    """
    schemas = client.ask(lambda store: store.declarations.schemas())
    tasks = [client.catalogue.task(name) for name in options.tasks]
    inputs: list[Mapping[str, Any]] = [schemas.get(task.model, {}).get("input", {}) for task in tasks]
    for task, columns in zip(tasks, inputs, strict=True):
        if task.kind.modality == tasks[0].kind.modality and columns != inputs[0]:
            problem = f"has other columns than {tasks[0].name!r}, so a row cannot be the input of both"
            raise InvalidInput(f"task {task.name!r}", problem, "submit the file once for each task")
    return inputs[0]


def _estimated(client: Client, source: Source, options: Options) -> None:
    from producers.client.request import Request
    from producers.commands.dry_run import counted, tell_estimate

    owner = options.owner
    chosen = {"priority": options.priority, "deadline_s": options.deadline_s, "params": options.params}
    request = Request.check(client.catalogue, options.task, **chosen)
    with rejecting(options.errors) as rejections:
        rows = rejections.unless_all(source.rows())
        found = counted(request, rows, skip=options.on_error == "skip", on_rejected=rejections)
    tell_left_out(source)
    tell_estimate(client, request, found, owner)


def _found_or_submitted(client: Client, source: Source, options: Options) -> Job:
    """Submit the source. If it was submitted before and cancelled, return that job for its output."""
    try:
        return _submitted(client, source, options)
    except KeyOfCancelledJob as error:
        if options.output is None:
            error.add_note("`--output FILE` writes the rows with the results that it has")
            raise
        say("argosy: the job was cancelled; the rows are written with the results that it has", err=True)
        return client.job(error.cancelled)


def _submitted(client: Client, source: Source, options: Options) -> Job:
    key = options.idempotency_key
    if key is None and not options.again:
        key = _derived_key(source, options)
    with counting(source) as count, rejecting(options.errors) as rejections:
        try:
            job = client.submit_many(
                options.task,
                rejections.unless_all(source.rows()),
                priority=options.priority,
                name=options.name or Path(source.name).name or source.name,
                idempotency_key=key,
                deadline_s=options.deadline_s,
                params=options.params,
                on_error="raise" if options.on_error == "stop" else "skip",
                on_accepted=count,
                on_rejected=rejections,
                patience_s=options.patience_s,
                tenant=options.tenant,
            )
        except InvalidInput as error:
            if error.job is not None and key is not None:
                error.add_note(f"once it is corrected, add `--idempotency-key {key}` to resume from there")
            raise
    tell(job, count.items, options.errors)
    tell_left_out(source)
    return job


def json_option(params: str | None) -> Any:
    """Return the value of `--params`. Raises UsageError."""
    if params is None:
        return None
    try:
        return msgspec.json.decode(params)
    except msgspec.DecodeError as error:
        raise click.UsageError(f"--params: not JSON: {error}") from error


def _derived_key(source: Source, options: Options) -> str | None:
    """Return a key from the command's files and options; None for standard input, which cannot be recognised."""
    fingerprint = source.fingerprint()
    if fingerprint is None:
        return None
    o = options
    settings = (o.tasks, o.params, o.priority, o.name, o.deadline_s, o.on_error, o.tenant)
    return f"submit {hashlib.sha256(repr((fingerprint, settings)).encode()).hexdigest()[:32]}".replace(" ", "-")


def _write(
    client: Client,
    job: Job,
    source: Source,
    fingerprint: str | None,
    options: Options,
    output: OutputFile,
    cells: Cells,
) -> None:
    from producers.client.request import Request
    from producers.joining import write_joined

    request = Request.check(client.catalogue, options.task, priority=options.priority, params=options.params)
    try:
        with output.placed() as path:
            rows = write_joined(
                source, request, job.results(), path, cells, revisions=options.revisions, fingerprint=fingerprint
            )
    except Exception as error:
        error.add_note(f"the results are safe: `argosy results {job.id}`")
        raise
    say(f"argosy: {rows:,} rows in {output}", err=True)
    tell_formulas(cells)
