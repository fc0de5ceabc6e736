"""Which tasks exist: for each, its kind (input, parameters, output) and the model that serves it."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from producers.errors import ConfigurationError, InputTooLarge, InvalidInput, UnknownTask
from producers.messages import InlineBytes, Input, Params, PathInput, UrlInput

Modality = Literal["text", "image"]

# --- Parameters, one type a kind. The names are those of the Hugging Face pipelines. ------------


class TextClassificationParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`top_k` labels are returned, best first. `truncation` cuts a text over the model's tokens instead of refusing it."""

    top_k: int = 1
    truncation: bool = False

    def __post_init__(self) -> None:
        _at_least_one(self.top_k)


class FeatureExtractionParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`normalize` scales the vector to length 1. `truncation` as for text classification."""

    normalize: bool = True
    truncation: bool = False


class ImageClassificationParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`top_k` labels are returned, best first."""

    top_k: int = 5

    def __post_init__(self) -> None:
        _at_least_one(self.top_k)


class ImageFeatureExtractionParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`normalize` scales the vector to length 1."""

    normalize: bool = True


def _at_least_one(top_k: int) -> None:
    if top_k < 1:
        raise ValueError("`top_k` must be 1 or more")  # msgspec turns this into its ValidationError


# --- Outputs, one type a kind. ------------------------------------------------------------------


class LabelScore(msgspec.Struct, frozen=True):
    """One label with its probability, 0 to 1."""

    label: str
    score: float


Labels = list[LabelScore]
Vector = list[float]


@dataclass(frozen=True, slots=True)
class Kind:
    """What all tasks of one Hugging Face pipeline name have in common."""

    name: str
    modality: Modality
    params: type[msgspec.Struct]
    output: Any
    summary: str


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("text-classification", "text", TextClassificationParams, Labels, "labels for a text, best first"),
        Kind("feature-extraction", "text", FeatureExtractionParams, Vector, "one vector for a text"),
        Kind("image-classification", "image", ImageClassificationParams, Labels, "labels for an image, best first"),
        Kind("image-feature-extraction", "image", ImageFeatureExtractionParams, Vector, "one vector for an image"),
    )
}


@dataclass(frozen=True, slots=True)
class Task:
    """A task as a user names it, its kind, and the model whose backbone serves it."""

    name: str
    kind: Kind
    model: str
    summary: str


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest inputs accepted; checked at the producer, and again at the worker."""

    max_text_chars: int = 100_000
    max_input_bytes: int = 20 * 1024 * 1024


_BUILTIN: tuple[tuple[str, str, str, str], ...] = (
    ("sentiment", "text-classification", "text", "negative or positive"),
    ("topic", "text-classification", "text", "business, entertainment, politics, sport or tech"),
    ("spam", "text-classification", "text", "ham or spam, for mail"),
    ("embedding", "feature-extraction", "text", "384 numbers that place a text by its meaning"),
    ("image-classification", "image-classification", "vision", "one of ImageNet's 1,000 names"),
    ("image-embedding", "image-feature-extraction", "vision", "1,280 numbers that place an image by its looks"),
)


@dataclass(frozen=True)
class Catalogue:
    """The tasks that can be submitted. Immutable; `with_models` returns a larger one."""

    tasks: Mapping[str, Task]
    limits: Limits = field(default_factory=Limits)

    @classmethod
    def builtin(cls) -> Catalogue:
        """Return the tasks that every Argosy fleet serves unless its settings say otherwise."""
        return cls({name: Task(name, KINDS[kind], model, summary) for name, kind, model, summary in _BUILTIN})

    @classmethod
    def from_toml(cls, path: str | Path) -> Catalogue:
        """Return the built-in tasks together with those that a ``fleet.toml`` adds under ``[models.NAME.tasks]``.

        Raises ConfigurationError, naming the setting, if the file or a task in it is wrong.
        """
        try:
            settings = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigurationError(f"{path}: cannot be read as TOML: {error}") from error
        return cls.builtin().with_models(settings.get("models", {}), where=str(path))

    def with_models(self, models: Mapping[str, Any], *, where: str) -> Catalogue:
        """Return this catalogue with the tasks of `models`, the ``[models]`` table of a ``fleet.toml``."""
        tasks = dict(self.tasks)
        for model, settings in models.items():
            for name, task in dict(settings.get("tasks", {})).items():
                setting = f"{where}: models.{model}.tasks.{name}"
                task = task if isinstance(task, dict) else {"kind": task}  # noqa: PLW2901 - the short form
                kind = str(task.get("kind"))
                if kind not in KINDS:
                    raise ConfigurationError(f"{setting}.kind: must be one of {', '.join(KINDS)}, not {kind!r}")
                tasks[name] = Task(name, KINDS[kind], model, str(task.get("summary", "")))
        return Catalogue(tasks, self.limits)

    def task(self, name: object, *, field: str = "task") -> Task:
        """Return a task by name. Raises UnknownTask, with the nearest known name, or InvalidInput."""
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
            return msgspec.convert(params, task.kind.params)
        except msgspec.ValidationError as error:
            known = ", ".join(task.kind.params.__struct_fields__)
            raise InvalidInput(field, str(error), f"parameters of {task.name!r}: {known}") from error

    def check_input(self, task: Task, value: object, *, field: str) -> Input:
        """Return `value` as a task's input, or raise InvalidInput or InputTooLarge naming `field`."""
        if task.kind.modality == "text":
            return self._check_text(value, field)
        return self._check_image(value, field)

    def _check_text(self, value: object, field: str) -> str:
        if not isinstance(value, str):
            raise InvalidInput(field, f"must be text, not {type(value).__name__}", "decode bytes to str first")
        if not value.strip():
            raise InvalidInput(field, "is empty", "drop the item, or give it some text")
        if len(value) > self.limits.max_text_chars:
            limit = self.limits.max_text_chars
            raise InputTooLarge(field, f"has {len(value):,} characters, over {limit:,}", "split the text")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InvalidInput(
                field, f"is not valid Unicode ({error.reason})", "decode it with the right encoding"
            ) from error
        return value

    def _check_image(self, value: object, field: str) -> Input:
        if isinstance(value, Path):
            value = PathInput(str(value))
        if isinstance(value, bytes | bytearray | memoryview):
            value = InlineBytes(bytes(value))
        if isinstance(value, InlineBytes):
            if not value.data:
                raise InvalidInput(field, "is empty", "send the bytes of an image file")
            if len(value.data) > self.limits.max_input_bytes:
                size, limit = len(value.data), self.limits.max_input_bytes
                raise InputTooLarge(
                    field, f"has {size:,} bytes, over {limit:,}", "send a smaller image, or a path or URL"
                )
            return value
        if isinstance(value, str):
            value = UrlInput(value) if value.startswith(("http://", "https://")) else PathInput(value)
        if isinstance(value, PathInput | UrlInput):
            if not (value.path if isinstance(value, PathInput) else value.url):
                raise InvalidInput(field, "is empty", "send bytes, a path or a URL")
            return value
        raise InvalidInput(field, f"must be bytes, a path or a URL, not {type(value).__name__}")
