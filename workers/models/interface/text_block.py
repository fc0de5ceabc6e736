"""Blocks: many texts with the same tasks and parameters, prepared and finished together, without an object for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

#: The row of an input that is not part of its block: the input is prepared alone.
ALONE = -1


#: The methods for items whose answers a block repeats: a class of one's own that changes any has no blocks.
OF_ITEMS = ("prepare", "prepare_many", "cost", "collate", "finish", "finish_many")


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


def label_columns(labels: Sequence[str], scores: NDArray[Any], top_k: int | None, digits: int) -> LabelColumns:
    """Return the `top_k` best labels (None: all) of each text, `(texts, labels)`, best first, with rounded scores.

    Equal scores keep the labels' order. `labels` of the columns are those that occur.
    """
    best = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    used, codes = np.unique(best, return_inverse=True)
    chosen = np.take_along_axis(scores, best, axis=1).ravel().tolist()
    rounded = [round(float(score), digits) for score in chosen]
    return LabelColumns([labels[n] for n in used], best.shape[1], codes.ravel().tolist(), rounded)


#: The answers of a task for many texts: labels with scores, or vectors, float32 `(texts, width)`.
BlockAnswers: TypeAlias = LabelColumns | NDArray[np.float32]
