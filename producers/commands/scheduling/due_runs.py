"""The process that submits scheduled runs: ``python -m producers.commands.scheduling.due_runs``.

A worker node starts it when a run is due on its machine. It ends once none is left, and with the worker, whose end it
hears of by the end of its standard input. A run that it leaves unfinished is continued by another process. Its
arguments are the places that it may read (`[worker] schedules`).
"""

from __future__ import annotations

import logging
import os
import platform
import secrets
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime

from producers.client.client import Client
from producers.commands.scheduling.schedule_times import planned
from producers.commands.scheduling.scheduled_run import RunLost, described, submit_run
from producers.sources.places import without_secrets
from producers.wire.command_line import log_to_stderr, one_line_errors
from producers.wire.errors import KeyConflict
from producers.wire.outside.allowed_places import AllowedPlaces
from results_store.sql.waiting.schedules import Schedule, TakenRun

log = logging.getLogger(__name__)

#: Runs that are submitted at the same time, and seconds between looks for more.
AT_ONCE, LOOK_S = 4, 1.0

#: For a run whose process is ended by the kernel.
REMEDY = "its rows may need more memory than the machine has: split the source, and see the machine's log"

#: The attempts of a run, and the seconds before the second, doubled for each further one.
MOST_ATTEMPTS, FIRST_WAIT_S = 10, 5.0


def main() -> None:
    """Submit the runs that are due here, and return when none is left; exit with `EX_TEMPFAIL` if some had to be."""
    threading.Thread(target=_end_with_parent, name="argosy parent", daemon=True).start()
    with one_line_errors():
        log_to_stderr()
        with Client() as client:
            left = submit_due(client, AllowedPlaces(tuple(sys.argv[1:])))
    if left:
        sys.exit(os.EX_TEMPFAIL)  # the worker starts it again after a pause, not at its next look


def submit_due(client: Client, allowed: AllowedPlaces) -> set[str]:
    """Submit the runs that are due on a machine, some at a time, until none is due.

    Returns the names of schedules that may be read here but cannot be understood, which are left to other nodes.
    """
    left: set[str] = set()
    with ThreadPoolExecutor(AT_ONCE, "argosy schedule") as threads:
        active: set[Future[None]] = set()
        while True:
            run = _taken(client, platform.node(), allowed, left, alone=not active) if len(active) < AT_ONCE else None
            if run is not None and run.needs_solitude:
                submit_taken(client, run, allowed)
                continue
            if run is not None:
                active.add(threads.submit(submit_taken, client, run, allowed))
                continue
            if not active:
                return left
            done, active = wait(active, LOOK_S, FIRST_COMPLETED)
            for one in done:
                one.result()


def _taken(client: Client, host: str, allowed: AllowedPlaces, left: set[str], *, alone: bool) -> TakenRun | None:
    def may(schedule: Schedule) -> bool:
        return allowed.may_read(schedule.submission) and _understood(schedule, left)

    runner = f"{host}#{os.getpid()}-{secrets.token_hex(4)}"  # of each run: a process may lose one and take it again
    return client.ask(lambda store: store.schedules.take(host, runner, planned, may=may, alone=alone))


def _understood(schedule: Schedule, left: set[str]) -> bool:
    """Return whether this version on this machine can plan and describe a schedule; `left` gets the others."""
    try:
        described(schedule).timing.next_after(time.time())
    except Exception as error:  # noqa: BLE001 - a time zone that is not here, a form of a newer version
        if schedule.name not in left:
            log.error("schedule %s is left to other nodes: %s", schedule.name, error)  # noqa: TRY400
        left.add(schedule.name)
        return False
    return True


def submit_taken(client: Client, run: TakenRun, allowed: AllowedPlaces) -> None:
    """Submit a run and note its end. Raises StoreError if that cannot be noted."""
    about = f"schedule {run.schedule.name}, run of {datetime.fromtimestamp(run.planned_at, UTC).isoformat()}"
    if run.attempts >= MOST_ATTEMPTS:
        message = f"its process died: {run.attempts} attempts were begun, and the last one did not end; " + REMEDY
        log.error("%s: given up: %s", about, message)
        client.ask(lambda store: store.schedules.end(run, "failed", error=message))
        return
    try:
        job = submit_run(client, run, allowed)
    except RunLost:
        log.warning("%s: another runner has it, or the schedule was removed", about)
    except Exception as error:  # noqa: BLE001 - whatever it is, the schedule's list shows it
        message, attempts = f"{type(error).__name__}: {without_secrets(str(error))}", run.attempts + 1
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
