"""`argosy models`: list the fleet's models, pull their files, and replace a model while the fleet runs."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from producers.wire.command_line import Finite, say
from workers.commands.shared_options import FLEET_FILE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from producers.wire.connection import Connection
    from workers.node.presence import NodeState
    from workers.settings import ModelSettings


@click.group()
def models() -> None:
    """List, pull, check and reload the models of the fleet."""


@models.command("pull")
@FLEET_FILE
@click.argument("names", nargs=-1)
def pull(config: Path | None, names: tuple[str, ...]) -> None:
    """Download and verify models (all served ones, or NAMES) into the cache folder.

    \b
    A second run uses no network; an interrupted one continues where it stopped. Files are
    checked against the sha256 in the settings. The cache is $ARGOSY_CACHE, or ~/.cache/argosy.
    """
    from producers.wire.errors import ConfigurationError
    from workers import settings

    whole = settings.load(config)
    chosen = whole.models
    unknown = [name for name in names if name not in chosen]
    if unknown:
        raise ConfigurationError(f"no model {unknown[0]!r} in the settings; known models: {', '.join(chosen)}")
    wanted = [other for name in names or whole.served for other in (name, *whole.used_by(name))]
    _pull({name: chosen[name] for name in wanted})


@models.command("list")
@FLEET_FILE
def list_(config: Path | None) -> None:
    """Show the fleet's models, their tasks, whether they are pulled, and the models of each worker.

    A worker's models are listed with their revision. Within a memory budget not all of them are loaded.
    """
    from workers import settings
    from workers.models.sources import model_source

    chosen = settings.load(config)
    nodes = _nodes(chosen.connection)
    for name, model in chosen.models.items():
        found = model_source.locate(model_source.of_model(model.source, name), model_source.cache_folder())
        tasks = ", ".join(task.name for task in chosen.catalogue.tasks.values() if task.model == name)
        say(
            f"{name}: {found.revision if found else 'not pulled; argosy models pull ' + name}: "
            f"{tasks or 'not served, because it has no tasks'}"
        )
        for node in nodes:
            if name in node.models:
                say(f"    {node.name}: {node.served(name)}")


@models.command("reload")
@FLEET_FILE
@click.argument("name")
@click.option("--revision", help="Another revision of the same hub repository.")
@click.option("--source", help='A folder, or a source as in fleet.toml: \'{ hub = "…", revision = "…" }\'.')
@click.option(
    "--timeout", "timeout_s", type=Finite(0), default=900.0, show_default=True, help="Seconds to wait for the workers."
)
def reload(config: Path | None, name: str, revision: str | None, source: str | None, timeout_s: float) -> None:
    """Replace the served model NAME by its table in fleet.toml, or by another revision or source.

    \b
    Every worker loads the new version beside the old one, then switches between two batches.
    The new version computes the waiting items; every result names its revision. If a worker
    cannot load the new version, all keep the old one, and this command prints the reason.
    Workers that start later load the new version.
    Models that read its weights (`uses`) change with it.

    \b
        argosy models reload reviews --revision v2
        argosy models reload reviews --source /srv/models/reviews-2
    """
    from producers.wire.publisher import Publisher
    from results_store.store import Store
    from workers import settings
    from workers.commands import reload as redeclaring
    from workers.node import declared_settings

    file = settings.load(config)
    chosen = redeclaring.changed(file, name, revision=revision, source=source)
    _pull({name: chosen})
    where = file.connection
    with closing(Publisher(where.broker_url)) as publisher, Store(where.store_url) as store:
        own = file.models[name]
        redeclaring.reload(store, publisher, name, chosen, file=own, timeout_s=timeout_s, say=say)
    if declared_settings.digest(chosen) != declared_settings.digest(own):
        say(f"the settings still name the old version: change [models.{name}] too")


@models.command("check")
@FLEET_FILE
@click.argument("what", metavar="CLASS_OR_TABLE")
@click.option("--kind", help="The kind of its task, for a CLASS that names none (see `argosy kinds`).")
@click.option("--source", type=click.Path(path_type=Path), help="The folder of its files, for a CLASS.")
def check(config: Path | None, what: str, kind: str | None, source: Path | None) -> None:
    """Try a class of your own, module:Class or the name of a table of fleet.toml, before a worker starts.

    \b
    The class is imported and loaded; its `samples` are prepared, run and finished, alone and
    together, in a device process as in a worker. Exit code 1 if anything is wrong.

    \b
        argosy models check price:Price --kind regression
        argosy models check price
    """
    from producers.wire.errors import ConfigurationError
    from workers import settings
    from workers.device import devices
    from workers.fleet import class_check

    chosen = settings.load(config)
    name = what
    if ":" in what:
        chosen, name = class_check.settings_for(chosen, what, kind, source)
    elif kind or source:
        raise ConfigurationError(f"{what}: --kind and --source are for a class, module:Class")
    device = devices.select(chosen.worker.profile, chosen.worker.devices[:1])[0]
    problems = class_check.check(chosen, name, device)
    for problem in problems:
        say(problem)
    if problems:
        sys.exit(1)
    say(f"{what}: its samples have the same answers alone and together")


def _pull(chosen: Mapping[str, ModelSettings]) -> None:
    from workers.models.sources import model_source
    from workers.models.sources.download_progress import shown

    with shown() as progress:
        for name, model in chosen.items():
            source = model_source.of_model(model.source, name)
            pulled = model_source.pull(source, model_source.cache_folder(), progress)
            say(f"{name}: {pulled.revision} in {pulled.folder}")


def _nodes(where: Connection) -> list[NodeState]:
    """The nodes of the fleet, if a fleet is found."""
    from producers.wire.errors import ArgosyError
    from producers.wire.publisher import Publisher
    from workers.node import presence

    try:
        with closing(Publisher(where.broker_url)) as publisher:
            return presence.nodes(publisher)
    except ArgosyError:
        return []
