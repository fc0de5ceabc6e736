"""What backends made of networks, in the cache folder: of each model the few that were used last stay.

Other weights, code or libraries make another network, and with it some other files of up to a model's size. Whoever makes or reads files
holds a lock on their folder together with all others who do; files are removed by who has it alone. So none goes between
two that belong together. What was read already may go: it stays there for who has it open or mapped.
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

#: How many networks of a model stay: its versions before and after a change, of two versions of the code.
MOST = 4

#: What a file's name begins with: its model's name, and a digest of all that its network was made from.
_NAME = re.compile(r"(.+)-[0-9a-f]{16}(?=[-.])")

_MAKING = "making-"


@contextmanager
def in_use(cache: Path) -> Iterator[None]:
    """Keep the files whose names begin as `cache` does while they are made or read; then let all go but `MOST` of each model."""
    cache.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(cache.parent, os.O_RDONLY)
    try:
        shared = _locked(folder, fcntl.LOCK_SH)
        yield
        with suppress(OSError):  # it is another user's
            _mark(cache)
        # where others are at it, the last of them removes what is to go
        if shared and _locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
            with suppress(OSError):
                _prune(cache.parent)
    finally:
        os.close(folder)  # and the lock is given back


@contextmanager
def made_beside(file: Path) -> Iterator[Path]:
    """Give a folder to make a file in that is then moved to its place. One that a killed process left goes with the next prune."""
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=_MAKING) as folder:
        yield Path(folder) / file.name


def _locked(folder: int, how: int) -> bool:
    """Return whether a lock was had: not every file system has any."""
    try:
        fcntl.flock(folder, how)
    except OSError:
        return False
    return True


def _mark(cache: Path) -> None:
    """Note that a network is used, in its files' times."""
    for file in cache.parent.iterdir():
        if file.name.startswith((f"{cache.name}.", f"{cache.name}-")):
            os.utime(file)


def _prune(folder: Path) -> None:
    models: dict[str, dict[str, list[Path]]] = {}
    for path in folder.iterdir():
        if path.name.startswith(_MAKING):
            shutil.rmtree(path, ignore_errors=True)  # nobody makes anything now
        elif found := _NAME.match(path.name):
            models.setdefault(found[1], {}).setdefault(found[0], []).append(path)
    for networks in models.values():
        for files in sorted(networks.values(), key=_used_at)[:-MOST]:
            _remove(files)


def _used_at(files: Sequence[Path]) -> float:
    return max(file.stat().st_mtime for file in files)


def _remove(files: Sequence[Path]) -> None:
    # the graph first, which says that the whole is there: if this is killed, no graph stays without its weights
    for file in sorted(files, key=lambda file: file.suffix == ".bin"):
        file.unlink()
