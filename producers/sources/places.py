"""The places of rows: local files, files behind fsspec, folders, patterns, and standard input."""

from __future__ import annotations

import errno
import glob
import io
import os
import re
import shutil
import sys
import tempfile
import weakref
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from producers.sources.detection import suffix_of, unpacked
from producers.wire.errors import InvalidInput
from producers.wire.outside.allowed_places import AllowedPlaces, is_below

if TYPE_CHECKING:
    from fsspec.spec import AbstractFileSystem

STDIN = "-"

#: Read buffer for remote files, in bytes.
BUFFER_BYTES = 1024 * 1024

#: The schemes whose URLs have queries. In a key of an object store, a question mark is a character.
_WITH_QUERIES = ("http", "https", "webhdfs")

#: The beginning of a URL in a chain of fsspec's, such as ``zip://a.csv::https://example.org/a.zip``.
_LINK = re.compile(r"::(?=[A-Za-z][\w+.-]*://)")

#: A user and a password that may hold signs which end it for readers of URLs, but not a host and its port.
_PASSWORD = re.compile(r"[^/@?#:\[]*:(?!\d*(?:[/?#]|$))[^@]*@")

_URL = re.compile(r"[A-Za-z][\w+.-]*://[^\s'\"<>]+")


class Place(Protocol):
    """A file. `name` is its name in messages and keys; `suffix` gives its format, without that of a compression."""

    @property
    def name(self) -> str: ...
    @property
    def suffix(self) -> str: ...

    def open(self) -> BinaryIO:
        """Open the file for reading, unpacked. Raises OSError."""
        ...

    def size(self) -> int:
        """Return the stored size in bytes. Raises OSError."""
        ...

    def stamp(self) -> str | None:
        """Return a string that changes with the file, or None if unknown. Raises OSError."""
        ...

    def beside(self, path: str) -> Place:
        """Return the file at `path`, relative to this file."""
        ...


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file on this machine."""

    path: Path
    name: str

    @property
    def suffix(self) -> str:
        return suffix_of(self.path.name)

    def open(self) -> BinaryIO:
        return unpacked(self.path.open("rb"), self.path.name)

    def size(self) -> int:
        return self.path.stat().st_size

    def stamp(self) -> str:
        try:
            state = self.path.stat()
        except OSError as error:  # a link to nowhere: its row is bad
            return f"{self.path.absolute()} {error.errno}"
        return f"{self.path.absolute()} {state.st_size} {state.st_mtime_ns}"

    def beside(self, path: str) -> Place:
        if "://" in path:
            return _remote_file(path)
        return LocalFile(self.path.parent / path, path)


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file behind fsspec: on an object store, on a web server, in memory."""

    fs: AbstractFileSystem
    path: str
    name: str

    @property
    def suffix(self) -> str:
        return suffix_of(without_query(self.path))

    def open(self) -> BinaryIO:
        with _as_os_errors(self.name):
            opened = _RemoteBytes(self.fs.open(self.path, "rb"), self.name)
        return unpacked(io.BufferedReader(opened, BUFFER_BYTES), without_query(self.path))

    def size(self) -> int:
        with _as_os_errors(self.name):
            return int(self.fs.size(self.path) or 0)

    def stamp(self) -> str:
        with _as_os_errors(self.name):
            return f"{self.name} {self.size()} {self.fs.checksum(self.path)}"

    def beside(self, path: str) -> Place:
        if "://" in path:
            return _remote_file(path)
        folder = self.path.rpartition("/")[0]
        return RemoteFile(self.fs, f"{folder}/{path}", path)


