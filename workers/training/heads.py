"""Train the built-in text heads: ``python -m workers.training.heads [--out FOLDER] [--task NAME]``.

The encoder stays as it is, shared by all heads, so that they come from one pass. What there is to choose is chosen
on the validation part; the test part is looked at by `workers.training.evaluate` only.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from workers.models import head, sources
from workers.models.head_modules import LayersLinear
from workers.models.text import BUILTIN_HEADS
from workers.training import attention, data, features
from workers.training.data import Example, Split

SEED = 20261122

Labels = tuple[str, ...]

_STRENGTHS = (0.0003, 0.001, 0.003, 0.01)


def texts_as_served(examples: Sequence[Example], task: str) -> list[str]:
    """Return the texts to train on. Every second mail goes without its subject: users send both forms."""
    if task != "spam":
        return [example.text for example in examples]
    return [without_subject(example.text) if n % 2 else example.text for n, example in enumerate(examples)]


def without_subject(mail: str) -> str:
    return mail.partition("\n\n")[2].strip() or mail


def train(task: str, cache: Path, out: Path, console: Console) -> Path:
    """Train one task's head and write it under `out`; return its file."""
    parts = data.split(data.read(task, cache), seed=SEED)
    labels = tuple(sorted({example.label for example in parts.train}))
    path = out / task / head.FILE
    recipe = _attention if task == "sentiment" else _logistic
    recipe(task, cache, parts, labels, path, console)
    return path


def _attention(task: str, cache: Path, parts: Split, labels: Labels, path: Path, console: Console) -> None:
    """For short texts whose turn hangs on single words: better than the layers' means by two to three points."""
    model = features.text_model(cache)
    known = features.tokens(model, _texts(parts.train), f"{task}: training"), _numbers(parts.train, labels)
    unseen = features.tokens(model, _texts(parts.validation), f"{task}: validation"), _numbers(parts.validation, labels)
    module = attention.train(known, unseen, labels=len(labels), seed=SEED, console=console)
    head.save(module, path, kind="attention", labels=labels, seed=SEED)


def _logistic(task: str, cache: Path, parts: Split, labels: Labels, path: Path, console: Console) -> None:
    """For long texts, whose subject all words carry. The strength of regularisation is chosen by validation."""
    model = features.text_model(cache)
    known = features.layers(model, texts_as_served(parts.train, task), f"{task}: training")
    unseen = features.layers(model, texts_as_served(parts.validation, task), f"{task}: validation")
    wanted, right = _numbers(parts.train, labels), _numbers(parts.validation, labels)
    scaler = StandardScaler().fit(known)
    best: tuple[float, float, Any] = (-1.0, 0.0, None)
    for strength in _STRENGTHS:
        fitted = LogisticRegression(C=strength, max_iter=500).fit(scaler.transform(known), wanted)
        score = float((fitted.predict(scaler.transform(unseen)) == right).mean())
        console.print(f"C = {strength}: validation accuracy {score:.4f}")
        if score > best[0]:
            best = (score, strength, fitted)
    module = _as_module(scaler, best[2], len(labels))
    head.save(module, path, kind="layers", labels=labels, seed=SEED, strength=best[1])


def _texts(examples: Sequence[Example]) -> list[str]:
    return [example.text for example in examples]


def _numbers(examples: Sequence[Example], labels: Labels) -> NDArray[np.int64]:
    return np.array([labels.index(example.label) for example in examples], dtype=np.int64)


def _as_module(scaler: StandardScaler, fitted: LogisticRegression, labels: int) -> LayersLinear:
    """Fold the standardisation into the weights, so that serving is one matrix product."""
    weights: NDArray[np.float64] = fitted.coef_
    bias: NDArray[np.float64] = fitted.intercept_
    if labels == 2:  # one row of weights stands for both: softmax over ±half of it is its sigmoid
        weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    folded = weights / scaler.scale_
    module = LayersLinear(folded.shape[1], labels)
    module.load_state_dict(
        {
            "out.weight": torch.tensor(folded, dtype=torch.float32),
            "out.bias": torch.tensor(bias - folded @ scaler.mean_, dtype=torch.float32),
        }
    )
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=BUILTIN_HEADS, help="folder for the heads (default: %(default)s)")
    parser.add_argument("--task", action="append", choices=list(data.READERS), help="only this one; may be repeated")
    asked = parser.parse_args()
    console = Console()
    for task in asked.task or list(data.READERS):
        console.print(f"wrote {train(task, sources.cache_folder(), asked.out, console)}")


if __name__ == "__main__":
    main()
