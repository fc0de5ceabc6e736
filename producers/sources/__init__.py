"""From files to items: JSONL, CSV, plain text, Parquet, Arrow, folders of images or clips; here, by URL, or piped in.

A row that cannot be read is yielded as the InvalidInput that says why, naming file and line, so that whoever submits
decides whether to stop or to skip it. A file that is wrong as a whole raises.
"""

from __future__ import annotations

from producers.sources.columns import INPUT_COLUMNS, KEY_COLUMNS
from producers.sources.formats import FORMATS
from producers.sources.media import MEDIA_SUFFIXES, Record, Row
from producers.sources.source import Source

__all__ = ["FORMATS", "INPUT_COLUMNS", "KEY_COLUMNS", "MEDIA_SUFFIXES", "Record", "Row", "Source"]
