"""Looking at a fleet's processes from outside."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import psutil

from workers.fleet import LocalFleet

T = TypeVar("T")


def until(look: Callable[[], T], timeout_s: float = 60.0) -> T:
    """Return what `look` sees once it is true; for what happens in other processes and announces itself nowhere."""
    deadline = time.monotonic() + timeout_s
    while not (seen := look()):
        assert time.monotonic() < deadline, f"not seen within {timeout_s:g} s"
        time.sleep(0.01)
    return seen


def family(fleet: LocalFleet) -> list[psutil.Process]:
    """The fleet's processes that still run, and their children."""
    found = []
    for pid in fleet.pids:
        if psutil.pid_exists(pid):
            found += [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return found


def device_process(worker: int) -> psutil.Process:
    """The device process of a worker, once there is one: a worker whose device died is starting the next."""
    return until(lambda: psutil.Process(worker).children())[0]
