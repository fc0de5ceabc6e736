"""The lock of a training's folder, so that no two trainings write to it."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from producers.wire.errors import ConfigurationError

_LOOK_EVERY_S = 0.5


class FolderInUse(ConfigurationError):
    """Another training writes to the folder."""


@contextmanager
def locked(out: Path, *, wait_s: float = 0.0) -> Iterator[None]:
    """Hold a folder, which is made if it is not there, against other trainings. The lock ends with the process.

    Raises FolderInUse after `wait_s`, or ConfigurationError for a folder that cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ConfigurationError(f"{out}: {error.strerror}; name another folder (train.out)") from error
    try:
        _lock(descriptor, out, time.monotonic() + wait_s)
        yield
    finally:
        os.close(descriptor)
        with suppress(OSError):  # it stays, unless the training was refused before it began
            out.rmdir()


def _lock(descriptor: int, out: Path, until: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= until:
                problem = "another training writes to this folder; wait for its end, or name another folder"
                raise FolderInUse(f"{out}: {problem}") from error
        else:
            return
        time.sleep(_LOOK_EVERY_S)
