"""Read documents from files: each text file is a document, and so is each row of a table."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from producers.documents.passages import Document
from producers.sources import Source
from producers.sources.places import readable
from producers.wire.catalogue import Limits
from producers.wire.errors import InvalidInput
from producers.wire.forms import check_text

#: Suffixes of files that are one document each. Of a folder, only these files are read.
SUFFIXES = (".markdown", ".md", ".rst", ".txt")

#: A document is cut into passages, so its length has no limit.
_ANY_LENGTH = Limits(max_text_chars=sys.maxsize)


def read_documents(
    where: Sequence[str | Path], *, input_column: str | None = None, key_column: str | None = None
) -> Iterator[Document]:
    """Yield the documents of text files, folders, and tables that `producers.sources` reads (JSONL, CSV, Parquet).

    A file's document has the file's name, or in a folder its path within it. A row's document has the row's key, or
    else its line number. Raises InvalidInput.
    """
    for place in map(Path, where):
        if place.is_dir():
            files = sorted(file for file in place.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            if not files:
                raise InvalidInput(str(place), f"has no file that ends in {', '.join(SUFFIXES)}", "name another folder")
            yield from (_document(file, readable(file.relative_to(place))) for file in files)
        elif place.suffix.lower() in SUFFIXES:
            yield _document(place, readable(place.name))
        else:
            yield from _rows(place, input_column, key_column)


def _document(file: Path, name: str) -> Document:
    try:
        return Document(name, file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInput(str(file), f"cannot be read: {error.strerror}", "check the path") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(str(file), f"is not UTF-8 text: {error.reason}", "convert it, or leave it out") from error


def _rows(place: Path, input_column: str | None, key_column: str | None) -> Iterator[Document]:
    for row in Source(place, "text", Limits(), input_column=input_column, key_column=key_column).rows():
        if isinstance(row, InvalidInput):
            raise row
        if isinstance(row.input, str) and not row.input.strip():
            continue  # a document without passages
        yield Document(row.key or str(row.origin), check_text(row.input, _ANY_LENGTH, str(row.origin)))