@contextmanager
def _as_os_errors(name: str) -> Iterator[None]:
    """Turn errors of a file system, which has classes of its own, into OSErrors without the secrets of its URLs."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - as above
        raise OSError(errno.EIO, told(error), name) from None


class _RemoteBytes(io.RawIOBase):
    """A file of fsspec, whose errors are OSErrors."""

    def __init__(self, file: Any, name: str) -> None:
        self._file, self._name = file, name

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def readinto(self, buffer: Any) -> int:
        with _as_os_errors(self._name):
            return int(self._file.readinto(buffer))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with _as_os_errors(self._name):
            return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        with _as_os_errors(self._name):
            return int(self._file.tell())

    def close(self) -> None:
        self._file.close()
        super().close()


@dataclass(slots=True, weakref_slot=True, eq=False)
class Pipe:
    """Standard input or a pipe, which can be read once; if `seekable`, any number of times, from a temporary copy."""

    suffix: str
    name: str = STDIN
    seekable: bool = False
    _copy: int | None = field(default=None, repr=False)

    def open(self) -> BinaryIO:
        if not self.seekable:
            return unpacked(self._opened(), "")
        if self._copy is None:
            self._copy = self._copied()
        os.lseek(self._copy, 0, os.SEEK_SET)
        return unpacked(open(self._copy, "rb", closefd=False), "")

    def _opened(self) -> BinaryIO:
        return sys.stdin.buffer if self.name == STDIN else Path(self.name).open("rb")

    def _copied(self) -> int:
        with tempfile.TemporaryFile(prefix="argosy-") as copy:
            with self._opened() if self.name != STDIN else nullcontext(sys.stdin.buffer) as opened:
                shutil.copyfileobj(opened, copy)
            copy.flush()
            descriptor = os.dup(copy.fileno())
        weakref.finalize(self, os.close, descriptor)
        return descriptor

    def size(self) -> int:
        return 0

    def stamp(self) -> str | None:
        return None

    def beside(self, path: str) -> Place:
        return _remote_file(path) if "://" in path else LocalFile(Path(path), path)


def without_query(url: str) -> str:
    """Return a URL without its password, query and fragment, which may hold a signature; a path as it is."""
    return "::".join(map(_without_secrets, _LINK.split(url)))


def _without_secrets(url: str) -> str:
    scheme, is_url, rest = url.partition("://")
    if not is_url:
        return url
    scheme = scheme.lower()
    password = _PASSWORD.match(rest)
    if password:
        rest = rest[password.end() :]
    if scheme in _WITH_QUERIES:
        rest = re.split("[?#]", rest, maxsplit=1)[0]
    host, slash, path = rest.partition("/")
    if password or scheme in _WITH_QUERIES:  # else it may be a container
        host = host.rpartition("@")[2]
    return f"{scheme}://{host}{slash}{path}"


def told(error: Exception) -> str:
    """Return an error's message without the secrets of its URLs."""
    return without_secrets(getattr(error, "strerror", None) or str(error))


def without_secrets(message: str) -> str:
    """Return a message without the secrets of its URLs."""
    return _URL.sub(lambda found: without_query(found[0]), message)


