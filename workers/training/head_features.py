"""Texts to the frozen encoder's features, by the serving code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

from producers.wire.catalogue import Task
from producers.wire.kinds.text import TextClassificationParams
from workers.models.built_in.multitask.head_modules import TokenAttention
from workers.models.built_in.text.text_model import TextModel
from workers.models.interface.model import ModelSpec
from workers.models.sources import model_source
from workers.training import data
from workers.training.training_batches import all_of, by_size

BATCH_TOKENS = 2048

Features = dict[str, torch.Tensor]


def encoder(cache: Path) -> model_source.Pulled:
    """Return the built-in text model's encoder, after pulling it into `cache` if needed."""
    return data.pull_built_in("models", "text", cache)


def text_model(cache: Path, tasks: Mapping[str, Task] = MappingProxyType({}), heads: Path | None = None) -> TextModel:
    """Return the built-in text model with the heads of `tasks`, loaded, after pulling it into `cache` if needed.

    `heads` is a folder whose heads take precedence over the built-in ones.
    """
    pulled = encoder(cache)
    options = {"heads": str(heads)} if heads else {}
    model = TextModel(ModelSpec("text", pulled.folder, pulled.revision, tasks, options))
    model.load("cpu")
    return model


def layers(model: TextModel, texts: Sequence[str], what: str) -> NDArray[np.float32]:
    """Return each text's `layers` feature: `(texts, layers, width)`. The progress bar shows `what`."""
    found = each(model, texts, lambda features, row, _: features["layers"][row].numpy(), what)
    return np.stack(found)


def tokens(model: TextModel, texts: Sequence[str], what: str) -> list[NDArray[np.float16]]:
    """Return each text's tokens in the layers that an attention head reads: `(tokens, layers * width)`."""
    names = TokenAttention.reads[1:]

    def cut(features: Features, row: int, size: int) -> NDArray[np.float16]:
        joined: NDArray[np.float16] = torch.cat([features[name][row, :size] for name in names], -1).half().numpy()
        return joined

    return each(model, texts, cut, what)


def each(
    model: TextModel, texts: Sequence[str], take: Callable[[Features, int, int], NDArray[Any]], what: str
) -> list[NDArray[Any]]:
    """Run the backbone over texts, cut at its limit; return the value of `take` on (features, row, tokens) for each."""
    rows = all_of(model.prepare_many(texts, [{"any": TextClassificationParams(truncation=True)}] * len(texts)))
    found: dict[int, NDArray[Any]] = {}
    with torch.inference_mode():
        for places in track(list(by_size([row.size for row in rows], BATCH_TOKENS)), description=f"encode {what}"):
            arrays = model.collate([rows[place] for place in places])
            features = model.encode({name: torch.from_numpy(array) for name, array in arrays.items()})
            for row, place in enumerate(places):
                found[place] = take(features, row, rows[place].size)
    return [found[place] for place in range(len(rows))]
