"""Extract named files from an archive. Nothing in it is run, and nothing is written outside the target folder."""

from __future__ import annotations

import bz2
import lzma
import shutil
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


def unpack(archive: Path, target: Path, *, folder: str = "", members: Iterable[str] = ()) -> None:
    """Extract the files under `folder` of a zip, wheel or tar into `target`; with `members`, only these files.

    Raises PullFailed if a member is missing, or would land outside `target`.
    """
    missing = set(members)
    chosen = frozenset(missing)
    prefix = f"{folder}/" if folder else ""
    with _files(archive) as files:
        for name, opened in files:
            inner = name.removeprefix(prefix)
            if not name.startswith(prefix) or (chosen and inner not in chosen):
                continue
            _write(opened(), _inside(target, inner, archive))
            missing.discard(inner)
    if missing:
        raise PullFailed(f"{archive.name}: has no {prefix}{min(missing)}; correct the source's `folder` and `members`")


def expand(compressed: Path, target: Path) -> None:
    """Decompress a ``.bz2`` or ``.xz`` file to `target` without this suffix. Raises PullFailed."""
    try:
        with bz2.open(compressed) if target.suffix == ".bz2" else lzma.open(compressed) as content:
            _write(content, target.with_suffix(""))
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise PullFailed(f"{target.name}: cannot be expanded: {error}") from error


def _inside(target: Path, name: str, archive: Path) -> Path:
    path = PurePosixPath(name)
    if path.is_absolute() or not path.parts or ".." in path.parts or "\\" in name or ":" in path.parts[0]:
        raise PullFailed(f"{archive.name}: member {name!r} would land outside its folder; do not trust this archive")
    return target / path


def _write(content: IO[bytes], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with content, path.open("wb") as file:
        shutil.copyfileobj(content, file)


@contextmanager
def _files(archive: Path) -> Iterator[_Files]:
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                yield (
                    (entry.filename, partial(opened.open, entry)) for entry in opened.infolist() if not entry.is_dir()
                )
        else:
            with tarfile.open(archive) as opened_tar:
                yield _tar_files(opened_tar)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise PullFailed(f"{archive.name}: not a readable archive: {error}") from error


def _tar_files(opened: tarfile.TarFile) -> _Files:
    for entry in opened:
        if entry.isfile():  # links and devices are left out
            yield entry.name, partial(_content, opened, entry)


def _content(opened: tarfile.TarFile, entry: tarfile.TarInfo) -> IO[bytes]:
    content = opened.extractfile(entry)
    assert content is not None, "a regular file has content"
    return content
