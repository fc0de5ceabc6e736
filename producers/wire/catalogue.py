"""The catalogue of tasks: each task's kind (input, parameters, output) and the model that serves it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import msgspec

from producers.wire import forms
from producers.wire.errors import ConfigurationError, InvalidInput, UnknownTask
from producers.wire.fleet_file import known, read_fleet, typed
from producers.wire.forms import Limits, Modality
from producers.wire.kinds import KINDS, Kind
from producers.wire.kinds.custom import CUSTOM
from producers.wire.messages import MOST_NAME, Input, JsonInput, Params
from producers.wire.validation import json_schema

__all__ = ["KINDS", "Catalogue", "Kind", "Limits", "Modality", "Task"]


@dataclass(frozen=True, slots=True)
class Task:
    """A task by the user's name for it, with its kind and the model whose backbone serves it.

    `params` are the task's own defaults, such as candidate labels; they override the kind's. `schemas` are those of the
    kind `custom`, as far as they are known: JSON Schemas of the `input` and of the `output`.
    """

    name: str
    kind: Kind
    model: str
    summary: str
    params: Mapping[str, Any] = field(default_factory=dict, compare=False)
    schemas: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def lacks(self, params: Params) -> tuple[str, ...]:
        """Return the required parameters that neither the task nor `params` gives."""
        return tuple(name for name in _required(self.kind.params) if name not in params and name not in self.params)


@cache
def _required(params: type[msgspec.Struct]) -> tuple[str, ...]:
    """Return the names of the required parameters. msgspec works them out anew each time, which takes a while."""
    return tuple(field.name for field in msgspec.structs.fields(params) if field.required)


#: Kinds of transformers and of the hub that no model here serves.
_UNSERVED = (
    "any-to-any", "audio-to-audio", "decision", "depth-estimation", "document-question-answering",
    "image-text-to-text", "image-to-3d", "image-to-text", "image-to-video", "keypoint-detection", "keypoint-matching",
    "mask-generation", "multiple-choice", "table-question-answering", "text-ranking", "text-to-3d", "text-to-audio",
    "text-to-speech", "text-to-video", "time-series-forecasting", "video-text-to-text", "visual-document-retrieval",
    "voice-activity-detection", "zero-shot-audio-classification", "zero-shot-image-classification",
    "zero-shot-object-detection",
)  # fmt: skip

_BUILTIN: tuple[tuple[str, str, str, str], ...] = (
    ("sentiment", "text-classification", "text", "negative or positive"),
    ("topic", "text-classification", "text", "business, entertainment, politics, sport or tech"),
    ("spam", "text-classification", "text", "ham or spam, for mail"),
    ("entities", "token-classification", "text", "people, organisations, places, times and amounts of money"),
    ("embedding", "feature-extraction", "text", "384 numbers that place a text by its meaning"),
    ("image-classification", "image-classification", "vision", "one of ImageNet's 1,000 names"),
    ("image-embedding", "image-feature-extraction", "vision", "1,280 numbers that place an image by its looks"),
)


@dataclass(frozen=True)
class Catalogue:
    """The tasks that can be submitted. Immutable; `with_models` returns a larger catalogue."""

    tasks: Mapping[str, Task]
    limits: Limits = field(default_factory=Limits)

    @cached_property
    def custom(self) -> frozenset[str]:
        """The tasks of the kind `custom`."""
        return frozenset(name for name, task in self.tasks.items() if task.kind is CUSTOM)

    @classmethod
    def builtin(cls) -> Catalogue:
        """Return the tasks that every Argosy fleet serves unless its settings say otherwise."""
        return cls({name: Task(name, KINDS[kind], model, summary) for name, kind, model, summary in _BUILTIN})

    @classmethod
    def from_toml(cls, path: str | Path) -> Catalogue:
        """Return the built-in tasks, the tasks of a ``fleet.toml`` (``[models.NAME.tasks]``), and its ``[limits]``.

        Raises ConfigurationError, naming the setting, if the file or a task in it is wrong.
        """
        file = read_fleet(path)
        table = typed(file.get("limits", {}), dict[str, Any], f"{path}: limits")
        names = [field.name for field in fields(Limits)]  # the others are workers'
        for name in table:
            # a misspelt `redact` would redact nothing, and nobody would be told
            if name not in names and get_close_matches(name, names, cutoff=0.8):
                raise ConfigurationError(f"{path}: limits.{name}: no such setting; {known(name, names)}")
        limits = typed({name: table[name] for name in names if name in table}, Limits, f"{path}: limits")
        return replace(cls.builtin(), limits=limits).with_models(file.get("models", {}), where=str(path))

    def with_models(self, models: object, *, where: str) -> Catalogue:
        """Return this catalogue with the tasks of `models`, the ``[models]`` table of a ``fleet.toml``.

        Raises ConfigurationError, naming the setting.
        """
        tasks, named = dict(self.tasks), dict[str, str]()
        for model, settings in typed(models, dict[str, Any], f"{where}: models").items():
            table = typed(settings, dict[str, Any], f"{where}: models.{model}")
            own = typed(table.get("tasks", {}), dict[str, Any], f"{where}: models.{model}.tasks")
            for name, task in own.items():
                if named.setdefault(name, model) != model:
                    problem = f"is a task of models.{named[name]}, too; give it another name"
                    raise ConfigurationError(f"{where}: models.{model}.tasks.{name}: {problem}")
                tasks[name] = _task(name, model, task, f"{where}: models.{model}.tasks.{name}")
        return Catalogue(tasks, self.limits)

    def task(self, name: object, *, field: str = "task") -> Task:
        """Return a task by name. Raises UnknownTask, with the most similar name, or InvalidInput."""
        if not isinstance(name, str):
            raise InvalidInput(field, f"must be a task's name, not {type(name).__name__}")
        if name not in self.tasks:
            raise UnknownTask(name, list(self.tasks), field)
        return self.tasks[name]

    def by_model(self, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """Group task names by the model that serves them, keeping their order."""
        groups: dict[str, list[str]] = {}
        for name in names:
            groups.setdefault(self.task(name).model, []).append(name)
        return {model: tuple(tasks) for model, tasks in groups.items()}

    def check_params(self, task: Task, params: Params, *, field: str) -> msgspec.Struct:
        """Return a task's parameters, typed, with their defaults. Raises InvalidInput naming the parameter."""
        try:
            return msgspec.convert({**task.params, **params}, task.kind.params)
        except msgspec.ValidationError as error:
            there = ", ".join(task.kind.params.__struct_fields__)
            raise InvalidInput(field, str(error), f"parameters of {task.name!r}: {there}") from error

    def check_input(self, task: Task, value: object, *, field: str) -> Input:
        """Return `value` as a task's input, or raise InvalidInput or InputTooLarge naming `field`."""
        checked = forms.check(task.kind.modality, value, self.limits, field)
        if task.schemas and isinstance(checked, JsonInput):
            for place, problem in json_schema.mismatches(task.schemas["input"], checked.value):
                raise InvalidInput(json_schema.within(field, place), problem)
        return checked

    def with_schemas(self, schemas: Mapping[str, Mapping[str, Any]]) -> Catalogue:
        """Return this catalogue with the schemas of its tasks of the kind `custom`, by model."""
        custom = {name: self.tasks[name] for name in self.custom}
        known = {name: replace(task, schemas=schemas.get(task.model, {})) for name, task in custom.items()}
        return Catalogue({**self.tasks, **known}, self.limits)


