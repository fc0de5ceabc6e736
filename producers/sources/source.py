"""Files as a sequence of rows: found, read by format, their columns chosen, their media loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from producers.sources.columns import Chooser
from producers.sources.file_reading import LINE_BYTES, Meter, Reader, Reading
from producers.sources.formats import FORMATS, SUFFIXES
from producers.sources.media import MEDIA_SUFFIXES, PATH, Media, Record, Row
from producers.sources.places import BROKEN, STDIN, Folder, LocalFile, Place, StandardInput, find
from producers.sources.unique import Unique
from producers.wire.catalogue import Limits
from producers.wire.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Source:
    """A source of items and the way to read it.

    `where` are paths, patterns, URLs that fsspec knows, or ``-`` for standard input; several are read in order.
    `format` is a name in `FORMATS`; by default each file's name decides. A given `key_column` must hold each key once.
    A line of over `line_bytes` is a bad row.

    Image and audio files are read here and sent as bytes, because a worker on another machine cannot read them.
    `send_paths` sends their paths instead, for a shared folder that the workers can read.
    """

    where: str | Path | Sequence[str | Path]
    modality: str
    limits: Limits = field(default_factory=Limits)
    input_column: str | Sequence[str] | None = None
    key_column: str | None = None
    send_paths: bool = False
    format: str | None = None
    reread: bool = False
    line_bytes: int = LINE_BYTES
    meters: list[Meter] = field(default_factory=list, repr=False, compare=False)
    _stdin: list[StandardInput] = field(default_factory=list, repr=False, compare=False)

    # --- items and records ---

    def rows(self) -> Iterator[Row]:
        """Yield the items and the unreadable rows. Raises InvalidInput if a whole file is unusable."""
        item = Media(self.modality, self.limits, self.send_paths).item
        for record in self.records():
            yield record.error or item(record)

    def item(self, record: Record) -> Row:
        """Return a record's item, or its error."""
        return record.error or Media(self.modality, self.limits, self.send_paths).item(record)

    def records(self) -> Iterator[Record]:
        """Yield every row with its columns, in the same order as `rows`, without reading images and clips."""
        places = self._places()
        self.meters[:] = [Meter() for _ in places]
        unique = Unique()
        empty = True
        try:
            for place, meter in zip(places, self.meters, strict=True):
                for record in self._records(place, meter, many=len(places) > 1):
                    empty = False
                    yield self._once(record, unique)
        finally:
            unique.close()
        if empty:
            raise InvalidInput(self.name, "has nothing in it to submit", "check that it is the right file")

    @property
    def name(self) -> str:
        """The source's name for people."""
        names = self._names()
        return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"

    @property
    def share_read(self) -> float | None:
        """The share of the source that was read, 0 to 1, by files and by bytes of the current file; None if unknown."""
        begun = [meter for meter in self.meters if meter.done]
        if not begun or not begun[-1].total:
            return None
        now = begun[-1]
        return (len(begun) - 1 + min(1.0, now.done / now.total)) / len(self.meters)

    def fingerprint(self) -> str | None:
        """Return a digest of each file's name, size and time and of the reading options; None for standard input.

        Raises InvalidInput if there is no file, as `records` does.
        """
        how = (self.modality, self.input_column, self.key_column, self.send_paths, self.format)
        digest = hashlib.sha256(repr(how).encode())
        for place in self._places():
            for file in self._media_in(place) if isinstance(place, Folder) else [place]:
                stamp = file.stamp()
                if stamp is None:
                    return None
                digest.update(stamp.encode("utf-8", "surrogateescape") + b"\n")
        return digest.hexdigest()

    def reads(self, path: Path) -> bool:
        """Return whether a local file belongs to this source. Raises InvalidInput, as `records`, without a file."""
        files = [place.path for place in self._places() if isinstance(place, LocalFile)]
        return path.exists() and any(path.samefile(file) for file in files)

    def arrow_schema(self) -> Any:
        """Return the Arrow schema of the files if all are Parquet or Arrow, else None. Raises InvalidInput."""
        places = [place for place in self._places() if not isinstance(place, Folder)]
        formats = {self.format or SUFFIXES.get(place.suffix, "text") for place in places}
        if not places or len(places) < len(self._places()) or not formats <= {"parquet", "arrow"}:
            return None
        from producers.sources import arrow

        return arrow.common_schema((place, self.format or SUFFIXES[place.suffix]) for place in places)

    # --- files ---

    def _names(self) -> list[str]:
        where = [self.where] if isinstance(self.where, str | Path) else self.where
        return [str(one) for one in where]

    def _places(self) -> list[Place | Folder]:
        return [place for name in self._names() for place in self._found(name)]

    def _found(self, name: str) -> Sequence[Place | Folder]:
        if name != STDIN:
            return find(name)
        if not self._stdin:  # always the same object, because its copy must be
            seekable = self.reread or self.format == "parquet"
            self._stdin.append(StandardInput(f".{self.format or 'txt'}", seekable=seekable))
        return self._stdin

    def _records(self, place: Place | Folder, meter: Meter, *, many: bool) -> Iterator[Record]:
        if isinstance(place, Folder):
            for file in self._media_in(place):
                meter.done += 1
                yield _of_file(file)
        elif place.suffix in MEDIA_SUFFIXES.get(self.modality, ()) and self.format is None:
            yield replace(_of_file(place), key=Path(place.name).name)
        else:
            yield from self._table(place, meter, many=many)

    def _media_in(self, folder: Folder) -> Iterator[Place]:
        if self.modality not in MEDIA_SUFFIXES:
            problem = f"is a folder, but the task takes {self.modality} input"
            raise InvalidInput(folder.name, problem, "name a file, or a pattern such as 'folder/*.jsonl'")
        return folder.files(MEDIA_SUFFIXES[self.modality])

    # --- rows ---

    def _table(self, place: Place, meter: Meter, *, many: bool) -> Iterator[Record]:
        choose = Chooser(self.modality, self._input_columns(), self.key_column)
        with _opened(place) as file:
            meter.total = place.size() if not place.name.endswith(".gz") else 0
            reading = Reading(
                place.name, file, meter, lambda names: _accept(choose, names, place.name), self.line_bytes
            )
            for number, columns in self._reader(place)(reading):
                origin = f"{place.name}:{number}"
                if isinstance(columns, InvalidInput):
                    yield Record(place, origin, {}, error=columns)
                    continue
                try:
                    choice = choose(list(columns), origin, origin)
                except InvalidInput as error:
                    yield Record(place, origin, columns, error=error)
                    continue
                named = None if choice.key is None else columns[choice.key]
                key = str(named) if named is not None else origin if many else str(number)
                yield Record(place, origin, columns, key, choice.value(columns))

    def _reader(self, place: Place) -> Reader:
        name = self.format or SUFFIXES.get(place.suffix, "text")
        if name not in FORMATS:
            raise InvalidInput("format", f"must be one of {', '.join(FORMATS)}, not {name!r}")
        return FORMATS[name]

    def _input_columns(self) -> Sequence[str]:
        if self.input_column is None:
            return ()
        return (self.input_column,) if isinstance(self.input_column, str) else tuple(self.input_column)

    def _once(self, record: Record, unique: Unique) -> Record:
        if self.key_column is None or record.key is None or record.error is not None:
            return record
        before = unique.first(record.key, record.origin)
        if before is None:
            return record
        error = InvalidInput(
            record.origin,
            f"has the id {record.key!r}, which {before} already has",
            "give each row an id of its own, or leave --id-column out",
        )
        return replace(record, error=error)


def _accept(choose: Chooser, names: Sequence[str], file: str) -> None:
    choose(names, f"{file}:1", file)


def _of_file(file: Place) -> Record:
    return Record(file, file.name, {PATH: file.name}, file.name, file)


@contextmanager
def _opened(place: Place) -> Iterator[BinaryIO]:
    try:
        file = place.open()
    except OSError as error:
        what = error.strerror or str(error)
        raise InvalidInput(place.name, f"cannot be read: {what}", "check the path and its permissions") from error
    try:
        yield file
    except BROKEN as error:
        raise InvalidInput(
            place.name, f"cannot be unpacked: {error}", "check that it is a complete gzip file"
        ) from error
    finally:
        if not isinstance(place, StandardInput):
            file.close()
