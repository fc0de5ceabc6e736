"""The labelled rows of a recipe, read and checked as a whole before training begins, and their parts."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from producers.sources import Source
from producers.wire.errors import ConfigurationError, InvalidInput
from producers.wire.fleet_file import known
from workers.training.kinds.labelled_kind import LabelledKind
from workers.training.kinds.trained_kinds import TRAINED
from workers.training.recipes.recipe_file import RecipeFile

#: The settings of a task that only some kinds have.
_OF_SOME_KINDS = ("labels", "scale", "negatives", "prefix")

#: The most bad rows that an error names.
_MOST_NAMED = 10


@dataclass(frozen=True, slots=True)
class LabelledRow:
    """A row with the labels of some tasks. `origin` is its file and line."""

    origin: str
    columns: Mapping[str, Any]
    labels: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class LabelledRows:
    """The rows of the three parts, and their tasks. `unlabelled` counts the rows that were left out."""

    tasks: Mapping[str, LabelledKind]
    train: list[LabelledRow]
    validation: list[LabelledRow]
    test: list[LabelledRow]
    unlabelled: int


class BadRows(ConfigurationError):
    """Rows that cannot be trained on, each named by file, line and field."""

    @classmethod
    def of(cls, errors: Sequence[InvalidInput], more: int) -> BadRows:
        """Return the error of these rows, and of `more` that are not named."""
        return cls("\n".join([*map(str, errors), *([f"and {more:,} more"] if more else [])]))

    @property
    def lines(self) -> list[str]:
        """A line for each row."""
        return str(self).split("\n")


def tasks_of(recipe: RecipeFile) -> dict[str, LabelledKind]:
    """Return the recipe's tasks by their kinds. Raises ConfigurationError."""
    found = {}
    for name, table in recipe.tasks.items():
        where = f"{recipe.path}: tasks.{name}"
        if table.kind not in TRAINED:
            problem = f"{table.kind!r} is not trained; {known(table.kind, TRAINED)} (docs/training.md)"
            raise ConfigurationError(f"{where}.kind: {problem}")
        found[name] = TRAINED[table.kind](name, table, where)
        others = [one for one in msgspec.structs.fields(table) if one.name in _OF_SOME_KINDS]
        given = [one.name for one in others if getattr(table, one.name) != one.default]
        if unknown := [setting for setting in given if setting not in found[name].settings]:
            raise ConfigurationError(f"{where}.{unknown[0]}: {table.kind} has no such setting; take it out")
    forms = {task.modality: name for name, task in found.items()}
    if len(forms) > 1:
        (form, one), (other_form, other) = [*forms.items()][:2]
        problem = f"reads {other_form}, and {one} reads {form}, which cannot share a backbone; make two recipes"
        raise ConfigurationError(f"{recipe.path}: tasks.{other}.kind: {problem}")
    for name, table in recipe.tasks.items():
        for one in (name, *table.fusion) if table.fusion else ():
            if found[one].head != "attention":
                problem = f"{one} has no attention of its own, which fusion needs; take it out"
                raise ConfigurationError(f"{recipe.path}: tasks.{name}.fusion: {problem}")
    return found


def read(recipe: RecipeFile) -> LabelledRows:
    """Return the rows of a recipe, with the tasks' labels collected from the training part.

    Raises BadRows, or ConfigurationError for a file or a column that is not there.
    """
    reader = _Reader(recipe, tasks_of(recipe))
    data = recipe.data
    train = reader.read(data.train, "data.train")
    validation, test = (reader.read(files, f"data.{part}") for part, files in _given(recipe))
    reader.raise_bad()
    if not train:
        raise recipe.wrong("data.train", "has no row with a label of any task; check the tasks' `label` columns")
    if not data.test:
        train, test = _parted(train, reader.tasks, data.test_share, recipe.train.seed)
    if not data.validation:
        train, validation = _parted(train, reader.tasks, data.validation_share, recipe.train.seed + 1)
    reader.learn(train)
    for rows in (validation, test):
        reader.check(rows)
    reader.raise_bad()
    for part, rows in (("train", train), ("validation", validation), ("test", test)):
        if lacking := [name for name in reader.tasks if not any(name in row.labels for row in rows)]:
            raise recipe.wrong(f"data.{part}", f"has no row with a label of {lacking[0]!r}; add some")
    return LabelledRows(reader.tasks, train, validation, test, reader.unlabelled)


