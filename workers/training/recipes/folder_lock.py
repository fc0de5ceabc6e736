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
    descriptor = _locked(out, time.monotonic() + wait_s)
    try:
        yield
    finally:
        with suppress(OSError):  # it stays, unless the training was refused before it began
            out.rmdir()
        os.close(descriptor)


def _locked(out: Path, until: float) -> int:
    """Return a descriptor that holds the folder of this name. One that was removed meanwhile keeps nobody out."""
    while True:
        descriptor = _opened(out)
        try:
            _lock(descriptor, out, until)
            if _is_still(descriptor, out):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _opened(out: Path) -> int:
    while True:
        try:
            out.mkdir(parents=True, exist_ok=True)
            return os.open(out, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # removed between the two
            continue
        except OSError as error:
            raise ConfigurationError(f"{out}: {error.strerror}; name another folder (train.out)") from error


def _is_still(descriptor: int, out: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), out.stat())
    except FileNotFoundError:
        return False


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
