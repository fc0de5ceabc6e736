"""The text cells of a table as the values of a model's columns, at the training and at each submission alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

#: Cells that mean "unknown" in a column of numbers, in lower case; pandas reads the same ones.
_UNKNOWN = frozenset(("", "#n/a", "#na", "<na>", "n/a", "na", "nan", "-nan", "none", "null"))


def number(cell: str) -> float | None:
    """Return a cell's number, or None if it is unknown. Raises ValueError for a word, also for infinity."""
    text = cell.strip()
    if text.lower() in _UNKNOWN:
        return None
    value = float(text)
    if "_" in text or not math.isfinite(value):  # Python's float takes more than files mean by numbers
        raise ValueError(text)
    return value


def word(cell: str) -> str | None:
    """Return a cell's word, or None if the cell is blank."""
    return cell.strip() or None


def is_number(schema: Mapping[str, Any]) -> bool:
    """Return whether a column of this JSON Schema holds numbers."""
    return "number" in schema.get("type", ())
