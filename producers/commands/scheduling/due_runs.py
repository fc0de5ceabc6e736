"""The process that submits scheduled runs: ``python -m producers.commands.scheduling.due_runs``.

A worker node starts it when a run is due on its machine. It ends once none is left, and with the worker, whose end it
hears of by the end of its standard input. A run that it leaves unfinished is continued by another process.
"""

from __future__ import annotations

import logging
import os
import platform
import secrets
import threading
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime

from producers.client.client import Client
from producers.commands.scheduling.schedule_times import planned
from producers.commands.scheduling.scheduled_run import RunLost, submit_run
from producers.wire.command_line import log_to_stderr, one_line_errors
from producers.wire.errors import KeyConflict
from results_store.sql.waiting.schedules import TakenRun

log = logging.getLogger(__name__)

#: Runs that are submitted at the same time, and seconds between looks for more.
AT_ONCE, LOOK_S = 4, 1.0

#: The attempts of a run, and the seconds before the second, doubled for each further one.
MOST_ATTEMPTS, FIRST_WAIT_S = 10, 5.0


def main() -> None:
    """Submit the runs that are due here, and return when none is left."""
    threading.Thread(target=_end_with_parent, name="argosy parent", daemon=True).start()
    log_to_stderr()
    with one_line_errors(), Client() as client:
        submit_due(client)


def submit_due(client: Client, host: str | None = None) -> None:
    """Submit the runs that are due on a machine, some at a time, until none is due."""
    here = host or platform.node()
    with ThreadPoolExecutor(AT_ONCE, "argosy schedule") as threads:
        active: set[Future[None]] = set()
        while True:
            run = _taken(client, here) if len(active) < AT_ONCE else None
            if run is not None:
                active.add(threads.submit(submit_taken, client, run))
                continue
            if not active:
                return
            done, active = wait(active, LOOK_S, FIRST_COMPLETED)
            for one in done:
                one.result()


def _taken(client: Client, host: str) -> TakenRun | None:
    runner = f"{host}#{os.getpid()}-{secrets.token_hex(4)}"  # of each run: a process may lose one and take it again
    return client.ask(lambda store: store.schedules.take(host, runner, planned))


def submit_taken(client: Client, run: TakenRun) -> None:
    """Submit a run and note what came of it. Raises StoreError if that cannot be noted."""
    about = f"schedule {run.schedule.name}, run of {datetime.fromtimestamp(run.planned_at, UTC).isoformat()}"
    try:
        job = submit_run(client, run)
    except RunLost:
        log.warning("%s: another runner has it, or the schedule was removed", about)
    except Exception as error:  # noqa: BLE001 - whatever it is, the schedule's list shows it
        message, attempts = f"{type(error).__name__}: {error}", run.attempts + 1
        if isinstance(error, KeyConflict) or attempts >= MOST_ATTEMPTS:
            log.error("%s: given up: %s", about, message)  # noqa: TRY400 - a sentence with its remedy
            client.ask(lambda store: store.schedules.end(run, "failed", error=message))
        else:
            log.warning("%s: %s; it is tried again", about, message)
            wait_s = FIRST_WAIT_S * 2**run.attempts
            client.ask(lambda store: store.schedules.postpone(run, wait_s, message))
    else:
        client.ask(lambda store: store.schedules.end(run, "done", job=job))
        log.info("%s: job %s", about, job)


def _end_with_parent() -> None:
    while os.read(0, 1):  # not by `sys.stdin`, whose lock a thread that waits would keep to the end
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
