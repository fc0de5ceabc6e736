"""Detect a file's format and its compression: by its first bytes, then by its name."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

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

_PACKED = {".gz": "gzip", ".gzip": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}

_MAGIC = {b"\x1f\x8b\x08": "gzip", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_MAGIC |= {b"BZh%d1AY&SY" % level: "bzip2" for level in range(1, 10)}

#: First bytes of tables that know their format whatever their name is.
_TABLES = {b"PAR1": "parquet", b"ARROW1": "arrow"}

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
    b"version https://git-lfs": ("is a Git LFS pointer, not the file itself", "fetch it: git lfs pull"),
}

#: The bytes that tell a format; a tar archive's are at 257.
HEAD_BYTES = 512


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


def format_by(head: bytes, suffix: str, name: str, known: str) -> str:
    """Return the format of a file that begins with `head`. Raises InvalidInput if it is none of the known formats."""
    for magic, table in _TABLES.items():
        if head.startswith(magic):
            return table
    format_ = SUFFIXES.get(suffix)
    if format_ not in _TABLES.values():
        check_rows(head, name)
    if format_ is None:
        raise InvalidInput(name, f"has the unknown suffix {suffix}", f"name its format with --format: {known}")
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


def check_rows(head: bytes, name: str) -> None:
    """Raise InvalidInput if a file's first bytes are those of a file without rows."""
    for magic, (problem, remedy) in _OTHERS.items():
        if head.startswith(magic):
            raise InvalidInput(name, problem, remedy)
    if head[257:262] == b"ustar":
        raise InvalidInput(name, "is a tar archive", "unpack it")
    if b"\0" in head and not head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InvalidInput(name, "is not text", "check that it is the right file")


def _opener(packing: str, name: str) -> Callable[[Any], Any]:
    if packing == "zstd":
        try:
            import pyarrow as pa
        except ImportError as error:
            raise InvalidInput(name, "is packed with zstd", "pip install 'argosy[parquet]', or unpack it") from error
        return lambda file: pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd")
    openers: Mapping[str, Callable[[Any], Any]] = {
        "gzip": lambda file: gzip.GzipFile(fileobj=file),
        "bzip2": bz2.BZ2File,
        "xz": lzma.LZMAFile,
    }
    return openers[packing]
