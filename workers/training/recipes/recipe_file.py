"""A recipe of `argosy train`, typed and checked: the tables `train`, `data` and `tasks.NAME` of a TOML file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from producers.wire.errors import ConfigurationError
from producers.wire.fleet_file import known, read_toml, typed
from workers.training.kinds.trained_kinds import TRAINED
from workers.training.loop.recipe import Compression

Sharing = Literal["full", "lora", "frozen"]

#: A task's name is part of paths and queues.
_NAME = re.compile(r"[\w.@+-]+")

_TABLES = ("train", "data", "tasks")


class TrainTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to train.

    `backbone` is a source as in ``fleet.toml``, or the name of a model of ``builtin.toml``. `out` is the folder of the
    result, by default the recipe's name; `name` is the model's name in its ``fleet.toml``. `sharing` says which weights
    of the backbone learn: all, matrices of low rank beside them (LoRA, of rank `lora_rank`), or none; by default the
    tasks' kinds say so.

    `epochs` count the training rows, and `steps` take their place. `rows` are those of a step; `accumulate` cuts a step
    into so many passes. `compression` is of the gradients that several processes exchange. `weights` are the shares of
    the tasks' losses, learnt by uncertainty by default. Tasks with fewer rows come more often than their share, by
    `temperature` (1: by their share). `patience` is the number of evaluations without improvement that end the
    training, one each `evaluate_every` steps (0: 20 of them in all).
    """

    backbone: str | dict[str, Any] = "text"
    out: str = ""
    name: str = ""
    sharing: Sharing | None = None
    lora_rank: int = 8
    epochs: float = 3.0
    steps: int = 0
    rows: int = 32
    accumulate: int = 1
    max_tokens: int = 0
    rate: float = 5e-5
    head_rate: float = 1e-3
    precision: Literal["fp32", "bf16"] = "fp32"
    compression: Compression = "none"
    weights: Literal["uncertainty"] | dict[str, float] = "uncertainty"
    temperature: float = 2.0
    dropout: bool = True
    evaluate_every: int = 0
    checkpoint_every: int = 100
    patience: int = 5
    seed: int = 20261122

    def __post_init__(self) -> None:
        for name in ("rows", "accumulate", "patience", "lora_rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be 1 or more")
        for name in ("steps", "max_tokens", "evaluate_every", "checkpoint_every", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be 0 or more")
        for name in ("epochs", "temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be over 0")
        for name in ("rate", "head_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be 0 to 1")
        if self.accumulate > self.rows:
            raise ValueError("`accumulate` must be at most `rows`")


class DataTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The labelled files: paths or patterns, which count from the recipe's folder.

    Without `validation` or `test`, a share of the training rows takes its place.
    """

    train: str | tuple[str, ...]
    validation: str | tuple[str, ...] = ()
    test: str | tuple[str, ...] = ()
    validation_share: float = 0.1
    test_share: float = 0.1
    format: str | None = None

    def __post_init__(self) -> None:
        for name in ("validation_share", "test_share"):
            if not 0 < getattr(self, name) < 0.5:
                raise ValueError(f"`{name}` must be over 0 and under 0.5")


class TaskTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A task: its `kind`, the columns of its input and of its label.

    `labels` are those of a classification, by default those of the training rows; labels that are numbers count from 0
    in them. `head` is the task's own attention over the tokens, or the head of transformers. `fusion` names tasks
    whose scores the head sees. `prefix` is the text before each input of a text to text. `scale` divides the labels of
    a similarity. `negatives` is the column of the wrong texts of a ranking, or the number of texts that are drawn from
    other rows.
    """

    kind: str
    input: str | tuple[str, ...] = ()
    label: str = ""
    labels: tuple[str, ...] = ()
    head: Literal["", "attention", "transformers"] = ""
    fusion: tuple[str, ...] = ()
    scale: float = 1.0
    negatives: str | int = 4
    prefix: str = ""

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError("`scale` must be over 0")
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("`labels` must not name a label twice")
        if isinstance(self.negatives, int) and self.negatives < 1:
            raise ValueError("`negatives` must be 1 or more, or a column")


class RecipeFile(msgspec.Struct, frozen=True, kw_only=True):
    """A recipe and its place."""

    path: Path
    train: TrainTable
    data: DataTable
    tasks: dict[str, TaskTable]

    @property
    def out(self) -> Path:
        """The folder of the result."""
        return self.found(self.train.out or self.path.stem)

    @property
    def name(self) -> str:
        """The model's name in the result's ``fleet.toml``."""
        return self.train.name or self.out.name

    def found(self, path: str) -> Path:
        """Return a path of the file's, which counts from its folder."""
        return self.path.absolute().parent / Path(path).expanduser()

    def files(self, given: str | tuple[str, ...]) -> list[str]:
        """Return the paths, patterns and URLs of labelled rows."""
        each = (given,) if isinstance(given, str) else given
        return [name if "://" in name else str(self.found(name)) for name in each]

    def wrong(self, setting: str, problem: str) -> ConfigurationError:
        return ConfigurationError(f"{self.path}: {setting}: {problem}")


def load(path: Path) -> RecipeFile:
    """Read a recipe. Raises ConfigurationError that names the file, the setting and a remedy."""
    raw = read_toml(path)
    for name in raw:
        if name not in _TABLES:
            raise ConfigurationError(f"{path}: {name}: no such table; {known(name, _TABLES)}")
    if "data" not in raw:
        raise ConfigurationError(f'{path}: data: is missing; name the labelled rows: [data] train = "rows.csv"')
    tasks = typed(raw.get("tasks", {}), dict[str, Any], f"{path}: tasks")
    tables = {name: typed(table, TaskTable, f"{path}: tasks.{name}") for name, table in tasks.items()}
    train = typed(raw.get("train", {}), TrainTable, f"{path}: train")
    kinds = [TRAINED[table.kind] for table in tables.values() if table.kind in TRAINED]
    if train.sharing is None:
        sharing = next((kind.sharing for kind in kinds), "full")
        train = msgspec.structs.replace(train, sharing=sharing)
    if train.sharing == "frozen" and kinds and not any(kind.heads for kind in kinds):
        problem = "trains nothing, since no task has a head beside the backbone"
        raise ConfigurationError(f'{path}: train.sharing: "frozen" {problem}; use "full" or "lora"')
    recipe = RecipeFile(path=path, train=train, data=typed(raw["data"], DataTable, f"{path}: data"), tasks=tables)
    _check(recipe)
    return recipe


def _check(recipe: RecipeFile) -> None:
    """Check one table against another. Raises ConfigurationError."""
    if not recipe.tasks:
        raise recipe.wrong("tasks", 'has no task; add one: [tasks.topic] kind = "classification", label = "topic"')
    for name in recipe.tasks:
        if not _NAME.fullmatch(name) or "." in name:
            raise recipe.wrong(f"tasks.{name}", "use letters, digits and _ - for a task's name")
    if not _NAME.fullmatch(recipe.name):
        raise recipe.wrong("train.name", f"{recipe.name!r}: use letters, digits and . _ - for a model's name")
    weights = recipe.train.weights
    if isinstance(weights, dict):
        _check_names(recipe, "train.weights", list(weights))
        if missing := [name for name in recipe.tasks if name not in weights]:
            raise recipe.wrong(f"train.weights.{missing[0]}", "is missing; give each task its share of the loss")
    for name, task in recipe.tasks.items():
        _check_names(recipe, f"tasks.{name}.fusion", task.fusion)
        if name in task.fusion:
            raise recipe.wrong(f"tasks.{name}.fusion", "names the task itself; name others")


def _check_names(recipe: RecipeFile, setting: str, names: Sequence[str]) -> None:
    if unknown := [name for name in names if name not in recipe.tasks]:
        raise recipe.wrong(setting, f"no task {unknown[0]!r}; {known(unknown[0], recipe.tasks)}")
