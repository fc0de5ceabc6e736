"""Labels of table rows and of sensor series: the labels of texts, over inputs that are numbers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

from producers.wire import forms
from producers.wire.errors import InvalidInput
from producers.wire.kinds.tabular import TabularClassificationParams
from producers.wire.messages import RowInput
from workers.training.kinds.label_kinds import ClassificationKind, MultiLabelKind, RegressionKind
from workers.training.kinds.labelled_kind import LabelledKind, listed

#: Networks that begin with random weights learn faster, and longer, than those that were trained before.
_FROM_RANDOM = {"rate": 1e-2, "head_rate": 1e-2, "epochs": 40.0, "patience": 10}


class MeasuredInputs(LabelledKind):
    """The base of the kinds whose network begins with random weights. A head is a matrix."""

    heads: ClassVar[tuple[str, ...]] = ("linear",)
    defaults = _FROM_RANDOM
    input_columns = ()
    one_input = True

    #: The function from a head's values to scores, as the served model applies it.
    function: str


class RowInputs(MeasuredInputs):
    """A row's input is its columns, by default all that are no task's label."""

    modality = "row"

    def choose(self, columns: Collection[str]) -> None:
        if missing := [name for name in self.columns if name not in columns]:
            problem = f"no training row has a column {missing[0]!r}, or it is a label"
            raise InvalidInput(f"{self.where}.input", problem, f"columns there: {', '.join(columns)}")
        self.columns = self.columns or tuple(columns)

    def content(self, row: Mapping[str, Any], origin: str) -> RowInput:
        return RowInput({name: row.get(name) for name in self.columns})


class TabularClassificationKind(RowInputs, ClassificationKind):
    """Exactly one label applies to a row."""

    served = "tabular-classification"
    function = "softmax"


class TabularMultiLabelKind(RowInputs, MultiLabelKind):
    """Any number of labels applies to a row. Its scores are probabilities, and stay so."""

    served = "tabular-classification"
    function = "sigmoid"
    settles = False

    @property
    def params(self) -> TabularClassificationParams:  # type: ignore[override]
        return TabularClassificationParams(top_k=None)


class TabularRegressionKind(RowInputs, RegressionKind):
    """A number for a row."""

    served = "regression"
    function = "none"

    def answered(self, answer: Any) -> float:
        return float(answer)


class SeriesClassificationKind(MeasuredInputs, ClassificationKind):
    """Exactly one label applies to a series of measurements at equal intervals.

    The column `series` has a list for each channel, or an object with the channels' names; or `input` names a column
    for each channel, with a list of its values.
    """

    modality = "series"
    served = "time-series-classification"
    function = "softmax"

    def __init__(self, name: str, table: Any, where: str) -> None:
        super().__init__(name, table, where)
        self.columns = self.columns or ("series",)

    def content(self, row: Mapping[str, Any], origin: str) -> Any:
        values = {name: self._values(row, name, origin) for name in self.columns}
        given = values["series"] if self.columns == ("series",) else values
        return forms.check("series", given, forms.Limits(), f"{origin}: {self.columns[0]}")

    def _values(self, row: Mapping[str, Any], column: str, origin: str) -> Any:
        value = row.get(column)
        if value is None:
            problem, there = f"has no {column!r}", ", ".join(row)
            raise InvalidInput(origin, problem, f"name the column in {self.where}.input; columns here: {there}")
        return value if isinstance(value, Mapping | Sequence) and not isinstance(value, str) else listed(value, origin)
