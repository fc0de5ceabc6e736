"""Predicts the seconds of a batch, from the batches that ran.

seconds = fixed + a · padded cost + b · rows + c · head rows, no part negative. Each served model has its own fit, made
online by least squares on the relative error, with exponentially fading weights, so that it follows a machine whose
speed changes. The ancestor is BentoML's dispatcher (a·n + b over the number of items, ``bentoml/_internal/marshal``).
This model uses the padded cost, since the cost of an item is its length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

#: The share of its weight that an observation keeps per batch: after 100 batches about an eighth is left.
FADING = 0.98

#: Predictions need at least this many observations.
ENOUGH = 5.0

#: A batch counts as at most this many times its prediction, so that a hiccup of the machine teaches little.
MOST_SURPRISE = 4.0

#: Batches that are alike do not tell the parts apart: the smaller penalty gives their time to the padded cost.
_RIDGE = np.array([1e-3, 1e-6, 1e-3, 1e-3])

_PARTS = len(_RIDGE)

Matrix: TypeAlias = NDArray[np.float64]

#: Fixed seconds, and seconds per unit of padded cost, per row, per head row.
Parts: TypeAlias = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class BatchShape:
    """The numbers that decide a batch's time: its padded cost, its rows, and the rows of all its heads together."""

    padded: int
    rows: int
    heads: int

    @property
    def parts(self) -> Matrix:
        return np.array([1.0, self.padded, self.rows, self.heads])


@dataclass(slots=True)
class _Sums:
    """Faded sums over the batches of one model, and the fitted parts: fixed, and per unit, row and head row."""

    n: float = 0.0
    products: Matrix = field(default_factory=lambda: np.zeros((_PARTS, _PARTS)))
    targets: Matrix = field(default_factory=lambda: np.zeros(_PARTS))
    fitted: Matrix | None = None

    def add(self, shape: BatchShape, seconds: float, fading: float) -> None:
        expected = self.predict(shape)
        if expected:
            seconds = min(seconds, MOST_SURPRISE * expected)
        weight = 1.0 / max(expected or seconds, 1e-6) ** 2
        parts = shape.parts
        self.n = self.n * fading + 1.0
        self.products = self.products * fading + weight * np.outer(parts, parts)
        self.targets = self.targets * fading + weight * seconds * parts
        self.fitted = None

    def predict(self, shape: BatchShape) -> float | None:
        fitted = self.fit()
        return None if fitted is None else float(fitted @ shape.parts)

    def fit(self) -> Matrix | None:
        """Return the parts, or None while too little is known."""
        if self.n < ENOUGH:
            return None
        if self.fitted is None:
            self.fitted = _fit(self.products, self.targets)
        return self.fitted


def _fit(products: Matrix, targets: Matrix) -> Matrix:
    """Fit by least squares. The most negative part is left out and the others are fitted again, until none is
    negative.
    """
    ridged = products + np.diag(np.diag(products) * _RIDGE)
    left = list(range(_PARTS))
    while left:
        try:
            found = np.linalg.solve(ridged[np.ix_(left, left)], targets[left])
        except np.linalg.LinAlgError:
            break
        if found.min() >= 0:
            fitted = np.zeros(_PARTS)
            fitted[left] = found
            return fitted
        del left[int(found.argmin())]
    return np.zeros(_PARTS)


class CostModel:
    """The costs of one device's models. Not thread-safe: the batcher's thread owns it. `fading` 1.0 forgets nothing."""

    def __init__(self, learned: Mapping[str, Mapping[str, Any]] | None = None, *, fading: float = FADING) -> None:
        self._fading = fading
        self._sums = {
            model: _Sums(
                float(sums["n"]), _numbers(sums["products"], _PARTS, _PARTS), _numbers(sums["targets"], _PARTS)
            )
            for model, sums in (learned or {}).items()
        }

    def observe(self, model: str, shape: BatchShape, seconds: float) -> None:
        """Learn from a batch that ran."""
        self._sums.setdefault(model, _Sums()).add(shape, seconds, self._fading)

    def inherit(self, model: str, like: str) -> None:
        """Start a model with the costs of another, until it has run."""
        if like in self._sums and model not in self._sums:
            known = self._sums[like]
            self._sums[model] = _Sums(known.n, known.products.copy(), known.targets.copy())

    def seconds(self, model: str, shape: BatchShape) -> float | None:
        """Predict the seconds of a batch, or return None while too little is known of the model."""
        sums = self._sums.get(model)
        return sums.predict(shape) if sums else None

    def parts(self, model: str) -> Parts | None:
        """Return (fixed seconds, seconds per unit of padded cost, per row, per head row); None while too little is
        known.
        """
        sums = self._sums.get(model)
        fitted = sums.fit() if sums else None
        return None if fitted is None else (float(fitted[0]), float(fitted[1]), float(fitted[2]), float(fitted[3]))

    def learned(self) -> dict[str, dict[str, Any]]:
        """Return the learned sums as plain values for `__init__`. Safe from another thread."""
        return {
            model: {"n": sums.n, "products": sums.products.tolist(), "targets": sums.targets.tolist()}
            for model, sums in list(self._sums.items())
        }


def _numbers(values: Any, *shape: int) -> Matrix:
    """Return saved numbers as an array. Raises ValueError if `learned` did not return them."""
    array = np.asarray(values, dtype=np.float64)
    if array.shape != shape or not np.isfinite(array).all():
        raise ValueError(f"no learned costs: {array.shape} where {shape} is wanted")
    return array
