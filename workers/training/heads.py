"""Train the built-in text heads: ``python -m workers.training.heads [--out FOLDER] [--task NAME]``.

Each head is a logistic regression over the frozen encoder's layers: the encoder stays shared and unchanged, so all
heads come from one pass. The strength of regularisation is chosen on the validation part; the test part is not looked at here.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from workers.models import head, sources
from workers.models.head_modules import LayersLinear
from workers.models.text import BUILTIN_HEADS
from workers.training import data
from workers.training.data import Example
from workers.training.features import Encoder

SEED = 20261122

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
    encoder = Encoder(cache)
    known = encoder.features(texts_as_served(parts.train, task), f"{task}-train").astype(np.float32)
    unseen = encoder.features(texts_as_served(parts.validation, task), f"{task}-validation").astype(np.float32)
    wanted = np.array([labels.index(example.label) for example in parts.train])
    right = np.array([labels.index(example.label) for example in parts.validation])
    scaler = StandardScaler().fit(known)
    best: tuple[float, float, LogisticRegression] = (-1.0, 0.0, None)
    for strength in _STRENGTHS:
        fitted = LogisticRegression(C=strength, max_iter=500, random_state=SEED).fit(scaler.transform(known), wanted)
        score = float((fitted.predict(scaler.transform(unseen)) == right).mean())
        console.print(f"{task}: C={strength}: validation accuracy {score:.4f}")
        if score > best[0]:
            best = (score, strength, fitted)
    module = _as_module(scaler, best[2], len(labels))
    path = out / task / head.FILE
    head.save(module, path, kind="layers", labels=labels, seed=SEED, strength=best[1])
    return path


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
