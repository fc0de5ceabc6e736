"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path

import click

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
