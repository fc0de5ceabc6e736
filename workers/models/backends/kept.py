"""A cache of the files that backends make of networks; each model keeps the few networks used last.

Other weights, code or libraries make another network, with other files of up to the model's size. A process that makes
or reads files holds a shared lock on their folder, and files are removed under an exclusive lock: so no file is removed
while its companion is being made or read. Files already read may be removed: processes that have opened or mapped them
keep them.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

#: The number of networks that a model keeps: before and after a change of the model, for two versions of the code.
MOST = 4

#: The prefix of a file's name: the model's name, and a digest of everything that the network is made from.
_NAME = re.compile(r"(.+)-[0-9a-f]{16}(?=[-.])")

_MAKING = "making-"


@contextmanager
def in_use(cache: Path) -> Iterator[None]:
    """Hold the files with the prefix `cache` while they are made or read; then prune each model to `MOST` networks."""
    cache.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(cache.parent, os.O_RDONLY)
    try:
        shared = _locked(folder, fcntl.LOCK_SH)
        yield
        with suppress(OSError):  # the files belong to another user
            _mark(cache)
        # if other processes hold the lock, the last of them prunes
        if shared and _locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
            with suppress(OSError):
                _prune(cache.parent)
    finally:
        os.close(folder)  # releases the lock


@contextmanager
def made_beside(file: Path) -> Iterator[Path]:
    """Yield a path in a temporary folder, to make a file that is then moved into place. A prune removes leftovers."""
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=_MAKING) as folder:
        yield Path(folder) / file.name


def _locked(folder: int, how: int) -> bool:
    """Return whether the lock was taken; some file systems have no locks."""
    try:
        fcntl.flock(folder, how)
    except OSError:
        return False
    return True


def _mark(cache: Path) -> None:
    """Mark a network as used, by the times of its files."""
    for file in cache.parent.iterdir():
        if file.name.startswith((f"{cache.name}.", f"{cache.name}-")):
            os.utime(file)


def _prune(folder: Path) -> None:
    models: dict[str, dict[str, list[Path]]] = {}
    for path in folder.iterdir():
        if path.name.startswith(_MAKING):
            shutil.rmtree(path, ignore_errors=True)  # no process makes a file now
        elif found := _NAME.match(path.name):
            models.setdefault(found[1], {}).setdefault(found[0], []).append(path)
    for networks in models.values():
        for files in sorted(networks.values(), key=_used_at)[:-MOST]:
            _remove(files)


def _used_at(files: Sequence[Path]) -> float:
    return max(file.stat().st_mtime for file in files)


def _remove(files: Sequence[Path]) -> None:
    # the graph first, since it marks the network as complete: a killed prune leaves no graph without its weights
    for file in sorted(files, key=lambda file: file.suffix == ".bin"):
        file.unlink()
