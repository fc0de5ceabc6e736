"""The start of a site's fleet, for `argosy edge`."""

from __future__ import annotations

from pathlib import Path

import click

from workers.commands.running import run_fleet
from workers.commands.shared_options import FLEET_FILE


@click.command("edge-site", hidden=True)
@FLEET_FILE
def edge_site(config: Path | None) -> None:
    """Start a site and run it until Ctrl-C, for `argosy edge`."""
    import os

    from producers.wire import connection
    from producers.wire.edge.cascade_tasks import programs_catalogue
    from producers.wire.errors import ConfigurationError
    from workers import settings
    from workers.fleet import local as fleet

    chosen = settings.load(config)
    if config is None or chosen.edge is None:
        raise ConfigurationError(f"{config or 'fleet.toml'}: edge: is missing; a site needs this table (docs/edge.md)")
    programs_catalogue(config)
    chosen.edge.key(os.environ)
    run_fleet(fleet.LocalFleet(chosen, connection.home(), config=config, flower=False, forwarder=True))
