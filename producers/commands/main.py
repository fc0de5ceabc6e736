"""The `argosy` command: submit, follow, read. The commands of other packages register under ``argosy.commands``."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, TextIO

import click

from producers.commands import pause_commands
from producers.commands.audit import audit
from producers.commands.batch_figures import batches
from producers.commands.csv_output import SPREADSHEET, csv_cells, tell_formulas
from producers.commands.index import index
from producers.commands.operate import COMMANDS, open_store
from producers.commands.output_file import OUTPUT, OutputFile
from producers.commands.scheduling.schedule_commands import schedule
from producers.commands.status import status
from producers.commands.submit import submit
from producers.commands.tenants import tenants
from producers.edge.edge_commands import edge
from producers.wire.atomic_files import atomically
from producers.wire.command_line import CommandLine, say, user

if TYPE_CHECKING:
    from results_store.export.spreadsheet import Cells
    from results_store.store import Store


@click.group("argosy", cls=CommandLine, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="argosy")
def main() -> None:
    """Run texts and images through a fleet of shared models, and get a result for each in SQL.

    \b
    argosy up                                          start a fleet on this machine
    argosy submit reviews.csv --task sentiment --watch submit a file, follow its progress
    argosy results JOB --output results.jsonl          fetch the results

    ARGOSY_BROKER_URL and ARGOSY_STORE_URL name the fleet. Without them the commands use the fleet that `argosy up`
    runs on this machine.
    """
    logging.basicConfig(format="argosy: %(message)s", level=logging.WARNING)


@main.command()
@click.argument("job")
@click.option(
    "-f",
    "--format",
    "format_",
    type=click.Choice(["jsonl", "csv", "parquet", "trees"]),
    help="[default: by --output's name, else jsonl]",
)
@click.option("-o", "--output", type=OUTPUT, help="[default: standard output]")
@SPREADSHEET
def results(job: str, *, format_: str | None, output: OutputFile | None, spreadsheet: bool) -> None:
    """Write a job's results, a line for each item and task, in the order of the items.

    Results are streamed, so memory does not grow with their number. FILE gets its name only once it is complete. If
    the job is not finished, the command writes the results so far and says so on standard error.

    \b
    argosy results JOB | jq -r 'select(.state == "succeeded") | [.key, .output[0].label] | @tsv'
    argosy results JOB --output results.csv
    argosy results JOB --output results.parquet
    argosy results JOB --format trees    # a pipeline: a line per input
    """
    named = "" if output is None else output.format
    format_ = format_ or (named if named in ("csv", "parquet") else "jsonl")
    cells = csv_cells(format_, escaped=spreadsheet)
    write = _writer(format_, cells)
    if output is not None:
        output.check()
    with open_store() as store:
        job = store.job_id(job)
        progress = store.job(job)
        with _writing(output) as out:
            write(store, job, out)
    tell_formulas(cells)
    if not progress.finished:
        say(f"argosy: the job is not finished: {progress.done:,} of {progress.total:,} results", err=True)


@main.command()
@click.argument("job")
def cancel(job: str) -> None:
    """Cancel the rest of a job. Results that exist stay.

    The workers do not compute the remaining items; these end as `cancelled` when a worker reaches them.
    """
    from producers.client.client import Client

    with Client() as client:
        progress = client.ask(lambda store: store.cancel_job(store.job_id(job), by=user()))
    if progress.finished:
        say(f"job {progress.id} was already finished", err=True)
    else:
        say(f"job {progress.id}: cancelled after {progress.done:,} of {progress.total:,} results", err=True)


@main.command()
def tasks() -> None:
    """List the tasks that can be submitted, with their parameters and defaults.

    These are the built-in tasks and the tasks of the fleet.toml that ARGOSY_FLEET names.
    """
    from producers.commands.tables import show_tasks
    from producers.wire.connection import Connection

    show_tasks(Connection().catalogue)


@main.command()
def kinds() -> None:
    """List the kinds of tasks: the input, the argument of a class's `prepare`, the parameters, the answer."""
    from producers.commands.tables import show_kinds

    show_kinds()


def _writer(format_: str, cells: Cells) -> Callable[[Store, str, TextIO], object]:
    if format_ == "parquet":
        from results_store.export.parquet_export import write_parquet

        return lambda store, job, out: write_parquet(store, job, out.buffer)
    if format_ == "trees":
        from producers.client.pipelines.pipeline_job import write_trees

        return write_trees
    from results_store.export import text_export

    return partial(text_export.write_csv, cells=cells) if format_ == "csv" else text_export.write_jsonl


@contextmanager
def _writing(output: OutputFile | None) -> Iterator[TextIO]:
    if output is None:
        yield sys.stdout
        return
    with output.placed() as path, atomically(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        yield file


for _command in [submit, status, index, batches, *COMMANDS, *pause_commands.COMMANDS, schedule, audit, tenants, edge]:
    main.add_command(_command)

if __name__ == "__main__":
    main()
