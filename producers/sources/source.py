"""Files as a sequence of rows: found, read by format, their columns chosen, their media loaded."""

from __future__ import annotations

import hashlib
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import BufferedReader
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

from producers.sources.cells import id_of, input_of
from producers.sources.columns import Chooser
from producers.sources.declared_columns import Windows, columns_of, is_step, typed_row
from producers.sources.detection import BROKEN, HEAD_BYTES, format_by, is_table, is_unpacked
from producers.sources.file_reading import LINE_BYTES, Meter, Raw, Reader, Reading
from producers.sources.formats import ARROW_TABLES, FORMATS, TEXT_TABLES
from producers.sources.media import MEDIA_SUFFIXES, PATH, Media, Record, Row
from producers.sources.places import (
    STDIN,
    Folder,
    LocalFile,
    Pipe,
    Place,
    RemoteFile,
    find,
    outside,
    path_of,
    told,
    without_query,
    would_match,
)
from producers.sources.unique import Unique
from producers.wire.catalogue import Limits
from producers.wire.errors import InvalidInput
from producers.wire.outside.allowed_places import AllowedPlaces, is_below

#: A separator in the name of a table's only column: the table may have more.
_SEPARATOR = re.compile(r"[,;|\t:~^\x01\x1f]")

#: The types of cells that are no ids.
_NO_IDS = (dict, list, bytes)


