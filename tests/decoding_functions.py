"""Functions that decoding processes run in tests."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from producers.wire.errors import InputTooLarge


def length(data: bytes) -> int:
    return len(data)


def spins(data: bytes) -> None:
    """Use the processor for good, in native code."""
    while True:
        sum(range(10**8))


def sleeps(data: bytes) -> None:
    time.sleep(600)


def dies(data: bytes, code: int) -> None:
    os.kill(os.getpid(), code)


def dies_at_first(data: bytes, folder: str) -> int:
    """Die in the first process, and return the second one's id."""
    try:
        (Path(folder) / "died").touch(exist_ok=False)
    except FileExistsError:
        return os.getpid()
    os.kill(os.getpid(), 9)
    return 0


def meets(data: bytes, folder: str, count: int) -> int:
    """Return this process's id once this function runs in so many processes."""
    (Path(folder) / str(os.getpid())).touch()
    while len([*Path(folder).iterdir()]) < count:
        time.sleep(0.001)
    return os.getpid()


def fills(data: bytes, size: int) -> int:
    return len(np.ones(size, np.uint8))


def surroundings(data: bytes) -> Any:
    return dict(os.environ), [name for name in sys.modules if "." not in name], os.nice(0)


def values(data: bytes) -> Any:
    return [np.frombuffer(data, np.uint8), (np.zeros((0, 3), np.float32), "text", 1.5, None)]


def refuses(data: bytes) -> None:
    raise InputTooLarge("input", "is refused", "do not send it")


def fails(data: bytes) -> None:
    raise KeyError("no such thing")
