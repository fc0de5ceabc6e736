"""The option `--spreadsheet` of commands that write CSV, and the warning about texts that a spreadsheet would run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from producers.wire.command_line import say

if TYPE_CHECKING:
    from results_store.export.spreadsheet import Cells

SPREADSHEET = click.option(
    "--spreadsheet",
    is_flag=True,
    help="For CSV: put an apostrophe before each text that a spreadsheet would run as a formula.",
)


def csv_cells(format_: str, *, escaped: bool) -> Cells:
    """Return the cells of an output. Raises click.UsageError if other formats than CSV are to be escaped."""
    from results_store.export.spreadsheet import Cells

    if escaped and format_ != "csv":
        raise click.UsageError("--spreadsheet is for CSV; write a .csv file, or leave the option out")
    return Cells(escaped=escaped)


def tell_formulas(cells: Cells) -> None:
    """Warn about texts that were written as they are, although a spreadsheet would run them."""
    if cells.formulas and not cells.escaped:
        say(
            f"argosy: {cells.formulas:,} cells begin like a formula; before you open the file in a spreadsheet, "
            "write it with --spreadsheet",
            err=True,
        )
