"""Join results to their source rows, and write them as JSON Lines, CSV or Parquet."""

from __future__ import annotations

from producers.joining.joined_files import check_columns, check_output, write_joined
from producers.joining.rows import Joined, Layout, join

__all__ = ["Joined", "Layout", "check_columns", "check_output", "join", "write_joined"]
