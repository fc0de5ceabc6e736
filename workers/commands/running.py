"""Runs a fleet on this machine until a stop signal."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

from producers.wire.command_line import log_to_stderr, say

if TYPE_CHECKING:
    from workers.fleet.local import LocalFleet


def run_fleet(local: LocalFleet) -> None:
    """Start a fleet, watch it, and stop it at a signal. Raises ConfigurationError if it does not start."""
    from rich.console import Console

    from producers.wire.errors import ConfigurationError

    if os.environ.get("ARGOSY_BROKER_URL"):
        problem = "ARGOSY_BROKER_URL: is set, so clients would not find this fleet, which has its own broker"
        raise ConfigurationError(f"{problem}; unset it, or run `argosy worker` for that broker")
    log_to_stderr()
    os.umask(0o077)  # store and logs hold inputs; the home folder may be open to others
    console = Console(stderr=True)
    _on_stop_signals(lambda number: signal.default_int_handler(number, None))  # it undoes the steps so far
    with console.status("starting: broker, store, workers (loading models) …"):
        local.start()
    _on_stop_signals(lambda _: local.request_stop())
    try:
        for line in local.whereabouts():
            say(line)
        local.watch()
    finally:
        with console.status("stopping: running envelopes are finished or go back to their queue …"):
            local.stop()
    say("stopped; unfinished work stays in the store and goes on with the next start")


def _on_stop_signals(stop: Callable[[int], object]) -> None:
    """Call `stop` at SIGINT and SIGTERM, and at the SIGHUP of a closed terminal unless it is ignored (nohup)."""

    def hung_up(number: int, _: object) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):  # writing to a terminal that is gone would fail in the middle of the stop
            os.dup2(nowhere, stream)
        stop(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: stop(number))
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, hung_up)