def readable(name: str | Path) -> str:
    """Return a file name as text, whatever its bytes."""
    return os.fsencode(name).decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of files, local or behind fsspec."""

    path: str
    name: str
    fs: AbstractFileSystem | None = None

    def files(self, suffixes: Collection[str], left_out: Counter[str]) -> Iterator[Place]:
        """Yield the files with these suffixes in the folder and below, sorted. Names are paths within the folder.

        Hidden files and folders are passed over; other files are counted in `left_out` by their suffix. A local folder
        is listed level by level; a remote file system lists all files at once.
        """
        folder = Path(self.path)
        for file in _below(folder, folder, left_out) if self.fs is None else self._elsewhere(self.fs):
            if file.suffix in suffixes:
                yield file
            else:
                left_out[file.suffix or "no suffix"] += 1

    def _elsewhere(self, fs: AbstractFileSystem) -> Iterator[Place]:
        try:
            paths = sorted(fs.find(self.path))
        except Exception as error:  # each file system has errors of its own
            problem = f"cannot be listed: {told(error)}"
            raise InvalidInput(self.name, problem, "check the URL and the credentials") from error
        for path in paths:
            name = path.removeprefix(self.path).lstrip("/")
            if not any(map(_is_hidden, name.split("/"))):
                yield RemoteFile(fs, path, name)


def _below(folder: Path, root: Path, left_out: Counter[str]) -> Iterator[Place]:
    """Yield everything but folders. Links to folders are left out, since they may lead in circles."""
    try:
        with os.scandir(folder) as found:
            entries = sorted((entry.name, entry.is_dir(follow_symlinks=False), entry.is_symlink()) for entry in found)
    except OSError as error:
        raise InvalidInput(readable(folder), f"cannot be listed: {told(error)}", "check its permissions") from error
    for name, is_folder, is_link in entries:
        if _is_hidden(name):
            continue
        if is_folder:
            yield from _below(folder / name, root, left_out)
        elif is_link and (folder / name).is_dir():
            left_out["link to a folder"] += 1
        else:
            yield LocalFile(folder / name, readable((folder / name).relative_to(root)))


def _is_hidden(name: str) -> bool:
    """Return whether a name is hidden, or the folder in which a Mac's archives keep the files' attributes."""
    return name.startswith(".") or name == "__MACOSX"


def path_of(place: Place | Folder) -> Path | None:
    """Return the path of a file, a folder or a pipe of this machine; None for one that is elsewhere."""
    if isinstance(place, LocalFile):
        return place.path
    if isinstance(place, Pipe):
        return Path(place.name)
    return Path(place.path) if isinstance(place, Folder) and place.fs is None else None


def may_be_beside(place: Place, name: str, allowed: AllowedPlaces) -> bool:
    """Return whether a file may be read that a row names. A local one must be held, too, once its path is known."""
    if "://" in name:
        return allowed.allows(name)
    return not isinstance(place, RemoteFile) or is_below(f"/{name}", "/")


def outside(allowed: AllowedPlaces, where: str) -> InvalidInput:
    """Return the refusal of a source that scheduled submissions may not read here."""
    remedy = f"this worker reads: {', '.join(allowed.places) or 'nothing'} (worker.schedules in its fleet.toml)"
    return InvalidInput(without_query(where), "is not a source of schedules that this worker may read", remedy)


def find(where: str, left_out: Counter[str]) -> list[Place | Folder]:
    """Return the files of a path, a pattern or a URL, in the order of their names.

    Folders, pipes and devices that a pattern matches are counted in `left_out`. Raises InvalidInput.
    """
    if "://" in where:
        return _found_elsewhere(where)
    if Path(where).is_dir():
        return [Folder(where, readable(where))]
    if Path(where).exists():
        if not Path(where).is_file():
            return [Pipe(suffix_of(where), where)]
        return [LocalFile(Path(where), readable(where))]
    if not glob.has_magic(where):
        raise InvalidInput(where, "does not exist", "check the path")
    places = list(_matches(where, left_out))
    if not places:
        raise InvalidInput(where, "matches no file", "check the pattern, and quote it")
    return places


def would_match(where: str, name: str) -> bool:
    """Return whether a path, a pattern or a URL finds a file, or the file at a URL, once it is there."""
    if "://" in name:
        return "://" in where and _would_match_elsewhere(where, name)
    folder, last = os.path.split(where.removeprefix("file://"))
    if last == "**":
        folder, last = str(Path(folder, last)), "*"
    path = Path(name)
    is_hidden = path.name.startswith(".") and not last.startswith(".")
    if is_hidden or not fnmatchcase(path.name, last) or not path.parent.is_dir():
        return False
    whole = Path(glob.escape(str(Path.cwd())), folder)  # else ** would leave the current folder out
    found = map(Path, glob.glob(str(whole), recursive=True))  # noqa: PTH207
    return any(one.is_dir() and one.samefile(path.parent) for one in found)


def _would_match_elsewhere(where: str, name: str) -> bool:
    _, pattern, scheme = filesystem(where)
    if scheme in ("http", "https") or name.partition("://")[0] != scheme:
        return False
    from fsspec.core import strip_protocol
    from fsspec.utils import glob_translate

    return re.fullmatch(glob_translate(pattern), strip_protocol(name)) is not None


def _matches(pattern: str, left_out: Counter[str]) -> Iterator[Place | Folder]:
    for name in sorted(glob.glob(pattern, recursive=True)):  # noqa: PTH207
        path = Path(name)
        if path.is_dir():
            if "**" not in pattern:  # which matches the folder's files, too
                left_out["folder"] += 1
        elif path.exists() and not path.is_file():
            left_out["no file"] += 1
        else:
            yield LocalFile(path, readable(name))


def _found_elsewhere(url: str) -> list[Place | Folder]:
    fs, path, scheme = filesystem(url)
    name = without_query(url)
    try:
        if fs.isdir(path):
            return [Folder(path, name, fs)]
        pattern = glob.has_magic(path) and scheme not in ("http", "https")  # whose question mark begins a query
        pattern = pattern and not fs.exists(path)
        paths = sorted(fs.glob(path)) if pattern else [path] if fs.exists(path) else []
    except Exception as error:  # each file system has errors of its own
        raise InvalidInput(name, f"cannot be listed: {told(error)}", "check the URL and the credentials") from error
    if not paths:
        raise InvalidInput(name, "does not exist", "check the URL; a pattern must be quoted")
    if not pattern:
        return [RemoteFile(fs, path, name)]
    return [RemoteFile(fs, one, f"{scheme}://{one.lstrip('/')}") for one in paths]


def _remote_file(url: str) -> RemoteFile:
    fs, path, _ = filesystem(url)
    return RemoteFile(fs, path, without_query(url))


def filesystem(url: str) -> tuple[AbstractFileSystem, str, str]:
    """Return the file system of a URL, the path in it, and the scheme. Raises InvalidInput."""
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise InvalidInput(without_query(url), "needs fsspec", "pip install 'argosy[fsspec]'") from error
    scheme = url.partition("://")[0]
    try:
        fs, path = url_to_fs(url)
    except Exception as error:  # a missing package, an unknown scheme, or a server that cannot be reached
        raise InvalidInput(
            without_query(url), f"cannot be opened: {told(error)}", "check the scheme, and install its package"
        ) from error
    return fs, path, scheme
