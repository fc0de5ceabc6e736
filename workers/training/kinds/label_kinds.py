"""Labels of a whole text: classes, several labels at once, and numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from producers.wire.errors import InvalidInput
from producers.wire.kinds.text import TextClassificationParams
from workers.models.interface.model import Array
from workers.training.kinds.labelled_kind import IGNORED, LabelledKind, NumberLabels, Pair, listed, unknown_label

if TYPE_CHECKING:
    import torch

#: The least number of right labels for a choice of a threshold, and the least threshold.
_ENOUGH, _LEAST = 20, 1e-3


class TextLabels(LabelledKind):
    """The base of the three; all are served as text classification."""

    served = "text-classification"
    heads: ClassVar[tuple[str, ...]] = ("attention", "transformers")

    #: transformers' name of the loss.
    problem: str

    @property
    def config(self) -> dict[str, Any]:
        return {**super().config, "problem_type": self.problem}

    def named(self, value: Any, where: str) -> str:
        """Return a label's name; numbers count in the recipe's `labels`. Raises InvalidInput."""
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, str) and value.strip().isdecimal() and value.strip() not in self.table.labels:
            value = int(value) if self.table.labels else value  # a CSV has only texts
        if isinstance(value, int) and self.table.labels:
            if not 0 <= value < len(self.table.labels):
                last = len(self.table.labels) - 1
                raise InvalidInput(where, f"is {value}", f"it must be 0 to {last}, a place in {self.where}.labels")
            return self.table.labels[value]
        if not isinstance(value, str | int):
            raise InvalidInput(where, f"is {type(value).__name__}, not a label", "write a text or a whole number")
        name = str(value).strip()
        if self.table.labels and name not in self.table.labels:
            raise InvalidInput(where, f"is {name!r}", f"it must be one of {', '.join(self.table.labels)}")
        return name

    def collect(self, found: set[str], least: int) -> tuple[str, ...]:
        """Return the labels in order. Raises InvalidInput for too few, or a label of the recipe without rows."""
        if lacking := [label for label in self.table.labels if label not in found]:
            raise InvalidInput(
                f"{self.where}.labels", f"no training row has {lacking[0]!r}", "take it out, or add rows"
            )
        if len(found) < least:
            there = f"only {min(found)!r}" if found else "no label"
            raise InvalidInput(
                f"{self.where}.label", f"the training rows have {there}", f"there must be {least} or more"
            )
        return self.table.labels or tuple(sorted(found))


class ClassificationKind(TextLabels):
    """Exactly one label applies: softmax and cross-entropy."""

    metric = "accuracy"
    problem = "single_label_classification"
    settings = ("labels",)

    def read_label(self, value: Any, row: Mapping[str, Any], where: str) -> str:
        return self.named(value, where)

    def learn(self, labels: Sequence[str]) -> None:
        self.labels = self.collect(set(labels), 2)

    def names(self, label: str) -> tuple[str, ...]:
        return (label,)

    def check(self, label: str, where: str) -> None:
        if label not in self.labels:
            raise unknown_label(label, where)

    def targets(self, label: str, aside: Any) -> Array:
        return np.array([self.labels.index(label)])

    @property
    def blank(self) -> Array:
        return np.array([IGNORED])

    def losses(self, values: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional

        return functional.cross_entropy(values[:, 0], targets, reduction="none", ignore_index=IGNORED)

    def scores(self, pairs: Sequence[Pair]) -> dict[str, float]:
        found = [(answer[0]["label"], wanted) for answer, wanted in pairs]
        accuracy = sum(label == wanted for label, wanted in found) / len(found)
        labels = sorted({label for pair in found for label in pair})
        return {"accuracy": accuracy, "macro_f1": float(np.mean([_f1(found, label) for label in labels]))}

    def baseline(self, labels: Sequence[str], wanted: Sequence[str]) -> float:
        [(common, _)] = Counter(labels).most_common(1)
        return sum(label == common for label in wanted) / len(wanted)


class MultiLabelKind(TextLabels):
    """Any number of labels applies: sigmoid and binary cross-entropy. A label is given if its score is over 0.5.

    Probabilities of rare labels are rarely over 0.5, and F1 is best at a lower threshold (Lipton, Elkan and
    Narayanaswamy, 2014). So the threshold of the best F1 on the validation part is moved to 0.5. A new head begins with
    each label's share of the rows (Lin et al., 2017, section 3.3): from 0.5, a short training would only learn the
    shares.
    """

    metric = "micro_f1"
    problem = "multi_label_classification"
    settings = ("labels",)

    @property
    def params(self) -> TextClassificationParams:
        return TextClassificationParams(top_k=None)

    def read_label(self, value: Any, row: Mapping[str, Any], where: str) -> tuple[str, ...]:
        """Read a list, a list as JSON, or a text with semicolons."""
        if isinstance(value, str) and not value.lstrip().startswith("["):
            parts: list[Any] = [part for part in value.split(";") if part.strip()]
        else:
            parts = listed(value, where)
        return tuple(sorted({self.named(part, where) for part in parts}))

    def learn(self, labels: Sequence[tuple[str, ...]]) -> None:
        self.labels = self.collect({name for label in labels for name in label}, 1)
        counts = Counter(name for label in labels for name in label)
        shares = np.array([counts[name] for name in self.labels]) / len(labels)
        shares = shares.clip(0.5 / len(labels), 1 - 0.5 / len(labels))
        self.first_scores = tuple(np.log(shares / (1 - shares)).tolist())

    def names(self, label: tuple[str, ...]) -> tuple[str, ...]:
        return label

    def check(self, label: tuple[str, ...], where: str) -> None:
        if unknown := [name for name in label if name not in self.labels]:
            raise unknown_label(unknown[0], where)

    def targets(self, label: tuple[str, ...], aside: Any) -> Array:
        return np.array([[name in label for name in self.labels]], dtype=np.float32)

    @property
    def blank(self) -> Array:
        return np.zeros((1, len(self.labels)), dtype=np.float32)

    def losses(self, values: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional

        return functional.binary_cross_entropy_with_logits(values[:, 0], targets, reduction="none").mean(1)

    def scores(self, pairs: Sequence[Pair]) -> dict[str, float]:
        found = [({one["label"] for one in answer if one["score"] > 0.5}, set(wanted)) for answer, wanted in pairs]
        return {
            "micro_f1": f1(found),
            "exact": sum(given == wanted for given, wanted in found) / len(found),
            "accuracy": 1 - sum(len(given ^ wanted) for given, wanted in found) / len(found) / len(self.labels),
        }

    def progress(self, pairs: Sequence[Pair]) -> float:
        scores, wanted = _scored(pairs)
        return _best_threshold(scores, wanted)[1] if self._chooses(wanted) else super().progress(pairs)

    settles = True

    def _chooses(self, wanted: Array) -> bool:
        return self.settles and int(wanted.sum()) >= _ENOUGH

    def settle(self, pairs: Sequence[Pair]) -> None:
        """Choose one threshold of all labels: thresholds by label fit a small validation part by chance."""
        scores, wanted = _scored(pairs)
        if self._chooses(wanted):
            threshold = min(max(_best_threshold(scores, wanted)[0], _LEAST), 1 - _LEAST)
            self.units = 1.0, -math.log(threshold / (1 - threshold))

    def baseline(self, labels: Sequence[tuple[str, ...]], wanted: Sequence[tuple[str, ...]]) -> float:
        """Return the micro-F1 of giving always the labels that more than half of the rows have."""
        counts = Counter(name for label in labels for name in label)
        common = {name for name, count in counts.items() if count > len(labels) / 2}
        return f1([(common, set(label)) for label in wanted])


class RegressionKind(NumberLabels, TextLabels):
    """A number: the squared error, in units of the training labels' deviation."""

    metric = "r2"
    problem = "regression"

    def read_label(self, value: Any, row: Mapping[str, Any], where: str) -> float:
        return self.number(value, where)

    def learn(self, labels: Sequence[float]) -> None:
        self.labels = (self.name,)
        self.units = float(np.std(labels)), float(np.mean(labels))
        if not self.units[0] or min(labels) == max(labels):  # whose deviation may be rounding
            problem = f"all training rows have {labels[0]}"
            raise InvalidInput(f"{self.where}.label", problem, "there must be several values")

    def answered(self, answer: Any) -> float:
        """Return the number in a worker's answer."""
        return float(answer[0]["score"])

    def losses(self, values: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        squares: torch.Tensor = ((values[:, 0, 0] - targets) / self.units[0]) ** 2
        return squares

    def scores(self, pairs: Sequence[Pair]) -> dict[str, float]:
        found, wanted = np.array([(self.answered(answer), wanted) for answer, wanted in pairs]).T
        left, whole = float(((found - wanted) ** 2).sum()), float(((wanted - wanted.mean()) ** 2).sum())
        varies = wanted.min() < wanted.max()  # else `whole` may be rounding
        return {"r2": 1 - left / whole if varies else 0.0, "mae": float(np.abs(found - wanted).mean())}

    def progress(self, pairs: Sequence[Pair]) -> float:
        """Return R² by the deviation of the training labels: those of a small validation part may all be alike."""
        found, wanted = np.array([(self.answered(answer), wanted) for answer, wanted in pairs]).T
        return 1 - float(np.square((found - wanted) / self.units[0]).mean())

    def baseline(self, labels: Sequence[float], wanted: Sequence[float]) -> float:
        return 0.0


def f1(pairs: Sequence[tuple[set[Any], set[Any]]]) -> float:
    """Return the F1 of sets that were found and wanted, over all pairs together."""
    right = sum(len(found & wanted) for found, wanted in pairs)
    every = sum(len(found) + len(wanted) for found, wanted in pairs)
    return 2 * right / every if every else 1.0


def _scored(pairs: Sequence[Pair]) -> tuple[Array, Array]:
    """Return the scores of all labels of all rows, and whether they are right."""
    found = [(one["score"], one["label"] in wanted) for answer, wanted in pairs for one in answer]
    scores, right = np.array(found, dtype=np.float64).reshape(-1, 2).T
    return scores, right > 0


def _best_threshold(scores: Array, wanted: Array) -> tuple[float, float]:
    """Return the threshold over which scores have the best F1, halfway to the next one, and that F1."""
    order = np.argsort(-scores, kind="stable")
    ranked = np.append(scores[order], 0.0)
    right = np.cumsum(wanted[order])
    each = 2 * right / (np.arange(1, len(order) + 1) + max(1, wanted.sum()))
    each[ranked[:-1] == ranked[1:]] = 0  # equal scores cannot be parted
    best = int(np.argmax(each))
    return float(ranked[best : best + 2].mean()), float(each[best])


def _f1(found: Sequence[tuple[str, str]], label: str) -> float:
    right = sum(given == wanted == label for given, wanted in found)
    return 2 * right / sum((given == label) + (wanted == label) for given, wanted in found)
