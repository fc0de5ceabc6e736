"""Extract named files from an archive. Nothing in it is run, and nothing is written outside the target folder."""

from __future__ import annotations

import bz2
import lzma
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, TypeAlias

from workers.models.sources.download import PullFailed

#: The regular files of an archive: (name, function that opens the file).
_Files: TypeAlias = Iterator[tuple[str, Callable[[], IO[bytes]]]]

#: The most members of an archive, and the most bytes of its content for each byte of the archive, and besides.
MOST_MEMBERS = 100_000
MOST_RATIO = 100
MOST_BESIDES = 100 * 2**20

_PORTION = 2**20


def unpack(archive: Path, target: Path, *, folder: str = "", members: Iterable[str] = ()) -> None:
    """Extract the files under `folder` of a zip, wheel or tar into `target`; with `members`, only these files.

    Raises PullFailed if the archive cannot be read or is a bomb, or if a member is missing, is there twice, or would
    land outside `target`.
    """
    missing = set(members)
    chosen = frozenset(missing)
    prefix = f"{folder}/" if folder else ""
    room, written = _Allowance(archive), set[Path]()
    with _files(archive) as files:
        for count, (name, opened) in enumerate(files):
            if count >= MOST_MEMBERS:
                raise PullFailed(f"{archive.name}: has over {MOST_MEMBERS:,} members")
            inner = name.removeprefix(prefix)
            if not name.startswith(prefix) or (chosen and inner not in chosen):
                continue
            path = _inside(target, inner, archive)
            if path in written:
                raise PullFailed(f"{archive.name}: has the member {name!r} twice; do not trust this archive")
            written.add(path)
            room.write(opened(), path)
            missing.discard(inner)
    if missing:
        raise PullFailed(f"{archive.name}: has no {prefix}{min(missing)}; correct the source's `folder` and `members`")


def expand(compressed: Path, target: Path) -> None:
    """Decompress a ``.bz2`` or ``.xz`` file to `target` without this suffix. Raises PullFailed."""
    with (
        _readable(target, "expanded"),
        bz2.open(compressed) if target.suffix == ".bz2" else lzma.open(compressed) as content,
    ):
        _Allowance(compressed).write(content, target.with_suffix(""))


def _inside(target: Path, name: str, archive: Path) -> Path:
    path = PurePosixPath(name)
    if path.is_absolute() or not path.parts or ".." in path.parts or "\\" in name or ":" in path.parts[0]:
        raise PullFailed(f"{archive.name}: member {name!r} would land outside its folder; do not trust this archive")
    return target / path


class _Allowance:
    """The bytes that may still be written of an archive's content."""

    def __init__(self, archive: Path) -> None:
        self._archive = archive
        self._left = MOST_RATIO * archive.stat().st_size + MOST_BESIDES

    def write(self, content: IO[bytes], path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with content, path.open("wb") as file:
            while portion := content.read(_PORTION):
                self._left -= len(portion)
                if self._left < 0:
                    problem = f"unpacks to over {MOST_RATIO} times its size"
                    raise PullFailed(f"{self._archive.name}: {problem}; do not trust this archive")
                file.write(portion)


@contextmanager
def _readable(archive: Path, done: str = "unpacked") -> Iterator[None]:
    try:
        yield
    except PullFailed:
        raise
    except Exception as error:  # the modules for archives raise errors of many kinds
        raise PullFailed(f"{archive.name}: cannot be {done}: {str(error) or type(error).__name__}") from error


@contextmanager
def _files(archive: Path) -> Iterator[_Files]:
    with _readable(archive):
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                yield ((entry.filename, partial(opened.open, entry)) for entry in opened.infolist() if _is_file(entry))
        else:
            with tarfile.open(archive) as opened_tar:
                yield _tar_files(opened_tar)


def _is_file(entry: zipfile.ZipInfo) -> bool:
    mode = entry.external_attr >> 16  # 0 from a system without modes
    return not entry.is_dir() and (stat.S_IFMT(mode) in (0, stat.S_IFREG))


def _tar_files(opened: tarfile.TarFile) -> _Files:
    for entry in opened:
        if entry.isfile():  # links and devices are left out
            yield entry.name, partial(_content, opened, entry)


def _content(opened: tarfile.TarFile, entry: tarfile.TarInfo) -> IO[bytes]:
    content = opened.extractfile(entry)
    assert content is not None, "a regular file has content"
    return content
