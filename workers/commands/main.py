"""The commands that need more than the client: `up`, `worker`, `migrate`, `tune`, `doctor` …. Each imports heavy
packages itself.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
from pathlib import Path

import click

from producers.wire.command_line import FAILED, log_to_stderr, say, visible
from workers.commands import compress, edge, flight_recorder, models, train, tune
from workers.commands.running import run_fleet
from workers.commands.shared_options import DEVICE, FLEET_FILE

#: A port that a server can be told to use.
PORT = click.IntRange(1, 65535)

#: A worker whose work is over waits so long for threads of its models' classes.
THREADS_END_S = 3.0


@click.command()
@FLEET_FILE
@click.option("--flower/--no-flower", default=True, show_default=True, help="Start Flower beside the workers.")
@click.option("--broker-port", type=PORT, help="The broker's port.  [default: the port of the last start]")
@click.option("--flower-port", type=PORT, help="Flower's port.  [default: the port of the last start]")
def up(*, config: Path | None, flower: bool, broker_port: int | None, flower_port: int | None) -> None:
    """Start a whole fleet on this machine and run it until Ctrl-C.

    \b
    The fleet is embedded Valkey (its data in the home folder), SQLite, a worker per device,
    and Flower on loopback. The home folder is $ARGOSY_HOME, or ~/.local/share/argosy. Clients
    of the same user find the fleet on their own:

    \b
        argosy models pull
        argosy up
        argosy submit reviews.txt --task sentiment --watch      (in another terminal)
    """
    from producers.wire import connection
    from producers.wire.errors import ConfigurationError
    from workers import settings
    from workers.fleet import local as fleet

    chosen = settings.load(config)
    if chosen.edge is not None:
        problem = f"{config}: edge: nobody would serve its tasks in this fleet"
        raise ConfigurationError(f"{problem}; start the site with `argosy edge`")
    local = fleet.LocalFleet(
        chosen,
        connection.home(),
        config=config,
        flower=flower,
        broker_port=broker_port,
        flower_port=flower_port,
    )
    run_fleet(local)


@click.command()
@FLEET_FILE
@DEVICE
@click.option("--name", help="The node's name in Flower.  [default: from device and host]")
@click.option(
    "--ready-file", type=click.Path(path_type=Path), help="A file that exists while the worker takes envelopes."
)
def worker(config: Path | None, device: str | None, name: str | None, ready_file: Path | None) -> None:
    """Run a worker node: a device, its models, and their queues.

    \b
    Set ARGOSY_BROKER_URL and ARGOSY_STORE_URL, or run it beside a local fleet.
    SIGTERM stops it: its envelopes are finished within worker.grace_s seconds or
    return to their queue.

    \b
        argosy worker --device cuda:1
        argosy worker --device openvino:HETERO:GPU,CPU
    """
    from workers import settings
    from workers.consumer import worker as node
    from workers.device import devices

    log_to_stderr(config)
    if config is not None:
        os.environ["ARGOSY_FLEET"] = str(config.absolute())  # for the processes that it starts
    faulthandler.enable()  # a crash in a library's C code is then in the log, with each thread's place
    chosen = settings.load(config)
    where = chosen.connection
    wanted = (device,) if device else chosen.worker.devices[:1]
    code = FAILED
    try:
        node.run(
            chosen,
            devices.select(chosen.worker.profile, wanted)[0],
            broker_url=where.broker_url,
            store_url=where.store_url,
            name=name,
            ready_file=ready_file,
        )
        code = 0
    finally:
        _end_beside_threads(code)


def _end_beside_threads(code: int) -> None:
    """End the process within seconds, also if a model's class has started threads that never end."""
    guard = threading.Timer(THREADS_END_S, os._exit, (code,))
    guard.daemon = True
    guard.start()


@click.command()
@click.option("--chunks", is_flag=True, help="Let workers store results in chunks: no older version may run.")
def migrate(chunks: bool) -> None:
    """Create the store's schema, or migrate it to this version. Safe to repeat, and to run in several places at once.

    \b
        ARGOSY_STORE_URL=postgresql://argosy@db/argosy argosy migrate
    """
    from producers.wire.connection import Connection, masked
    from results_store.store import Store

    url = Connection().store_url
    Store(url).migrate(chunks=chunks)
    say(f"{masked(url)}: the schema is up to date")


@click.command()
@FLEET_FILE
def doctor(config: Path | None) -> None:
    """Check this machine and the running fleet; print a remedy for each problem. Exit code 1 if there is a problem.

    \b
    It looks at devices, settings, models, broker and store; at workers, queues that nobody
    reads, work that makes no progress, dead letters, and clocks.
    """
    from workers.fleet.doctor import examine

    findings = examine(config)
    width = max(len(finding.about) for finding in findings)
    for finding in findings:
        mark = click.style("ok     ", fg="green") if finding.ok else click.style("missing", fg="red")
        click.echo(f"{mark}  {visible(f'{finding.about:<{width}}  {finding.found}')}")
        if not finding.ok:
            say(f"         {'':<{width}}  → {finding.remedy}")
    if not all(finding.ok for finding in findings):
        sys.exit(1)


COMMANDS: list[click.Command] = [
    up,
    edge.edge_site,
    worker,
    migrate,
    models.models,
    tune.tune,
    compress.compress,
    train.train,
    doctor,
    *flight_recorder.COMMANDS,
]
