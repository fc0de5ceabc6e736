"""Options that several commands have, and their errors about rows."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from producers.wire.command_line import FAILED, say

FLEET_FILE = click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="ARGOSY_FLEET",
    help="A fleet.toml over the built-in settings.",
)

DEVICE = click.option(
    "--device",
    help="cpu, cuda:0, ort:PROVIDER, openvino:DEVICE …  [default: the first device of the profile]",
)


@contextmanager
def naming_bad_rows() -> Iterator[None]:
    """End the command with a line for each bad row."""
    from workers.training.recipes.labelled_rows import BadRows

    try:
        yield
    except BadRows as error:
        for line in error.lines:
            say(line, err=True)
        sys.exit(FAILED)
