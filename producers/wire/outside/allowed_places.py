"""The places from which a worker may read: folders, and beginnings of URLs (`[worker] schedules`, `trainings`).

A schedule is a row that anybody with the store's password can write, and a worker's machine opens its source.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from urllib.parse import unquote

import msgspec

#: A beginning of URLs that ends a host or a folder. A query, a chain (``::``) or a step up (``..``) has no place in it.
_PREFIX = re.compile(r"(?!(?:file|local)://)[a-z][a-z0-9+.-]*://[^/?#\s:\\]+(?::\d+)?/(?:[^?#\s\\]*/)?")

#: The most characters of a path or a URL: a name that was quoted many times takes long to unquote.
_LONGEST = 4096

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class AllowedPlaces:
    """Folders, and beginnings of URLs, each of which ends with a slash. Without any, nothing may be read."""

    places: tuple[str, ...] = ()

    @property
    def resolved(self) -> tuple[str, ...]:
        """The places, and the folders to which those that are links lead."""
        return tuple(sorted({*self.places, *map(str, self._roots())}))

    def check(self, setting: str, *, urls: bool = True) -> None:
        """Raise ValueError, which names the setting, for a place that is neither a folder nor such a beginning.

        Without `urls`, folders alone are places.
        """
        for place in self.places:
            if not place.strip():
                raise ValueError(f"`{setting}` has an empty place; name a folder{' or a URL' * urls}, or leave it out")
            if "://" in place and not urls:
                raise ValueError(f"`{setting}` has {place!r}, which is no folder of this machine; name one")
            if "://" in place and not (_PREFIX.fullmatch(place) and _is_plain(place) and "::" not in place):
                forms = "s3://bucket/, https://host/folder/ with the slash at its end, or a folder without file://"
                raise ValueError(f"`{setting}` has {place!r}, under which no source is; write {forms}")

    def may_read(self, submission: str) -> bool:
        """Return whether all sources of a schedule's submission may be read here. Links are followed."""
        sources = sources_of(submission)
        return bool(sources) and all(map(self.allows, sources))

    def names(self, submission: str) -> bool:
        """Return whether all sources are within these places by their names; for places on another machine."""
        sources = sources_of(submission)
        return bool(sources) and all(map(self._names, sources))

    def allows(self, source: str) -> bool:
        """Return whether a path, a pattern or a URL may be read. Files that a pattern matches must be held, too."""
        if "://" in source:
            return self._has_url(source)
        return _is_plain(source) and Path(source).is_absolute() and self.holds(_fixed(source))

    def holds(self, path: Path) -> bool:
        """Return whether a local file is in one of the folders, once links are followed."""
        found = _resolved(path)
        return found is not None and any(found.is_relative_to(root) for root in self._roots())

    def _names(self, source: str) -> bool:
        if "://" in source:
            return self._has_url(source)
        return _is_plain(source) and any(_fixed(source).is_relative_to(folder) for folder in self._folders())

    def _has_url(self, url: str) -> bool:
        beginnings = tuple(place for place in self.places if "://" in place)
        return _is_plain(url) and "::" not in url and url.startswith(beginnings)

    def _folders(self) -> Iterator[str]:
        return (place for place in self.places if "://" not in place)

    def _roots(self) -> Iterator[Path]:
        return (root for folder in self._folders() if (root := _resolved(Path(folder))) is not None)


def _resolved(path: Path) -> Path | None:
    """Return a path with links followed, or None for a circle of links and a name with a NUL."""
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):
        return None


def _fixed(pattern: str) -> Path:
    """Return the folder below which a pattern's files are; a path without a pattern as it is."""
    return Path(*takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts))


def _is_plain(name: str) -> bool:
    """Return whether a name goes nowhere up, as it is or unquoted, and has no signs that some readers leave out."""
    if len(name) > _LONGEST:
        return False
    seen = {name}
    while (name := unquote(name)) not in seen:
        seen.add(name)
    return not any(_CONTROL.search(one) or ".." in re.split(r"[/\\]", one) for one in seen)


def is_below(path: str, folder: str) -> bool:
    """Return whether a path of a remote file system is below a folder."""
    return _is_plain(path) and "::" not in path and path.startswith(folder.rstrip("/") + "/")


class _Rows(msgspec.Struct):
    where: tuple[str, ...]


class _Submission(msgspec.Struct):
    rows: _Rows


def unread(submission: str, host: str | None, readers: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Return the remedy if none of these nodes may read a schedule's sources, or nothing.

    A node is its machine and its places. `host` is the machine that has the sources; None: all have them.
    """
    if any(AllowedPlaces(tuple(places)).names(submission) for at, places in readers if host in (None, at)):
        return ""
    on = f" on {host}" if host else ""
    return f'start a worker{on} whose fleet.toml has `[worker] schedules = ["the folder, or the beginning of the URL"]`'


def sources_of(submission: str) -> tuple[str, ...]:
    """Return the sources of a schedule's submission; none for a form that is not known here."""
    try:
        return msgspec.json.decode(submission, type=_Submission).rows.where
    except (msgspec.DecodeError, UnicodeError):
        return ()
