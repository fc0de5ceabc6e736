"""The columns of a table from its training rows: numbers with their mean and deviation, or words.

Cells are texts, as in CSV, or values of JSON and Parquet.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from decimal import Decimal
from itertools import pairwise
from typing import Any

import numpy as np

from producers.wire.errors import ConfigurationError, InvalidInput
from producers.wire.validation import table_cells
from workers.models.built_in.tables.tabular import Column
from workers.training.kinds.labelled_kind import deviation

#: A column with more different words is a name or an identifier, and useless for learning.
MOST_CATEGORIES = 50


def column(name: str, cells: Sequence[Any], remedy: str) -> Column:
    """Return a column by its cells of the training rows: of numbers, or if it has texts alone, of words.

    Cells of another type are left to `value`. Raises ConfigurationError for a column that teaches nothing.
    """
    where = f"column {name!r}"
    found = [one for cell in cells if (one := _read(cell)) is not None]
    numbers = [one for one in found if isinstance(one, float)]
    if numbers and (len(numbers) == len(found) or not all(_is_text(cell) for cell in cells)):
        array = np.array(numbers)
        return Column(name, float(array.mean()), deviation(array), float(array.min()), float(array.max()))
    words = tuple(sorted({word for cell in cells if _is_text(cell) and (word := _word(cell)) is not None}))
    if not 1 <= len(words) <= MOST_CATEGORIES:
        _refuse_commas(words, where)
        raise ConfigurationError(f"{where} {f'has {len(words)} different words' if words else 'is empty'}; {remedy}")
    _refuse_commas(words, where)
    return Column(name, categories=words)


def value(column: Column, cell: Any, where: str) -> float | str | None:
    """Return a cell as the model takes it; an unknown word is None. Raises InvalidInput."""
    if not column.categories:
        try:
            return _number(cell)
        except ValueError as error:
            remedy = "write numbers like 0.5, and leave unknown ones empty"
            raise InvalidInput(where, f"is {str(cell)[:60]!r}, in a column of numbers", remedy) from error
    if not _is_text(cell):
        raise InvalidInput(where, f"is {str(cell)[:60]}, in a column of words", "write a text")
    word = _word(cell)
    return word if word in column.categories else None


def doubts(name: str, cells: Sequence[Any], remedy: str) -> Iterator[str]:
    """Yield a sentence for a doubtful column: an id, or numbers with some words in between."""
    known = [one for cell in cells if (one := _read(cell)) is not None]
    numbers = [one for one in known if isinstance(one, float)]
    words = [one for one in known if isinstance(one, str)]
    rises = all(one < other for one, other in pairwise(numbers))
    if not words and len(numbers) > 1 and rises and all(one.is_integer() for one in numbers):
        yield f"column {name!r} counts up from row to row, like an id; {remedy}"
    if 0 < 2 * len(words) < len(known):
        yield f"column {name!r} is read as words, as it has {words[0]!r} among numbers"


def _refuse_commas(words: Sequence[str], where: str) -> None:
    with suppress(ValueError):
        _ = [table_cells.number(word.replace(",", ".", 1)) for word in words]
        if example := next((word for word in words if "," in word), None):
            problem = f"{where} has numbers with commas, like {example!r}"
            raise ConfigurationError(f"{problem}; write them with a decimal point")


def _is_text(cell: Any) -> bool:
    return cell is None or isinstance(cell, str | bool)


def _read(cell: Any) -> float | str | None:
    """Return a cell's number, else its text, or None if it is unknown."""
    try:
        return _number(cell)
    except ValueError:
        return _word(cell) if _is_text(cell) else str(cell)


def _number(cell: Any) -> float | None:
    """Return a cell's number, or None if it is unknown. Raises ValueError."""
    if cell is None:
        return None
    if isinstance(cell, str):
        return table_cells.number(cell)
    if isinstance(cell, bool) or not isinstance(cell, int | float | Decimal) or math.isinf(cell):
        raise ValueError(cell)
    return None if math.isnan(cell) else float(cell)


def _word(cell: str | bool | None) -> str | None:
    if isinstance(cell, bool):
        return str(cell).lower()
    return None if cell is None else table_cells.word(cell)
