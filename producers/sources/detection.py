"""Detect a file's format and its compression: by its first bytes, then by its name."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

from producers.sources.columns import INPUT_COLUMNS, KEY_COLUMNS
from producers.sources.lines import BYTE_ORDER_MARKS
from producers.wire.errors import InvalidInput

#: Errors of a compressed file that is cut off, damaged, or not compressed at all.
BROKEN = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError)

#: Suffixes of the formats. The names without a suffix, and those of plain text, are read as text.
SUFFIXES: Mapping[str, str] = {
    "": "text",
    ".txt": "text",
    ".text": "text",
    ".log": "text",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
    ".parq": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".arrows": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}

_PACKED = {".gz": "gzip", ".gzip": "gzip", ".bz2": "bzip2", ".xz": "xz"}
_PACKED |= {".zst": "zstd", ".zstd": "zstd", ".lz4": "lz4"}

_MAGIC = {b"\x1f\x8b\x08": "gzip", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4"}
_MAGIC |= {b"BZh%d1AY&SY" % level: "bzip2" for level in range(1, 10)}

#: First bytes that name the format of a table; its name does not count.
_TABLES = {b"PAR1": "parquet", b"ARROW1": "arrow"}

LFS_POINTER = b"version https://git-lfs"

#: First bytes of files that are no rows, with the remedy.
_OTHERS = {
    b"PK\x03\x04": ("is a zip archive or a spreadsheet", "unpack it, or save the sheet as CSV"),
    b"7z\xbc\xaf\x27\x1c": ("is a 7z archive", "unpack it"),
    b"Rar!\x1a": ("is a RAR archive", "unpack it"),
    b"%PDF-": ("is a PDF document", "extract its text"),
    b"\xd0\xcf\x11\xe0": ("is an old Office document", "save the sheet as CSV"),
    b"SQLite format 3\0": ("is a SQLite database", "export the rows as CSV or JSON lines"),
    **dict.fromkeys((b"\x89PNG", b"\xff\xd8\xff", b"GIF89a"), ("is an image", "submit it to a task for images")),
    b"FEA1": ("is a Feather file of version 1", "write it again with pyarrow.feather.write_feather"),
    b"Obj\x01": ("is an Avro file", "convert it to Parquet or JSON lines"),
    LFS_POINTER: ("is a Git LFS pointer, not the file itself", "fetch it: git lfs pull"),
}

#: The beginnings of marked-up documents, such as a server's error page, with the remedy.
_DOCUMENTS = {
    (b"<!doctype html", b"<html"): ("is an HTML page", "check the address it came from"),
    (b"<?xml",): ("is an XML document", "convert it to CSV or JSON lines"),
    (b"{\\rtf",): ("is a document in RTF", "save it as plain text"),
}

#: The beginning of a JSON object, or of a list of objects.
_JSON = re.compile(r'(?:\[\s*)?\{\s*"[^"\n]{1,200}"\s*:')

#: The separators of tables that are found in plain text, with the format that reads them.
_TEXT_SEPARATORS = {",": "csv", ";": "csv", "|": "csv", "\t": "tsv"}

#: A column's name, and the names that a column of inputs or keys usually has.
_HEADING = re.compile(r"[\w .()/-]{1,60}")
_USUAL = {name for names in INPUT_COLUMNS.values() for name in names}.union(KEY_COLUMNS)

#: The bytes that tell a format; a tar archive's are at 257.
HEAD_BYTES = 512

#: Bytes that are unpacked at a time.
_BLOCK = 64 * 1024


class _Members(io.RawIOBase):
    """The content of compressed streams, one behind another, and of zero bytes as padding.

    bz2's and lzma's own files take a damaged stream behind the first for padding, and its rows are missing then.
    """

    def __init__(self, packed: Any, stream: Callable[[], Any]) -> None:
        self._packed = packed
        self._new = stream
        self._stream = stream()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        made = b""
        while not made:
            packed = b""
            if self._stream.eof:
                packed = self._stream.unused_data.lstrip(b"\0")
                while not packed and (block := self._packed.read(_BLOCK)):
                    packed = block.lstrip(b"\0")
                if not packed:
                    return 0
                self._stream = self._new()
            elif self._stream.needs_input:
                packed = self._packed.read(_BLOCK)
                if not packed:
                    raise EOFError("the compressed data breaks off")
            made = self._stream.decompress(packed, len(buffer))
        buffer[: len(made)] = made
        return len(made)


class _Unpacked(io.BufferedReader):
    """A compressed file that also closes the file below it."""

    def __init__(self, packed: Any, opened: Any) -> None:
        super().__init__(opened)
        self._packed = packed

    def close(self) -> None:
        super().close()
        self._packed.close()


def suffix_of(name: str) -> str:
    """Return a name's suffix in lower case, without that of a compression."""
    path = PurePosixPath(name.lower())
    return path.with_suffix("").suffix if path.suffix in _PACKED else path.suffix