def _given(recipe: RecipeFile) -> Iterable[tuple[str, str | tuple[str, ...]]]:
    return (("validation", recipe.data.validation), ("test", recipe.data.test))


@dataclass(slots=True)
class _Reader:
    """Reads parts; keeps the first bad rows, and counts them."""

    recipe: RecipeFile
    tasks: Mapping[str, LabelledKind]
    unlabelled: int = 0
    _bad: list[InvalidInput] = field(default_factory=list)
    _more: int = 0

    def read(self, files: str | tuple[str, ...], setting: str) -> list[LabelledRow]:
        """Return a part's rows that have labels."""
        paths = self.recipe.files(files)
        found: list[LabelledRow] = []
        columns: set[str] = set()
        source = Source(paths, "text", format=self.recipe.data.format)
        try:
            for origin, row in source.plain_rows() if paths else ():
                if isinstance(row, InvalidInput):
                    self._note(row)
                    continue
                columns.update(row)
                labels = self._labels(row, origin)
                self.unlabelled += not labels
                if labels:
                    found.append(LabelledRow(origin, row, labels))
        except InvalidInput as error:  # a file as a whole
            raise self.recipe.wrong(setting, str(error)) from error
        for name, task in self.tasks.items() if paths else ():
            if task.label_from not in columns:
                there = ", ".join(sorted(columns)) or "none"
                problem = f"no row of {setting} has a column {task.label_from!r}; columns there: {there}"
                raise self.recipe.wrong(f"tasks.{name}.label", problem)
        return found

    def _labels(self, row: Mapping[str, Any], origin: str) -> dict[str, Any]:
        labels = {}
        for name, task in self.tasks.items():
            try:
                label = task.label(row, origin)
                if label is not None:
                    task.content(row, origin)
                    labels[name] = label
            except InvalidInput as error:
                self._note(error)
        return labels

    def learn(self, train: Sequence[LabelledRow]) -> None:
        for name, task in self.tasks.items():
            if own := [row.labels[name] for row in train if name in row.labels]:
                try:
                    task.learn(own)
                except InvalidInput as error:
                    raise ConfigurationError(str(error)) from error

    def check(self, rows: Sequence[LabelledRow]) -> None:
        for row in rows:
            for name, label in row.labels.items():
                try:
                    self.tasks[name].check(label, f"{row.origin}: {self.tasks[name].label_from}")
                except InvalidInput as error:
                    self._note(error)

    def _note(self, error: InvalidInput) -> None:
        if self._bad and str(error) == str(self._bad[-1]):  # the same input of several tasks
            return
        if len(self._bad) < _MOST_NAMED:
            self._bad.append(error)
        else:
            self._more += 1

    def raise_bad(self) -> None:
        if self._bad:
            raise BadRows.of(self._bad, self._more)


def _parted(
    rows: Sequence[LabelledRow], tasks: Mapping[str, LabelledKind], share: float, seed: int
) -> tuple[list[LabelledRow], list[LabelledRow]]:
    """Take a share of the rows away by chance. Rows of equal inputs stay together.

    A row stays if no other row has its label.
    """
    groups: dict[bytes, list[LabelledRow]] = defaultdict(list)
    inputs = sorted({column for task in tasks.values() for column in task.columns})
    for row in rows:
        told = msgspec.json.encode([seed, [str(row.columns.get(column)) for column in inputs]])
        groups[hashlib.blake2b(told, digest_size=8).digest()].append(row)
    left = _names(rows, tasks)
    taken: set[int] = set()
    wanted = max(1, round(share * len(rows)))
    for key in sorted(groups):
        own = _names(groups[key], tasks)
        if len(taken) < wanted and all(left[name] > count for name, count in own.items()):
            taken.update(id(row) for row in groups[key])
            left -= own
    return [row for row in rows if id(row) not in taken], [row for row in rows if id(row) in taken]


def _names(rows: Sequence[LabelledRow], tasks: Mapping[str, LabelledKind]) -> Counter[tuple[str, str]]:
    each = ((task, label) for row in rows for task, label in row.labels.items())
    return Counter((task, name) for task, label in each for name in tasks[task].names(label))
