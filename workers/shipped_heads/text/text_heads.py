"""Train the built-in text heads: ``python -m workers.shipped_heads.text.text_heads [--out FOLDER] [--task NAME]``.

All heads share the encoder, which stays unchanged, so that they need a single pass. Choices are made
without the test part; only `workers.training.evaluate` reads it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from workers.models.built_in.multitask import head_file
from workers.models.built_in.text.text_model import BUILTIN_HEADS
from workers.models.sources import model_source
from workers.shipped_heads.text import attention, logistic
from workers.training import data, head_features
from workers.training.data import SEED, Example, Split

Labels = tuple[str, ...]


def train(task: str, cache: Path, out: Path, console: Console) -> Path:
    """Train one task's head and write it under `out`; return its file."""
    parts = data.split(data.read(task, cache), seed=SEED)
    labels = tuple(sorted({example.label for example in parts.train}))
    path = out / task / head_file.FILE
    recipe = _attention if task == "sentiment" else _logistic
    recipe(task, cache, parts, labels, path, console)
    return path


def _attention(task: str, cache: Path, parts: Split, labels: Labels, path: Path, console: Console) -> None:
    """For short texts whose meaning depends on single words: two to three points better than the layers' means."""
    model = head_features.text_model(cache)
    known = head_features.tokens(model, _texts(parts.train), f"{task}: training"), _numbers(parts.train, labels)
    unseen = (
        head_features.tokens(model, _texts(parts.validation), f"{task}: validation"),
        _numbers(parts.validation, labels),
    )
    module = attention.train(known, unseen, labels=len(labels), seed=SEED, console=console)
    head_file.save(module, path, kind="attention", labels=labels, seed=SEED)


def _logistic(task: str, cache: Path, parts: Split, labels: Labels, path: Path, console: Console) -> None:
    """For long texts, whose subject all words carry."""
    examples = [*parts.train, *parts.validation]
    values = head_features.layers(
        head_features.text_model(cache), data.texts_as_served(examples, task), f"{task}: training"
    )
    module, strength = logistic.train(
        values, _numbers(examples, labels), [example.group for example in examples], seed=SEED, console=console
    )
    head_file.save(module, path, kind="layers", labels=labels, seed=SEED, strength=strength)


def _texts(examples: Sequence[Example]) -> list[str]:
    return [example.text for example in examples]


def _numbers(examples: Sequence[Example], labels: Labels) -> NDArray[np.int64]:
    return np.array([labels.index(example.label) for example in examples], dtype=np.int64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=BUILTIN_HEADS, help="folder for the heads (default: %(default)s)")
    parser.add_argument("--task", action="append", choices=list(data.READERS), help="only this one; may be repeated")
    asked = parser.parse_args()
    console = Console()
    for task in asked.task or list(data.READERS):
        console.print(f"wrote {train(task, model_source.cache_folder(), asked.out, console)}")


if __name__ == "__main__":
    main()
