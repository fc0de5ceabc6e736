"""A fleet's processes: started from a folder, and looked at from outside."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from workers import settings
from workers.device.fork_server import process_name
from workers.fleet.local import LocalFleet

T = TypeVar("T")


@contextmanager
def fleet_in(folder: Path, text: str, *, workers_per_device: int = 1) -> Iterator[LocalFleet]:
    """A fleet whose fleet.toml and home lie in the folder; who looks into the environment finds both, until the
    block ends.
    """
    file = folder / "fleet.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ARGOSY_FLEET", str(file))
        fleet = LocalFleet(settings.load(), folder / "home", flower=False, workers_per_device=workers_per_device)
        with fleet:
            patch.setenv("ARGOSY_BROKER_URL", fleet.broker_url)
            patch.setenv("ARGOSY_STORE_URL", fleet.store_url)
            yield fleet


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
    return until(lambda: [one for one in psutil.process_iter() if _is_device_of(one, worker)])[0]


def _is_device_of(process: psutil.Process, worker: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.name() == process_name(worker) and process.status() != psutil.STATUS_ZOMBIE
    return False


def children(worker: int, module: str) -> list[psutil.Process]:
    """The processes of a worker that run a module."""
    found = []
    for child in psutil.Process(worker).children():
        with suppress(psutil.NoSuchProcess):
            found += [child] if any(module in word for word in child.cmdline()) else []
    return found