@dataclass(frozen=True, slots=True)
class Source:
    """A source of items and the way to read it.

    `where` are paths, patterns, URLs that fsspec knows, or ``-`` for standard input; several are read in order.
    `format` is a name in `FORMATS`; by default each file's first bytes and its name decide. A given `key_column` must
    hold a key in each row, and each key once. A line of over `line_bytes` is a bad row. `declared` is the JSON Schema
    of the model's input, if it declares columns of tables or channels of series.

    Image and audio files are read here and sent as bytes, because a worker on another machine cannot read them.
    If `allowed` is given, no file outside it is opened, whatever rows name.
    `send_paths` sends their paths instead, for a shared folder that the workers can read. `left_out` counts the other
    files of a folder, by suffix, and the folders and pipes that a pattern matches, while `rows` or `records` runs.
    `headers` has the first line of each table whose only column has an unusual name, as it may be a row.
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
    declared: Mapping[str, Any] = field(default_factory=dict, compare=False)
    allowed: AllowedPlaces | None = None
    meters: list[Meter] = field(default_factory=list, repr=False, compare=False)
    left_out: Counter[str] = field(default_factory=Counter, repr=False, compare=False)
    headers: dict[str, str] = field(default_factory=dict, repr=False, compare=False)
    _pipes: dict[str, Pipe] = field(default_factory=dict, repr=False, compare=False)

    # --- items and records ---

    def rows(self) -> Iterator[Row]:
        """Yield the items and the unreadable rows. Raises InvalidInput if a whole file is unusable."""
        item = self._media.item
        self._check_files()
        for record in self.records():
            yield record.error or item(record)

    @property
    def _media(self) -> Media:
        return Media(self.modality, self.limits, self.send_paths, self.allowed)

    def item(self, record: Record) -> Row:
        """Return a record's item, or its error."""
        return record.error or self._media.item(record)

    def records(self) -> Iterator[Record]:
        """Yield every row with its columns, in the same order as `rows`, without reading images and clips."""
        self.left_out.clear()
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
            remedy = "check that it is the right file"
            if self.left_out:
                remedy = f"the task does not read the files there: {told_left_out(self.left_out)}"
            raise InvalidInput(self.name, "has nothing in it to submit", remedy)

    def plain_rows(self) -> Iterator[tuple[str, Mapping[str, Any] | InvalidInput]]:
        """Yield every row's origin and columns, of which none is chosen as the input; an unreadable row is its error.

        A file of a folder has the columns `path` and `folder`, the name of the folder it lies in.
        """
        for place in self._places():
            if isinstance(place, Folder):
                for medium in self._media_in(place, self.left_out):
                    path = str(medium.path.absolute()) if isinstance(medium, LocalFile) else medium.name
                    yield medium.name, {PATH: path, "folder": Path(path).parent.name}
                continue
            with _opened(place) as file:
                reading = Reading(place.name, file, Meter(), lambda _: None, self.line_bytes)
                for number, row in FORMATS[self._format(place, file)](reading):
                    origin = f"{place.name}:{number}"
                    try:
                        yield origin, row if isinstance(row, InvalidInput) else input_of(dict(row), origin)
                    except InvalidInput as error:
                        yield origin, error

    @property
    def name(self) -> str:
        """The source's name for people."""
        names = [without_query(name) for name in self._names()]
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
        how: tuple[Any, ...] = (self.modality, self.input_column, self.key_column, self.send_paths, self.format)
        how += (sorted(columns_of(self.declared)),) if self.declared else ()
        digest = hashlib.sha256(repr(how).encode())
        for place in self._places():
            for file in self._media_in(place, Counter()) if isinstance(place, Folder) else [place]:
                stamp = file.stamp()
                if stamp is None:
                    return None
                digest.update(stamp.encode("utf-8", "surrogateescape") + b"\n")
        return digest.hexdigest()

    def reads(self, name: str) -> bool:
        """Return whether a local file, or the file at a URL, belongs to this source or would, once it is there.

        Raises InvalidInput, as `records`, without a file.
        """
        places, path = list(self._places()), Path(name)
        files = [place.path for place in places if isinstance(place, LocalFile)]
        if any(place.name == name for place in places) or (path.exists() and any(map(path.samefile, files))):
            return True
        return any(would_match(where, name) for where in self._names())

    def arrow_schema(self, *, check: bool = False) -> Any:
        """Return the Arrow schema of the files if all are Parquet or Arrow tables, else None. Raises InvalidInput.

        None also for series, whose records may be windows of several rows. With `check`, also raises InvalidInput if a
        value of a file does not fit the schema.
        """
        if self.modality == "series":
            return None
        found = self._places()
        places = [place for place in found if not isinstance(place, Folder)]
        if not places or len(places) < len(found) or any(map(self._is_item, places)):
            return None
        formats = [self._format_of(place) for place in places]
        if not set(formats) <= {"parquet", "arrow"}:
            return None
        from producers.sources import arrow

        schema = arrow.common_schema(zip(places, formats, strict=True))
        if check and len(places) > 1:
            arrow.check_values(zip(places, formats, strict=True), schema)
        return schema

    # --- files ---

    def _check_files(self) -> None:
        """Raise InvalidInput now if one of several files could not be read later, when rows have been submitted."""
        places = self._places()
        for place in places if len(places) > 1 else ():
            if isinstance(place, LocalFile) and not self._is_item(place):
                with _opened(place) as file:
                    _, reading, read = self._reading(place, file, Meter())
                    rows = read(reading)
                    if read not in ARROW_TABLES:  # which have checked their columns
                        next(rows, None)

    def _names(self) -> list[str]:
        where = [self.where] if isinstance(self.where, str | Path) else self.where
        return [str(one) for one in where]

    def _format_of(self, place: Place) -> str:
        """Return the format of a file. Raises InvalidInput if it is none of the known formats."""
        if self.format is not None:
            return self.format
        with _opened(place) as file:
            return self._format(place, file)

    def _format(self, place: Place, file: BinaryIO) -> str:
        known = ", ".join(FORMATS)
        if self.format is not None and self.format not in FORMATS:
            raise InvalidInput("format", f"must be one of {known}, not {self.format!r}")
        found = format_by(_head(file), place.suffix, place.name, known, self.format)
        if found == "parquet" and isinstance(place, Pipe) and not place.seekable:
            raise InvalidInput(place.name, "is Parquet, which cannot be read from a pipe", "add --format parquet")
        return found

    def _places(self) -> list[Place | Folder]:
        return [place for name in self._names() for place in self._found(name)]

    def _found(self, name: str) -> Sequence[Place | Folder]:
        if name not in self._pipes:
            if self.allowed is not None and not self.allowed.allows(name):
                raise outside(self.allowed, name)
            found = [Pipe(f".{self.format or 'txt'}")] if name == STDIN else find(name, self.left_out)
            self._check_places(found)
            if not (len(found) == 1 and isinstance(found[0], Pipe)):
                return found
            self._pipes[name] = found[0]  # always the same object, because its copy must be
            found[0].seekable = self.reread or self.format == "parquet"
        return [self._pipes[name]]

    def _check_places(self, found: Sequence[Place | Folder]) -> None:
        """Raise InvalidInput if a local file is outside the allowed places once links are followed."""
        for place in found if self.allowed is not None else ():
            path = path_of(place)
            if self.allowed is not None and path is not None and not self.allowed.holds(path):
                raise outside(self.allowed, place.name)

    def _records(self, place: Place | Folder, meter: Meter, *, many: bool) -> Iterator[Record]:
        if isinstance(place, Folder):
            for file in self._media_in(place, self.left_out):
                meter.done += 1
                yield _of_file(file)
        elif self._is_item(place):
            yield replace(_of_file(place), key=Path(place.name).name)
        else:
            yield from self._table(place, meter, many=many)

    def _media_in(self, folder: Folder, left_out: Counter[str]) -> Iterator[Place]:
        if self.modality not in MEDIA_SUFFIXES:
            problem = f"is a folder, but the task takes {self.modality} input"
            raise InvalidInput(folder.name, problem, "name a file, or a pattern such as 'folder/*.jsonl'")
        for file in folder.files(MEDIA_SUFFIXES[self.modality], left_out):
            if self.allowed is not None and isinstance(file, RemoteFile) and not is_below(file.path, folder.path):
                raise outside(self.allowed, file.name)  # a web server's list of files may name any
            yield file

    def _is_item(self, place: Place) -> bool:
        """Return whether a file is an input of a task for media, not a table of inputs."""
        suffixes = MEDIA_SUFFIXES.get(self.modality)
        if suffixes is None or self.format is not None or isinstance(place, Pipe):
            return False
        if place.suffix in suffixes:
            return True
        with _opened(place) as file:
            return not is_table(_head(file), place.suffix)

    # --- rows ---

    def _table(self, place: Place, meter: Meter, *, many: bool) -> Iterator[Record]:
        columns = columns_of(self.declared)
        with _opened(place) as file:
            meter.total = 0 if is_unpacked(file) else place.size()
            choose, reading, read = self._reading(place, file, meter)
            rows, is_text = read(reading), read in TEXT_TABLES
            if self.modality == "series":
                rows, choose = self._windows(rows, place, choose)
            for number, row in rows:
                origin = f"{place.name}:{number}"
                if isinstance(row, InvalidInput):
                    yield Record(place, origin, {}, error=row)
                    continue
                try:
                    choice = choose(list(row), origin, origin)
                    value = input_of(choice.value(row), origin)
                    if self.modality == "row":
                        value = typed_row(value, columns, origin, text=is_text)
                except InvalidInput as error:
                    yield Record(place, origin, row, error=error)
                    continue
                named = None if choice.key is None else id_of(row[choice.key])
                if self.key_column is not None and (named in (None, "") or isinstance(named, _NO_IDS)):
                    yield Record(place, origin, row, error=_no_id(self.key_column, named, origin))
                    continue
                if isinstance(named, _NO_IDS):
                    named = None
                key = str(named) if named is not None else origin if many else str(number)
                yield Record(place, origin, row, key, value)

    def _reading(self, place: Place, file: BinaryIO, meter: Meter) -> tuple[Chooser, Reading, Reader]:
        """Return the choice of a file's columns, the file as it is read, and the reader of its format."""
        choose = Chooser(self.modality, self._input_columns(), self.key_column, tuple(columns_of(self.declared)))
        read = FORMATS[self._format(place, file)]

        def accept(names: Sequence[str]) -> None:
            first, *_ = choose(names, f"{place.name}:1", place.name).inputs
            if read in TEXT_TABLES and len(names) == 1 and choose.is_guess(first):
                _check_header(first, place.name)
                self.headers[place.name] = first

        return choose, Reading(place.name, file, meter, accept, self.line_bytes), read

    def _windows(self, rows: Iterator[Raw], place: Place, choose: Chooser) -> tuple[Iterator[Raw], Chooser]:
        """Return the rows as windows, with the choice of their columns, if each row is a step of a series."""
        channels = choose.inputs or choose.declared
        read: list[Raw] = []
        for number, row in rows:
            read.append((number, row))
            if isinstance(row, InvalidInput):
                continue
            if not channels or not is_step(row, channels):
                break
            id_column = choose(list(row), place.name, place.name).key
            windows = Windows(place.name, channels, id_column, self.limits.max_text_chars)
            return windows(chain(read, rows)), Chooser(self.modality, channels, id_column or PATH)
        return chain(read, rows), choose

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


