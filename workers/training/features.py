"""Texts to the frozen encoder's features, through the very code that serves them. Kept in the cache: it takes minutes."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

from producers.catalogue import TextClassificationParams
from workers.models import sources
from workers.models.model import ModelSpec, Prepared
from workers.models.text import TextModel

_BATCH_TOKENS = 2048


class Encoder:
    """The built-in text model's backbone without its heads."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._model: TextModel | None = None

    def features(self, texts: Sequence[str], what: str) -> NDArray[np.float16]:
        """Return each text's `layers` feature, flattened: `(texts, width)`. Longer texts are cut. `what` is shown."""
        model = self._loaded()
        digest = hashlib.blake2b("\0".join((model.spec.revision, *texts)).encode(), digest_size=8).hexdigest()
        kept = self._cache / "features" / f"{what}-{digest}.npy"
        if not kept.is_file():
            kept.parent.mkdir(parents=True, exist_ok=True)
            computed = self._compute(model, texts, what)
            partial = kept.with_suffix(".partial")
            with partial.open("wb") as file:
                np.save(file, computed)
            partial.replace(kept)
        found: NDArray[np.float16] = np.load(kept)
        return found

    def _loaded(self) -> TextModel:
        if self._model is None:
            table = tomllib.loads(resources.files("workers.models").joinpath("builtin.toml").read_text("utf-8"))
            source = sources.parse(table["models"]["text"]["source"], where="builtin.toml: models.text.source")
            pulled = sources.pull(source, self._cache)
            self._model = TextModel(ModelSpec("text", pulled.folder, pulled.revision, tasks={}))
            self._model.load("cpu")
        return self._model

    def _compute(self, model: TextModel, texts: Sequence[str], what: str) -> NDArray[np.float16]:
        rows = [model.prepare(text, {"any": TextClassificationParams(truncation=True)}) for text in texts]
        found: list[NDArray[np.float16] | None] = [None] * len(rows)
        with torch.inference_mode():
            for places in track(list(_by_length(rows)), description=f"encode {what}"):
                arrays = model.collate([rows[place] for place in places])
                layers = model.encode({name: torch.from_numpy(array) for name, array in arrays.items()})["layers"]
                for place, values in zip(places, layers.flatten(1).half().numpy(), strict=True):
                    found[place] = values
        return np.stack([values for values in found if values is not None])


def _by_length(rows: Sequence[Prepared]) -> Iterator[list[int]]:
    """Yield places of rows, long ones last, so that a batch is hardly padded and at most `_BATCH_TOKENS` large."""
    batch: list[int] = []
    for place in sorted(range(len(rows)), key=lambda place: rows[place].size):
        if batch and (len(batch) + 1) * rows[place].size > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(place)
    yield batch