def _task(name: str, model: str, table: object, setting: str) -> Task:
    """Return a task from its entry in a ``fleet.toml``: a kind, or a table with `kind`, `summary` and `params`.

    The table itself may hold the kind's required parameters (a prompt, labels).
    """
    if not name.strip() or not name.isprintable() or len(name) > MOST_NAME:  # the store keeps it with each result
        raise ConfigurationError(f"{setting}: name a task by 1 to {MOST_NAME} printable characters")
    given: dict[str, Any] = table if isinstance(table, dict) else {"kind": table}
    kind, params = given.get("kind"), given.get("params", {})
    if kind in _UNSERVED:
        remedy = "write a class of your own with a task of the kind 'custom' (docs/own-model.md)"
        raise ConfigurationError(f"{setting}.kind: Argosy has no models for {kind!r}; {remedy}")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ConfigurationError(f"{setting}.kind: no kind {kind!r}; {known(str(kind), KINDS)}")
    known_here = ["kind", "summary", "params", *_required(KINDS[kind].params)]
    if unknown := sorted(set(given) - set(known_here)):
        raise ConfigurationError(f"{setting}.{unknown[0]}: not a key of a task; {known(unknown[0], known_here)}")
    if not isinstance(params, dict):
        raise ConfigurationError(f"{setting}.params: must be a table of parameters, not {type(params).__name__}")
    params = {**{name: given[name] for name in known_here[3:] if name in given}, **params}
    task = Task(name, KINDS[kind], model, str(given.get("summary", "")), params)
    unknown = sorted(set(params) - set(task.kind.params.__struct_fields__))
    if unknown:
        found = known(unknown[0], task.kind.params.__struct_fields__)
        raise ConfigurationError(f"{setting}.params.{unknown[0]}: not a parameter of {kind}; {found}")
    if params and not task.lacks({}):
        typed(params, task.kind.params, f"{setting}.params")
    return task
