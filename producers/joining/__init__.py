"""Results joined back to the rows that they are of, and written as JSON Lines, CSV or Parquet."""

from __future__ import annotations

from producers.joining.joined_files import check_output, write_joined
from producers.joining.rows import Joined, Layout, join

__all__ = ["Joined", "Layout", "check_output", "join", "write_joined"]
