"""The interface of a kind of task that is trained: input and label of a row, loss, and metric."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import msgspec
import numpy as np

from producers.wire.errors import InvalidInput
from producers.wire.kinds import KINDS, Kind
from workers.models.interface.model import Array

if TYPE_CHECKING:
    import torch

#: The target of a token or an example without a loss, which `torch.nn.functional.cross_entropy` leaves out.
IGNORED = -100

#: An answer as a worker gives it, and the right answer.
Pair = tuple[Any, Any]


class TaskSettings(Protocol):
    """The fields of a recipe's task table that kinds read."""

    @property
    def input(self) -> str | tuple[str, ...]: ...
    @property
    def label(self) -> str: ...
    @property
    def labels(self) -> tuple[str, ...]: ...
    @property
    def head(self) -> str: ...
    @property
    def fusion(self) -> tuple[str, ...]: ...
    @property
    def scale(self) -> float: ...
    @property
    def negatives(self) -> str | int: ...
    @property
    def prefix(self) -> str: ...


class LabelledKind(ABC):
    """A task of a kind. Subclasses read labels and compute loss and metric; input and answer are the worker's own."""

    #: The form of the inputs: all tasks of a recipe share a backbone, and so a form.
    modality: ClassVar[str] = "text"

    #: The kind of the served task.
    served: ClassVar[str]

    #: The settings of the recipe's table `train` that have other defaults for this form of input.
    defaults: ClassVar[Mapping[str, Any]] = {}

    #: The columns of input and label, unless the recipe names others. Without any, the columns are those of the rows.
    input_columns: ClassVar[tuple[str, ...]] = ("text",)
    label_column: ClassVar[str] = "label"

    #: Whether a row is one input for all tasks of a recipe, which read the same columns then.
    one_input: ClassVar[bool] = False

    #: The name of the metric that chooses the best weights, higher being better.
    metric: ClassVar[str]

    #: The heads that the recipe may name, the default first; none for a kind without a head of its own.
    heads: ClassVar[tuple[str, ...]] = ()

    #: The settings of the recipe's table that only some kinds have.
    settings: ClassVar[tuple[str, ...]] = ()

    #: The backbone's inputs that make an example: 2 for two texts that are compared.
    width: int = 1

    #: The factor and the summand that turn a new head's values into the labels' units.
    units: tuple[float, float] = (1.0, 0.0)

    #: The scores of each label that a new head gives to any text; none for a head that begins at 0.
    first_scores: tuple[float, ...] = ()

    def __init__(self, name: str, table: TaskSettings, where: str) -> None:
        """`where` is the recipe's table. Raises InvalidInput for settings that the kind has not."""
        self.name, self.table, self.where = name, table, where
        given = (table.input,) if isinstance(table.input, str) else table.input
        if given and self.input_columns and len(given) != len(self.input_columns):
            problem = f"must name {len(self.input_columns)} columns, for {' and '.join(self.input_columns)}"
            raise InvalidInput(f"{where}.input", problem)
        self.columns = given or self.input_columns
        self.label_from = table.label or self.label_column
        if table.head and table.head not in self.heads:
            known = ", ".join(self.heads) or "none, since the kind has no head of its own"
            raise InvalidInput(f"{where}.head", f"cannot be {table.head!r}", f"it can be {known}")
        self.head = table.head or (self.heads[0] if self.heads else "")
        self.fusion = table.fusion
        self.labels: tuple[str, ...] = ()

    # --- rows ---

    @property
    def kind(self) -> Kind:
        return KINDS[self.served]

    @property
    def params(self) -> msgspec.Struct:
        """The parameters with which the served task is judged."""
        return self.kind.params()

    @property
    def cut_params(self) -> msgspec.Struct:
        """The same parameters, with which long texts are cut."""
        params = self.params
        return msgspec.structs.replace(params, truncation=True) if hasattr(params, "truncation") else params

    @property
    def options(self) -> Mapping[str, str]:
        """The served model's options that have a value for each task, with this task's."""
        return {}

    def identity(self, cell: Any) -> str:
        """Return a text that is equal for equal inputs: rows of equal inputs stay in the same part."""
        return str(cell)

    def located(self, row: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
        """Return a row whose paths do not count from the `folder` of its file any more."""
        return row

    def content(self, row: Mapping[str, Any], origin: str) -> Any:
        """Return a row's input, as a worker gets it. Raises InvalidInput."""
        return self._text(row, self.columns[0], origin)

    def label(self, row: Mapping[str, Any], origin: str) -> Any:
        """Return a row's label, or None if it has none. Raises InvalidInput."""
        value = row.get(self.label_from)
        if value is None or (isinstance(value, str) and not value.strip()):
            return None
        return self.read_label(value, row, f"{origin}: {self.label_from}")

    @abstractmethod
    def read_label(self, value: Any, row: Mapping[str, Any], where: str) -> Any:
        """Return the label in a cell. Raises InvalidInput beginning with `where`."""

    def choose(self, columns: Collection[str]) -> None:  # noqa: B027 - as below
        """Choose the input's columns among those of the training rows that are no task's label. Raises InvalidInput."""

    def learn(self, labels: Sequence[Any]) -> None:  # noqa: B027 - most kinds need nothing
        """Collect from the training rows' labels all that the network depends on. Raises InvalidInput."""

    def check(self, label: Any, where: str) -> None:  # noqa: B027 - as above
        """Raise InvalidInput for a label that no training row has."""

    def names(self, label: Any) -> Collection[str]:
        """Return the names of labels that a label has, which the training part must have, too."""
        return ()

    def _text(self, row: Mapping[str, Any], column: str, origin: str) -> str:
        value = row.get(column)
        if value is None or column not in row:
            problem, there = f"has no {column!r}", ", ".join(row)
            raise InvalidInput(origin, problem, f"name the column in {self.where}.input; columns here: {there}")
        if not isinstance(value, str) or not value.strip():
            found = "is empty" if isinstance(value, str) else f"is {type(value).__name__}, not text"
            raise InvalidInput(f"{origin}: {column}", found, "give it some text, or take the row out")
        return value

    # --- the network ---

    @property
    def config(self) -> dict[str, Any]:
        """The fields of the head's ``config.json``: its labels and their type."""
        labels = self.labels
        numbers = {label: number for number, label in enumerate(labels)}
        return {"id2label": dict(enumerate(labels)), "label2id": numbers} if labels else {}

    @abstractmethod
    def targets(self, label: Any, aside: Any) -> Array:
        """Return the targets of a label, `(examples, …)`: usually one, more for a text in windows (`aside`)."""

    @property
    @abstractmethod
    def blank(self) -> Array:
        """A target for an example whose loss does not count, `(1, …)`."""

    @abstractmethod
    def losses(self, values: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return each example's loss, `(examples,)`, from the head's values, `(examples, width, …)`.

        It is the sum of the example's `terms`.
        """

    def terms(self, targets: torch.Tensor) -> torch.Tensor:
        """Return the number of terms of each example's loss, `(examples,)`: 1, or its labelled tokens.

        A step's loss is the mean over the terms of all its examples, whichever process computes them.
        """
        return targets.new_ones(len(targets))

    # --- the metric ---

    @abstractmethod
    def scores(self, pairs: Sequence[Pair]) -> dict[str, float]:
        """Return the scores of answers, of which `metric` is the first."""

    def progress(self, pairs: Sequence[Pair]) -> float:
        """Return the score by which evaluations are compared during a training."""
        return self.scores(pairs)[self.metric]

    #: Whether the answers depend on a choice that is made on the validation part, after the training.
    settles: ClassVar[bool] = False

    def settle(self, pairs: Sequence[Pair]) -> None:  # noqa: B027 - as above
        """Choose `units` by the answers to the validation part."""

    def baseline(self, labels: Sequence[Any], wanted: Sequence[Any]) -> float | None:
        """Return the metric of the best constant answer, known from the training labels, or None."""
        return None


class NumberLabels(LabelledKind):
    """The base of kinds whose label is a number."""

    def number(self, value: Any, where: str) -> float:
        """Return a cell's number. Raises InvalidInput."""
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if isinstance(value, bool) or not math.isfinite(number):
            raise InvalidInput(where, f"is {value!r}, not a number", "write a number like 0.5, or leave the cell empty")
        return number

    def targets(self, label: float, aside: Any) -> Array:
        return np.array([label], dtype=np.float32)

    @property
    def blank(self) -> Array:
        return np.zeros(1, dtype=np.float32)


def listed(value: Any, where: str) -> list[Any]:
    """Return a list from a cell: a list, or its text as JSON. Raises InvalidInput."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise InvalidInput(where, f"is not JSON: {error}", "write a list, as JSON") from error
    if not isinstance(value, list):
        raise InvalidInput(where, f"is {type(value).__name__}, not a list")
    return value


def deviation(values: Sequence[float] | Array) -> float:
    """Return the standard deviation of numbers, or 1 for equal ones, whose own is 0 or rounding."""
    array = np.asarray(values, dtype=np.float64)
    differ = array.size and array.min() < array.max()
    return (float(array.std()) if differ else 0.0) or 1.0


def unknown_label(label: str, where: str) -> InvalidInput:
    remedy = "correct it, add training rows with it, or take the row out"
    return InvalidInput(where, f"is {label!r}, a label that no training row has", remedy)


def padded(rows: Sequence[Any], value: int = IGNORED) -> Array:
    """Return rows of whole numbers as `(rows, the longest)`, shorter ones filled up with a value."""
    whole = np.full((len(rows), max(map(len, rows))), value, dtype=np.int64)
    for place, row in enumerate(rows):
        whole[place, : len(row)] = row
    return whole
