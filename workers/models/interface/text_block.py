"""Blocks: many texts with the same tasks and parameters, prepared and finished together, without an object for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

#: The row of an input that is not part of its block: the input is prepared alone.
ALONE = -1


@dataclass(frozen=True, slots=True)
class TextBlock:
    """Texts, ready for the backbone.

    `sizes` are the costs of the rows, int64 `(rows,)`, as `Prepared.size`; `row_of` is the row of each text, int64
    `(texts,)`, or `ALONE`. Equal texts share a row. `data` holds the rows in the model's own form.
    """

    sizes: NDArray[np.int64]
    row_of: NDArray[np.int64]
    data: Any


class LabelColumns(NamedTuple):
    """The labels of many texts, one text after another, `width` for each: places in `labels`, and scores."""

    labels: Sequence[str]
    width: int
    codes: list[int]
    scores: list[float]


#: The answers of a task for many texts: labels with scores, or vectors, float32 `(texts, width)`.
BlockAnswers: TypeAlias = LabelColumns | NDArray[np.float32]
