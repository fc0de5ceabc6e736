"""Read items from files: JSONL, CSV, plain text, Parquet, Arrow, folders of images or clips, URLs, pipes.

A row that cannot be read is yielded as an InvalidInput that names file and line, so that the caller can stop or skip
it. A file that is wrong as a whole raises.
"""

from __future__ import annotations

from producers.sources.columns import INPUT_COLUMNS, KEY_COLUMNS
from producers.sources.formats import FORMATS
from producers.sources.media import MEDIA_SUFFIXES, Record, Row
from producers.sources.source import Source

__all__ = ["FORMATS", "INPUT_COLUMNS", "KEY_COLUMNS", "MEDIA_SUFFIXES", "Record", "Row", "Source"]
