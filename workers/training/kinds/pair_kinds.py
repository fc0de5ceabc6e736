"""Texts that are compared by their vectors: similarity with a number, and ranking with right and wrong texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from producers.wire.errors import InvalidInput
from producers.wire.kinds.text import SentenceSimilarityParams
from producers.wire.messages import SentencesInput
from workers.models.interface.model import Array
from workers.training.kinds.labelled_kind import LabelledKind, NumberLabels, Pair, listed

if TYPE_CHECKING:
    import torch

#: The factor of a cosine before the softmax over texts, as in sentence-transformers.
_SCALE = 20.0


class SimilarityKind(NumberLabels):
    """How alike two texts are, -1 to 1: the squared error of the cosine of their vectors."""

    served = "sentence-similarity"
    input_columns = ("sentence1", "sentence2")
    label_column = "score"
    metric = "spearman"
    settings = ("scale",)
    width = 2

    @property
    def params(self) -> SentenceSimilarityParams:
        return SentenceSimilarityParams(truncation=True)

    def content(self, row: Mapping[str, Any], origin: str) -> SentencesInput:
        first, second = (self._text(row, column, origin) for column in self.columns)
        return SentencesInput(first, (second,))

    def read_label(self, value: Any, row: Mapping[str, Any], where: str) -> float:
        number = self.number(value, where) / self.table.scale
        if not -1 <= number <= 1:
            remedy = f"divide by the largest label: {self.where}.scale = 5"
            raise InvalidInput(where, f"is {number:g} after the division by {self.table.scale:g}, not -1 to 1", remedy)
        return number

    def losses(self, values: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional

        squares: torch.Tensor = (functional.cosine_similarity(values[:, 0], values[:, 1]) - targets) ** 2
        return squares

    def scores(self, pairs: Sequence[Pair]) -> dict[str, float]:
        found, wanted = np.array([(answer[0], wanted) for answer, wanted in pairs]).T
        return {"spearman": _correlation(_ranks(found), _ranks(wanted)), "pearson": _correlation(found, wanted)}


class RankingKind(LabelledKind):
    """The right text for a text, among wrong ones: cross-entropy over the cosines of their vectors.

    The label's column has the right text. Wrong texts are a column's, or right texts of other rows.
    """

    served = "sentence-similarity"
    input_columns = ("query",)
    label_column = "positive"
    metric = "mrr"
    settings = ("negatives",)

    def __init__(self, name: str, table: Any, where: str) -> None:
        super().__init__(name, table, where)
        self._others: tuple[str, ...] = ()

    @property
    def width(self) -> int:  # type: ignore[override]
        return 2 + self._count

    _count = 0

    @property
    def params(self) -> SentenceSimilarityParams:
        return SentenceSimilarityParams(truncation=True)

    def content(self, row: Mapping[str, Any], origin: str) -> SentencesInput:
        query, right = self._text(row, self.columns[0], origin), self._text(row, self.label_from, origin)
        return SentencesInput(query, (right, *self._wrong(row, query, right, origin)))

    def _wrong(self, row: Mapping[str, Any], query: str, right: str, origin: str) -> Sequence[str]:
        if isinstance(self.table.negatives, int):
            return self._drawn(query, right)
        value = row.get(self.table.negatives)
        where = f"{origin}: {self.table.negatives}"
        texts = [value] if isinstance(value, str) and not value.lstrip().startswith("[") else listed(value, where)
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise InvalidInput(where, "has no wrong text, or an empty one", "give each row as many wrong texts")
        if self._count and len(texts) != self._count:
            raise InvalidInput(where, f"has {len(texts)} wrong texts, not {self._count}", "give each row as many")
        self._count = self._count or len(texts)
        return texts

    def _drawn(self, query: str, right: str) -> Sequence[str]:
        """Return right texts of other rows; the same ones for the same row in every process."""
        from random import Random

        if not self._others:  # the rows are read for the first time
            return ()
        others = [text for text in Random(f"{query}\n{right}").sample(self._others, self._count + 1) if text != right]  # noqa: S311
        return others[: self._count]

    def read_label(self, value: Any, row: Mapping[str, Any], where: str) -> str:
        if not isinstance(value, str):
            raise InvalidInput(where, f"is {type(value).__name__}, not text")
        return value

    def learn(self, labels: Sequence[str]) -> None:
        if isinstance(self.table.negatives, int):
            self._others, self._count = tuple(dict.fromkeys(labels)), self.table.negatives
            if len(self._others) <= self._count:
                problem = f"is {self._count}, but the training rows have {len(self._others)} different right texts"
                raise InvalidInput(f"{self.where}.negatives", problem, "ask for fewer")

    def targets(self, label: str, aside: Any) -> Array:
        return np.zeros(1, dtype=np.int64)

    @property
    def blank(self) -> Array:
        return np.zeros(1, dtype=np.int64)

    def losses(self, values: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional

        cosines = functional.cosine_similarity(values[:, :1], values[:, 1:], dim=-1)
        return functional.cross_entropy(cosines * _SCALE, targets, reduction="none")

    def scores(self, pairs: Sequence[Pair]) -> dict[str, float]:
        ranks = np.array([sum(other >= answer[0] for other in answer) for answer, _ in pairs])
        return {"mrr": float((1 / ranks).mean()), "first": float((ranks == 1).mean())}


def _ranks(values: Array) -> Array:
    """Return ranks, the mean rank for equal values."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[places])


def _correlation(one: Array, other: Array) -> float:
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])
