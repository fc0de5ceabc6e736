"""The labelled rows of a recipe, read and checked as a whole before training begins, and their parts."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
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
    def raise_for(cls, errors: Sequence[InvalidInput], more: int = 0) -> None:
        """Raise the error of these rows and of `more`, if there are any. It names the first."""
        if errors:
            unnamed = len(errors[_MOST_NAMED:]) + more
            raise cls("\n".join([*map(str, errors[:_MOST_NAMED]), *([f"and {unnamed:,} more"] if unnamed else [])]))

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
    reader.choose()
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
            problem = f"has no row with a label of {lacking[0]!r}; add some, or name files of its own"
            raise recipe.wrong(f"data.{part}", problem)
    return LabelledRows(reader.tasks, train, validation, test, reader.unlabelled)


def plain_rows(
    paths: Sequence[str], form: str | None = None, modality: str = "text"
) -> Iterable[tuple[str, Mapping[str, Any] | InvalidInput]]:
    """Return every row's origin and columns; an unreadable row is its error. Raises InvalidInput for a whole file."""
    return Source(paths, modality, format=form).plain_rows() if paths else ()


def _given(recipe: RecipeFile) -> Iterable[tuple[str, str | tuple[str, ...]]]:
    return (("validation", recipe.data.validation), ("test", recipe.data.test))


@dataclass(slots=True)
class _Reader:
    """Reads parts; keeps the first bad rows, and counts them."""

    recipe: RecipeFile
    tasks: Mapping[str, LabelledKind]
    unlabelled: int = 0
    columns: dict[str, None] = field(default_factory=dict)
    _bad: list[InvalidInput] = field(default_factory=list)
    _more: int = 0

    def read(self, files: str | tuple[str, ...], setting: str) -> list[LabelledRow]:
        """Return a part's rows that have labels."""
        paths = self.recipe.files(files)
        found: list[LabelledRow] = []
        columns: dict[str, None] = {}
        try:
            form = next(iter(self.tasks.values())).modality
            for origin, found_row in plain_rows(paths, self.recipe.data.format, form):
                if isinstance(found_row, InvalidInput):
                    self._note(found_row)
                    continue
                row = self._located(found_row, origin)
                columns.update(dict.fromkeys(row))
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
        self.columns = self.columns or columns
        return found

    def _located(self, row: Mapping[str, Any], origin: str) -> Mapping[str, Any]:
        folder = Path(origin.rpartition(":")[0]).parent
        for task in self.tasks.values():
            row = task.located(row, folder)
        return row

    def choose(self) -> None:
        """Let the tasks choose their inputs among the columns of the rows that were read."""
        drop = self.recipe.data.drop
        if unknown := [name for name in drop if name not in self.columns]:
            raise self.recipe.wrong("data.drop", f"no training row has a column {unknown[0]!r}")
        for name, task in self.tasks.items():
            if drop and (task.input_columns or self.recipe.tasks[name].input):
                raise self.recipe.wrong("data.drop", f"tasks.{name} has its input columns by name; take it out")
            left_out = {*drop, *(own.label_from for own in self.tasks.values())}
            try:
                task.choose([column for column in self.columns if column not in left_out])
            except InvalidInput as error:
                raise ConfigurationError(str(error)) from error
        (first, one), *others = self.tasks.items()
        for name, task in others if one.one_input else ():
            if different := {*task.columns} ^ {*one.columns}:
                problem = f"{name} and {first} read different columns, such as {min(different)!r}"
                raise self.recipe.wrong(f"tasks.{name}.input", f"{problem}; name the same, or make two recipes")

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
        BadRows.raise_for(self._bad, self._more)


def _parted(
    rows: Sequence[LabelledRow], tasks: Mapping[str, LabelledKind], share: float, seed: int
) -> tuple[list[LabelledRow], list[LabelledRow]]:
    """Take a share of the rows away by chance. Rows in which a task reads equal inputs stay together.

    A row stays if no other row has its label.
    """
    groups = _groups(rows, tasks, seed)
    left = _names(rows, tasks)
    taken: set[int] = set()
    wanted = max(1, round(share * len(rows)))
    for key in sorted(groups):
        own = _names(groups[key], tasks)
        chained = len(key) > 1 and len(groups[key]) > wanted  # perhaps nearly all rows
        if len(taken) < wanted and not chained and all(left[name] > count for name, count in own.items()):
            taken.update(id(row) for row in groups[key])
            left -= own
    return [row for row in rows if id(row) not in taken], [row for row in rows if id(row) in taken]


def _groups(
    rows: Sequence[LabelledRow], tasks: Mapping[str, LabelledKind], seed: int
) -> dict[tuple[bytes, ...], list[LabelledRow]]:
    """Return rows joined by equal inputs of their labelled tasks, by the digests of all inputs of a row."""
    inputs = {column: task.identity for task in tasks.values() for column in task.columns}
    joined: dict[Any, Any] = {}

    def first(one: Any) -> Any:
        """Return the one that stands for all that are joined with this one."""
        while (other := joined.setdefault(one, one)) != one:
            joined[one] = joined[other]
            one = other
        return one

    keys = []
    for row in rows:
        read = {column: inputs[column](row.columns.get(column)) for column in sorted(inputs)}
        told = msgspec.json.encode([seed, [*read.values()]])
        keys.append(hashlib.blake2b(told, digest_size=8).digest())
        for name in row.labels:
            joined[first(keys[-1])] = first(tuple((column, read[column]) for column in sorted(tasks[name].columns)))
    groups: dict[Any, list[int]] = defaultdict(list)
    for place, key in enumerate(keys):
        groups[first(key)].append(place)
    return {tuple(sorted({keys[place] for place in own})): [rows[place] for place in own] for own in groups.values()}


def _names(rows: Sequence[LabelledRow], tasks: Mapping[str, LabelledKind]) -> Counter[tuple[str, str]]:
    each = ((task, label) for row in rows for task, label in row.labels.items())
    return Counter((task, name) for task, label in each for name in tasks[task].names(label))