def unpacked(file: Any, name: str) -> BinaryIO:
    """Return the file, unpacked if its first bytes or its name say so. Raises InvalidInput without the library."""
    if not hasattr(file, "peek"):
        file = io.BufferedReader(file)
    head = file.peek(10)
    suffix = PurePosixPath(name.lower()).suffix
    packing = next((packing for magic, packing in _MAGIC.items() if head.startswith(magic)), _PACKED.get(suffix))
    if packing is None:
        return cast(BinaryIO, file)
    return cast(BinaryIO, _Unpacked(file, _opener(packing, name)(file)))


def is_unpacked(file: BinaryIO) -> bool:
    return isinstance(file, _Unpacked)


def format_by(head: bytes, suffix: str, name: str, known: str, given: str | None) -> str:
    """Return the format of a file that begins with `head`, which is the `given` one if any.

    Raises InvalidInput if the file is of none of the known formats.
    """
    table = next((table for magic, table in _TABLES.items() if head.startswith(magic)), None)
    if table is not None and given is None:
        return table
    format_ = given or SUFFIXES.get(suffix)
    if format_ not in _TABLES.values():
        if table is not None and given != "text":
            raise InvalidInput(name, f"is {table}, not {format_}", "leave the format out")
        check_rows(head, name, given)
    elif table is None:
        _check_magic(head, name)
    if format_ is None:
        raise InvalidInput(name, f"has the unknown suffix {suffix}", f"name its format with --format: {known}")
    if format_ == "text" and given is None:
        _check_text(head, name)
    return format_


def is_table(head: bytes, suffix: str) -> bool:
    """Return whether a file that begins with `head` may hold rows."""
    if any(map(head.startswith, _TABLES)):
        return True
    try:
        check_rows(head, "")
    except InvalidInput:
        return False
    return suffix in SUFFIXES


def check_rows(head: bytes, name: str, given: str | None = None) -> None:
    """Raise InvalidInput if a file's first bytes are those of a file without rows.

    Zero bytes are text in a `given` format, and nearly everything is in the format "text".
    """
    if given != "text":
        _check_magic(head, name)
    if head.startswith(tuple(BYTE_ORDER_MARKS)):
        return  # its reader names the encoding
    for first, encoding in enumerate(("UTF-16BE", "UTF-16LE")):
        zeros, others = head[first::2].count(0), head[1 - first :: 2].count(0)
        if zeros > 0.8 * len(head[first::2]) > 1 and not others:
            raise InvalidInput(name, f"is {encoding}", f"convert the file: iconv -f {encoding} -t UTF-8")
    if b"\0" in head and given is None:
        raise InvalidInput(name, "is not text", "check that it is the right file")


def _check_text(head: bytes, name: str) -> None:
    """Raise InvalidInput for a file named as plain text that begins as JSON, or as a table with a usual column."""
    begins = head.decode("utf-8", "replace").removeprefix("\ufeff").lstrip()
    first = begins.partition("\n")[0].strip()
    if first in ("[", "{") or _JSON.match(begins):
        raise InvalidInput(name, "looks like JSON, not like plain text", "add --format jsonl, or --format text")
    for separator, format_ in _TEXT_SEPARATORS.items():
        cells = [cell.strip('"') for cell in first.split(separator)]
        if len(cells) > 1 and _USUAL.intersection(cells) and all(map(_HEADING.fullmatch, cells)):
            problem = f"looks like a table with the columns {', '.join(cells)}, not like plain text"
            raise InvalidInput(name, problem, f"add --format {format_}, or --format text")


def _check_magic(head: bytes, name: str) -> None:
    for magic, (problem, remedy) in _OTHERS.items():
        if head.startswith(magic):
            raise InvalidInput(name, problem, remedy)
    if head[257:262] == b"ustar":
        raise InvalidInput(name, "is a tar archive", "unpack it")
    if any(map(head.startswith, _MAGIC)):
        raise InvalidInput(name, "is compressed twice", "unpack it once")
    begins = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for beginnings, (problem, remedy) in _DOCUMENTS.items():
        if begins.startswith(beginnings):
            raise InvalidInput(name, problem, remedy)


def _opener(packing: str, name: str) -> Callable[[Any], Any]:
    if packing in ("zstd", "lz4"):
        try:
            import pyarrow as pa
        except ImportError as error:
            remedy = "pip install 'argosy[parquet]', or unpack it"
            raise InvalidInput(name, f"is compressed with {packing}", remedy) from error
        return lambda file: pa.CompressedInputStream(pa.PythonFile(file, "r"), packing)
    openers: Mapping[str, Callable[[Any], Any]] = {
        "gzip": lambda file: gzip.GzipFile(fileobj=file),
        "bzip2": lambda file: _Members(file, bz2.BZ2Decompressor),
        "xz": lambda file: _Members(file, lzma.LZMADecompressor),
    }
    return openers[packing]
