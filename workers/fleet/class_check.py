"""Tries a model's class on samples before a worker starts: the same calls, checks and device process as in a worker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from producers.wire.errors import ArgosyError, ConfigurationError
from producers.wire.kinds.custom import CUSTOM
from workers.batching.batcher import Batcher
from workers.batching.planning.policy import Budget
from workers.batching.planning.waiting_pool import Waiting
from workers.batching.roster import ServedModel
from workers.batching.serving import served_models
from workers.batching.steady_clock import steady_time
from workers.batching.work import Computed, Entry, Failed
from workers.device.devices import Device
from workers.fleet.single_model import running
from workers.models.interface import class_lookup, returned
from workers.models.interface.class_calls import ClassCalls
from workers.models.interface.model import Model, tried
from workers.models.interface.sample_inputs import Item
from workers.settings import ModelSettings, Settings

#: The number of samples, if the class makes as many as it is asked for.
SAMPLES = 6

#: Padding and another order of sums may change a number by this share.
TOLERANCE = 1e-3

#: The answers of an item by task. An error takes the place of an answer.
Answers = dict[str, Any]


def check(settings: Settings, name: str, device: Device) -> list[str]:
    """Return the problems of a model's class, each as a sentence; none if it is right. Takes as long as its loading."""
    try:
        wanted = served_models.model_to_load(settings, name)
        model = served_models.build(wanted)
        chosen = settings.models[name]
        served = ServedModel(
            model, served_models.revision_of(model), Budget(chosen.batch_cost or model.default_cost, chosen.batch_rows)
        )
        if any(task.kind is CUSTOM for task in model.spec.tasks.values()):
            model.schemas()
        if not model.spec.tasks:
            raise ConfigurationError(f"models.{name}.tasks: is empty; a model without tasks serves nothing")
        items = _samples(model)
    except ArgosyError as error:
        return [str(error)]
    except Exception as error:  # noqa: BLE001 - `revision` and `default_cost` may be the class's own code
        return [returned.said(error, f"{name}: {wanted.class_} cannot be made")]
    with running(settings, wanted, served, device, name="check") as batcher:
        if batcher.out_of_service:
            return [batcher.out_of_service]
        trial = _Trial(batcher, served, ClassCalls(settings.worker.batch_timeout_s))
        alone = [trial.answers([item])[0] for item in items]
        together = trial.answers(items)
    problems = [str(own) for answers in (*alone, *together) for own in answers.values() if isinstance(own, Exception)]
    return [*dict.fromkeys(problems)] or [*_differences(model, alone, together), *trial.equal_digests()]


def settings_for(settings: Settings, class_: str, kind: str | None, source: Path | None) -> tuple[Settings, str]:
    """Return settings with a model of a class, and its name. Raises ConfigurationError."""
    name = class_.partition(":")[2]
    if kind is None:
        own = tried(class_lookup.find, class_)
        if isinstance(own, Exception):
            raise ConfigurationError(f"{class_}: {type(own).__name__}: {returned.text(own)}") from own
        if getattr(own, "kind", None) is None:
            raise ConfigurationError(f"{class_}: names no `kind`; give the kind of its task by --kind")
        kind = own.kind.name
    files = {"path": str(source.absolute())} if source else {}
    model = ModelSettings(class_=class_, source=files, tasks={name: kind})
    found = msgspec.structs.replace(settings, models={**settings.models, name: model})
    _ = found.catalogue  # raises for an unknown kind
    return found, name


def _samples(model: Model) -> Sequence[Item]:
    found = tried(model.samples, SAMPLES)
    if isinstance(found, NotImplementedError):
        raise ConfigurationError(f"{type(model).__name__}.samples: {found}, to have it tried")
    if isinstance(found, Exception):
        raise ConfigurationError(returned.said(found, f"{type(model).__name__}.samples failed"))
    if not isinstance(found, list | tuple) or not found or any(not _is_item(one) for one in found):
        remedy = "return [(content, {task: parameters}), …]"
        raise returned.wrong(model, "samples", f"no list of items; {remedy}")
    return found


def _is_item(found: object) -> bool:
    return isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], Mapping)


class _Trial:
    """Runs items as a worker does."""

    def __init__(self, batcher: Batcher, served: ServedModel, calls: ClassCalls) -> None:
        self._batcher = batcher
        self._served = served
        self._model = served.model
        self._calls = calls
        self._entries: list[Entry] = []

    def answers(self, items: Sequence[Item]) -> list[Answers]:
        """Return the answers to items that are prepared, run and finished together."""
        params = [own for _, own in items]
        rows = self._calls.for_many(self._model, "prepare_many", [content for content, _ in items], params)
        entries = [tried(self._entry, row, own) for row, own in zip(rows, params, strict=True)]
        waiting = [entry for entry in entries if isinstance(entry, Entry)]
        self._entries += waiting
        self._batcher.submit(waiting).wait()
        return [self._finished(entry, own) for entry, own in zip(entries, params, strict=True)]

    def _entry(self, prepared: Any, params: Mapping[str, Any]) -> Entry:
        if isinstance(prepared, Exception):
            raise prepared
        row = returned.row(self._model, prepared, params)
        cost = returned.cost(self._model, row)
        return Entry(row, tuple(params), Waiting(self._served.key, 0, cost, steady_time(), None, row.content))

    def _finished(self, entry: Entry | Exception, params: Mapping[str, Any]) -> Answers:
        class_ = type(self._model).__name__
        if isinstance(entry, Exception):
            return dict.fromkeys(params, Problem(returned.said(entry, f"{class_}.prepare raised")))
        if isinstance(entry.outcome, Failed):
            return dict.fromkeys(params, Problem(f"{class_}.forward, {entry.outcome.kind}: {entry.outcome.message}"))
        if not isinstance(entry.outcome, Computed):
            return dict.fromkeys(params, Problem(f"{class_}: {self._batcher.out_of_service or 'interrupted'}"))
        found: Answers = {}
        for name, own in params.items():
            task, output = self._model.spec.tasks[name], entry.outcome.outputs[name]
            [made] = self._calls.for_many(self._model, "finish_many", [output], [own], [entry.prepared], fixed=(task,))
            made = made if isinstance(made, Exception) else tried(returned.answer, self._model, task, made)
            failed = isinstance(made, Exception)
            found[name] = Problem(returned.said(made, f"{class_}.finish raised, for {name}")) if failed else made
        return found

    def equal_digests(self) -> Iterator[str]:
        """Yield a problem if two rows with different arrays have the same `content`."""
        first = {entry.prepared.content: entry.prepared for entry in self._entries}
        if any(not _alike(first[entry.prepared.content].arrays, entry.prepared.arrays) for entry in self._entries):
            problem = "equal `content` for different rows, which would share an answer; give it digest(arrays)"
            yield str(returned.wrong(self._model, "prepare", problem))


class Problem(Exception):
    """A sentence in place of an answer."""


def _differences(model: Model, alone: Sequence[Answers], together: Sequence[Answers]) -> Iterator[str]:
    for number, (one, other) in enumerate(zip(alone, together, strict=True)):
        for task in one:
            if not _alike(one[task], other[task]):
                answers = f"alone {one[task]!r:.200}, beside others {other[task]!r:.200}"
                cause = "a row reads its neighbours or its padding, or the class keeps state or draws random numbers"
                yield f"{type(model).__name__}: sample {number} of {task} has two answers, {answers}: {cause}"
                return


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.shape == other.shape and bool(
            np.allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
        )
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, float) and isinstance(other, float | int):
        return abs(one - other) <= TOLERANCE * max(1.0, abs(one))
    return bool(one == other)