def _check_header(header: str, name: str) -> None:
    """Raise InvalidInput if the name of a table's only column looks like several names, or like a comment."""
    found = _SEPARATOR.search(header)
    if found is not None:
        remedy = f"put the line 'sep={found[0]}' in front and add --format csv, or name it with --input-column"
        raise InvalidInput(f"{name}:1", f"has a single column, {header[:60]!r}, which looks like several", remedy)
    if header.startswith("#"):
        remedy = "take the comment out, or name the column with --input-column"
        raise InvalidInput(f"{name}:1", f"has a single column, {header[:60]!r}, which looks like a comment", remedy)


def _no_id(column: str, named: Any, origin: str) -> InvalidInput:
    found = "bytes that are not UTF-8" if isinstance(named, bytes) else "an object or a list" if named else "no id"
    problem = f"has {found} in the column {column!r}"
    return InvalidInput(origin, problem, "give each row an id, or leave --id-column out")


def told_left_out(left_out: Counter[str]) -> str:
    """Return the suffixes of files that were left out, with their numbers."""
    return ", ".join(f"{suffix} {count:,}" for suffix, count in sorted(left_out.items()))


def _of_file(file: Place) -> Record:
    return Record(file, file.name, {PATH: file.name}, file.name, file)


def _head(file: BinaryIO) -> bytes:
    return cast(BufferedReader, file).peek(HEAD_BYTES)[:HEAD_BYTES]


@contextmanager
def _opened(place: Place) -> Iterator[BinaryIO]:
    try:
        file = place.open()
    except OSError as error:
        problem = f"cannot be read: {told(error)}"
        raise InvalidInput(place.name, problem, "check the path and its permissions") from error
    try:
        yield file
    except (OSError, *BROKEN) as error:
        problem, remedy = f"cannot be read: {told(error)}", "check that the file is complete"
        if is_unpacked(file):
            problem, remedy = f"cannot be unpacked: {told(error)}", "check that it is a complete compressed file"
        raise InvalidInput(place.name, problem, remedy) from error
    finally:
        if file is not sys.stdin.buffer:
            file.close()
