"""Texts in CSV files that a spreadsheet would run as formulas (OWASP, "CSV Injection").

Keys, texts and errors come from strangers. CSV files hold them exactly by default, because programs read the files too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

#: A formula begins with one of these. Some programs take the wide forms of East Asian writing, too.
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")  # noqa: RUF001

_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")


def is_formula(cell: object) -> bool:
    """Return whether a spreadsheet may take a cell for a formula: a text that begins like one, and is no number."""
    return isinstance(cell, str) and cell.startswith(_FORMULA) and not _NUMBER.fullmatch(cell)


class Cells:
    """The cells of a CSV file. `formulas` counts those that a spreadsheet may take for formulas.

    If `escaped`, such a text gets an apostrophe in front, and so does a text that begins with one: the exact text is
    read by removing one apostrophe. All texts are then quoted, so that a spreadsheet that splits at other characters
    than commas finds no cell inside another.
    """

    def __init__(self, *, escaped: bool = False) -> None:
        self.escaped = escaped
        self.formulas = 0

    def row(self, cells: Sequence[Any]) -> Sequence[Any]:
        """Return a row as it is written."""
        found = sum(map(is_formula, cells))
        self.formulas += found
        if not self.escaped:
            return cells
        return [f"'{cell}" if is_formula(cell) or _is_quoted(cell) else cell for cell in cells]


def _is_quoted(cell: object) -> bool:
    return isinstance(cell, str) and cell.startswith("'")
