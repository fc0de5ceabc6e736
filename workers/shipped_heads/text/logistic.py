"""Training of a logistic head: cross-validation chooses its layers and its regularisation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler

from workers.models.built_in.multitask.head_modules import LayersLinear

#: Rows of the `layers` feature of a six-layer encoder: 0 to 6 are means from the embeddings up, 7 is the last layer's
#: maximum, 8 its first token.
_CHOICES: tuple[tuple[int, ...], ...] = ((6,), (6, 7), (4, 5, 6), (4, 5, 6, 7), (0, 1, 2, 3, 4, 5, 6, 7, 8))
_STRENGTHS = (0.001, 0.01)
_FOLDS = 4


def train(
    values: NDArray[np.float32], wanted: NDArray[np.int64], groups: Sequence[str], *, seed: int, console: Console
) -> tuple[LayersLinear, float]:
    """Return a head for `values` `(texts, layers, width)` and its strength (scikit-learn's C). Groups stay together."""
    folds = list(StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=seed).split(values, wanted, groups))
    best = (-1.0, _CHOICES[0], _STRENGTHS[0])
    for rows, strength in product(_CHOICES, _STRENGTHS):
        flat = _flat(values, rows)
        score = float(np.mean([_score(flat, wanted, known, unseen, strength) for known, unseen in folds]))
        console.print(f"layers {rows}, C = {strength}: accuracy {score:.4f} by {_FOLDS}-fold cross-validation")
        if score > best[0]:
            best = (score, rows, strength)
    _, rows, strength = best
    flat = _flat(values, rows)
    scaler = StandardScaler().fit(flat)
    return _as_module(rows, scaler, _fit(scaler.transform(flat), wanted, strength)), strength


def _flat(values: NDArray[np.float32], rows: Sequence[int]) -> NDArray[np.float32]:
    return values[:, list(rows)].reshape(len(values), -1)


def _fit(scaled: NDArray[np.float32], wanted: NDArray[np.int64], strength: float) -> LogisticRegression:
    return LogisticRegression(C=strength, max_iter=500).fit(scaled, wanted)


def _score(
    flat: NDArray[np.float32],
    wanted: NDArray[np.int64],
    known: NDArray[np.int64],
    unseen: NDArray[np.int64],
    strength: float,
) -> float:
    scaler = StandardScaler().fit(flat[known])
    fitted = _fit(scaler.transform(flat[known]), wanted[known], strength)
    return float((fitted.predict(scaler.transform(flat[unseen])) == wanted[unseen]).mean())


def _as_module(rows: Sequence[int], scaler: StandardScaler, fitted: LogisticRegression) -> LayersLinear:
    """Fold the standardisation into the weights, so that serving is one matrix product."""
    weights: NDArray[np.float64] = fitted.coef_
    bias: NDArray[np.float64] = fitted.intercept_
    if len(fitted.classes_) == 2:  # one row of weights serves both classes: softmax over ±half of it is its sigmoid
        weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    folded = weights / scaler.scale_
    module = LayersLinear(torch.tensor(rows), folded.shape[1], folded.shape[0])
    with torch.no_grad():
        module.out.weight.copy_(torch.tensor(folded))
        module.out.bias.copy_(torch.tensor(bias - folded @ scaler.mean_))
    return module
