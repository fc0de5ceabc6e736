"""From files to items: JSONL, CSV, plain text, folders of images.

A row that cannot be read is yielded as the InvalidInput that says why, naming file and line, so that whoever submits
decides whether to stop or to skip it. A file that is wrong as a whole raises.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from producers.catalogue import Limits, Modality
from producers.errors import InputTooLarge, InvalidInput
from producers.messages import PathInput, UrlInput
from producers.request import NewItem

Row: TypeAlias = NewItem | InvalidInput

#: Files taken for images when a folder is read.
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

#: Columns taken for the input and for the key when none is named, the first that is there.
INPUT_COLUMNS: dict[Modality, tuple[str, ...]] = {
    "text": ("input", "text", "sentence", "review", "content"),
    "image": ("input", "image", "path", "file", "url"),
}
KEY_COLUMNS = ("id", "key")

#: A longer line is put aside unread: one broken file must not fill the memory.
LINE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Source:
    """Where the items come from and how to read them.

    For images, files are read here and their bytes sent, since a worker on another machine cannot see them;
    `send_paths` sends the paths instead, for a share that the workers have too.
    """

    path: Path
    modality: Modality
    limits: Limits = field(default_factory=Limits)
    input_column: str | None = None
    key_column: str | None = None
    send_paths: bool = False

    def rows(self) -> Iterator[Row]:
        """Yield the items and the rows that cannot be read. Raises InvalidInput if the whole file is of no use."""
        read = self._reader()
        empty = True
        for row in read():
            empty = False
            yield row
        if empty:
            raise InvalidInput(str(self.path), "has nothing in it to submit", "check that it is the right one")

    def _reader(self) -> Callable[[], Iterator[Row]]:
        if self.path.is_dir():
            if self.modality != "image":
                raise InvalidInput(str(self.path), "is a folder, and the task wants text", "name a file")
            return self._folder
        if not self.path.exists():
            raise InvalidInput(str(self.path), "does not exist", "check the path")
        suffix = self.path.suffix.lower()
        if suffix in IMAGE_SUFFIXES:
            return self._one_image
        return {".jsonl": self._jsonl, ".ndjson": self._jsonl, ".csv": self._csv, ".tsv": self._csv}.get(
            suffix, self._text
        )

    # --- one reader a format ---

    def _text(self) -> Iterator[Row]:
        for number, line in _lines(self.path):
            if isinstance(line, InvalidInput):
                yield line
            elif line.strip():
                yield self._item(line, str(number), number)

    def _jsonl(self) -> Iterator[Row]:
        decode = msgspec.json.Decoder().decode
        for number, line in _lines(self.path):
            if isinstance(line, InvalidInput):
                yield line
            elif line.strip():
                try:
                    yield self._from_json(decode(line), number)
                except msgspec.DecodeError as error:
                    yield self._wrong(number, f"is not JSON: {error}", "each line must be one JSON value")

    def _from_json(self, value: Any, number: int) -> Row:
        if isinstance(value, str):
            return self._item(value, str(number), number)
        if not isinstance(value, dict):
            return self._wrong(number, f"is {type(value).__name__}", "each line must be an object or a string")
        column = self._input_column(list(value), number)
        if isinstance(column, InvalidInput):
            return column
        key_column = self._key_column(value)
        if isinstance(key_column, InvalidInput):
            return InvalidInput(f"{self.path}:{number}", key_column.problem, key_column.remedy)
        key = None if key_column is None else value[key_column]
        return self._item(value[column], str(number if key is None else key), number)

    def _csv(self) -> Iterator[Row]:
        lines = _Decoded(self.path)
        table = csv.reader(lines, delimiter="\t" if self.path.suffix.lower() == ".tsv" else ",", strict=True)
        try:
            columns = next(table, [])
        except (csv.Error, InvalidInput) as error:
            raise InvalidInput(
                f"{self.path}:1", f"no header can be read: {error}", "the first line names the columns"
            ) from error
        if not columns:
            return
        column = self._input_column(columns, 1)
        if isinstance(column, InvalidInput):
            raise column
        key_column = self._key_column(columns)
        if isinstance(key_column, InvalidInput):
            raise key_column
        place, key_place = columns.index(column), columns.index(key_column) if key_column in columns else None
        while (cells := self._next_record(table, lines)) is not None:
            if isinstance(cells, InvalidInput):
                yield cells
            elif len(cells) != len(columns):
                counts = f"has {len(cells)} columns where the header has {len(columns)}"
                yield self._wrong(lines.number, counts, "quote cells that contain the separator")
            else:
                key = str(lines.number) if key_place is None else cells[key_place]
                yield self._item(cells[place], key, lines.number)

    def _next_record(self, table: Iterator[list[str]], lines: _Decoded) -> list[str] | InvalidInput | None:
        try:
            while (cells := next(table, None)) == []:  # an empty line
                pass
            return cells
        except InvalidInput as error:
            return error
        except csv.Error as error:
            return self._wrong(lines.number, f"is not CSV: {error}", "check the quotes")

    def _folder(self) -> Iterator[Row]:
        for path in sorted(self.path.rglob("*")):
            if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
                yield self._image(path, str(path.relative_to(self.path)), str(path))

    def _one_image(self) -> Iterator[Row]:
        yield self._image(self.path, self.path.name, str(self.path))

    # --- shared by them ---

    def _item(self, value: Any, key: str, number: int) -> Row:
        origin = f"{self.path}:{number}"
        if self.modality == "text" or not isinstance(value, str) or not value.strip():
            return NewItem(value, key, origin=origin)
        if value.startswith(("http://", "https://")):
            return NewItem(UrlInput(value), key, origin=origin)
        return self._image(self.path.parent / value, key, origin)

    def _image(self, path: Path, key: str, origin: str) -> Row:
        if self.send_paths:
            return NewItem(PathInput(str(path.absolute())), key, origin=origin)
        try:
            size = path.stat().st_size
            if size > self.limits.max_input_bytes:  # seen before it is read: it may be a film
                problem = f"{path.name} has {size:,} bytes, over {self.limits.max_input_bytes:,}"
                return InputTooLarge(origin, problem, "make it smaller, or send its path with --paths")
            return NewItem(path.read_bytes(), key, origin=origin)
        except OSError as error:
            return InvalidInput(origin, f"{path} cannot be read: {error.strerror}", "check the path")

    def _input_column(self, columns: Sequence[str], number: int) -> str | InvalidInput:
        there = ", ".join(columns) or "none"
        if self.input_column is not None:
            if self.input_column in columns:
                return self.input_column
            return self._wrong(number, f"has no column {self.input_column!r}", f"columns here: {there}")
        for name in INPUT_COLUMNS[self.modality]:
            if name in columns:
                return name
        if len(columns) == 1:
            return columns[0]
        return self._wrong(number, "does not say which column is the input", f"name it with --input-column: {there}")

    def _key_column(self, columns: Collection[str]) -> str | InvalidInput | None:
        if self.key_column is None:
            return next((name for name in KEY_COLUMNS if name in columns), None)
        if self.key_column in columns:
            return self.key_column
        return InvalidInput(str(self.path), f"has no column {self.key_column!r}", f"columns here: {', '.join(columns)}")

    def _wrong(self, number: int, problem: str, remedy: str) -> InvalidInput:
        return InvalidInput(f"{self.path}:{number}", problem, remedy)


def _lines(path: Path) -> Iterator[tuple[int, str | InvalidInput]]:
    """Yield each line's number and its text without the line end, or what is wrong with it."""
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(LINE_BYTES):
            number += 1
            where = f"{path}:{number}"
            if len(raw) == LINE_BYTES and not raw.endswith(b"\n"):
                while (rest := file.readline(LINE_BYTES)) and not rest.endswith(b"\n"):
                    pass
                yield number, InputTooLarge(where, f"is longer than {LINE_BYTES:,} bytes", "split it")
                continue
            yield number, _decoded(raw, where, first=number == 1)


def _decoded(raw: bytes, where: str, *, first: bool) -> str | InvalidInput:
    if first and raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return InvalidInput(where, "is UTF-16", "convert the file: iconv -f UTF-16 -t UTF-8")
    try:
        return raw.decode("utf-8-sig" if first else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8 (byte {raw[error.start]:#04x} at place {error.start + 1})"
        return InvalidInput(where, problem, "convert the file, e.g. iconv -f LATIN1 -t UTF-8")


class _Decoded:
    """A file's lines for the csv module. An iterator class and not a generator: it goes on after it has raised."""

    def __init__(self, path: Path) -> None:
        self._lines = _lines(path)
        self.number = 0

    def __iter__(self) -> _Decoded:
        return self

    def __next__(self) -> str:
        self.number, line = next(self._lines)
        if isinstance(line, InvalidInput):
            raise line
        return line + "\n"
