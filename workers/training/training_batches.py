"""Rows in batches for programs that run a model without a fleet: training, measuring, comparing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias, TypeVar

import msgspec
import numpy as np

from workers.models.interface.model import Model
from workers.models.interface.sample_inputs import usual_params

_Made = TypeVar("_Made")

#: A wrapper of a sequence of batches, such as `rich.progress.track`.
Watch: TypeAlias = Callable[[Iterable[list[int]]], Iterable[list[int]]]


def by_size(sizes: Sequence[float], cost: int, *, most_rows: int | None = None) -> Iterator[list[int]]:
    """Yield places of rows of similar sizes, the largest last, each batch within a padded cost and `most_rows`."""
    batch: list[int] = []
    for place in sorted(range(len(sizes)), key=lambda place: sizes[place]):
        if batch and ((len(batch) + 1) * sizes[place] > cost or len(batch) == most_rows):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def all_of(found: Sequence[_Made | Exception]) -> list[_Made]:
    """Return the values of `prepare_many` or `finish_many`. Raises the first exception among them."""
    whole: list[_Made] = []
    for one in found:
        if isinstance(one, Exception):
            raise one
        whole.append(one)
    return whole


def best_labels(
    model: Model,
    task: str,
    texts: Sequence[str],
    *,
    cost: int = 2048,
    params: msgspec.Struct | None = None,
    watch: Watch = iter,
) -> list[str]:
    """Return the best label of each text, by the serving code."""
    params = params or usual_params(model.spec.tasks[task])
    rows = all_of(model.prepare_many(texts, [{task: params}] * len(texts)))
    found: dict[int, str] = {}
    for places in watch(list(by_size([row.size for row in rows], cost))):
        outputs = model.forward(model.collate([rows[n] for n in places]), {task: np.arange(len(places))})[task]
        own = [rows[place] for place in places]
        answers = all_of(model.finish_many(model.spec.tasks[task], outputs, [params] * len(own), own))
        found.update((place, answer[0]["label"]) for place, answer in zip(places, answers, strict=True))
    return [found[place] for place in range(len(texts))]
