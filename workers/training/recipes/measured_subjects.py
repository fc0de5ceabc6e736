"""Table rows and sensor series for networks that begin with random weights, as the worker's own classes serve them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from producers.wire.catalogue import Task
from producers.wire.errors import ConfigurationError
from workers.models.built_in.tables import described_heads, series, tabular
from workers.models.built_in.tables.described_heads import HeadDescription
from workers.models.built_in.tables.row_network import RowNetwork
from workers.models.built_in.tables.series import SeriesChannel, SeriesDescription, SeriesModel
from workers.models.built_in.tables.series_network import SeriesReader
from workers.models.built_in.tables.tabular import RowDescription, TabularModel
from workers.models.interface.model import Array, Arrays, Model, ModelSpec
from workers.training.kinds.labelled_kind import LabelledKind, deviation
from workers.training.kinds.measured_kinds import MeasuredInputs
from workers.training.kinds.shared_network import TO, Backbone, SharedNetwork, TaskNetwork
from workers.training.loop.recipe import Recipe
from workers.training.loop.training_subject import Part
from workers.training.recipes import served_folder, table_columns
from workers.training.recipes.folder_subject import ReadRow, TrainedFolder
from workers.training.recipes.labelled_rows import LabelledRow
from workers.training.recipes.recipe_file import TrainTable
from workers.training.splits.layouts import NetworkShape

#: The bounds of the divisor of a head's values.
_TEMPERATURES = np.geomspace(0.5, 10, 121)

#: A series may be longer than the longest that was trained on, by this factor.
_LONGER = 4

_SERIES_WIDTH = 64


class MatrixTask(TaskNetwork):
    """A task whose head is a matrix."""

    def values(self, features: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        module: Any = self.module
        scale, shift = self.kind.units
        found: torch.Tensor = module(features).float() * scale + shift
        return found


class TrainedNetwork(TrainedFolder):
    """Rows of numbers. A subclass writes `describe`, `reader`, `prepared` and `save`."""

    settings = ("hidden",)
    has_backbone = False

    kinds: Sequence[MeasuredInputs]

    #: The worker's class, by its name in ``fleet.toml``, and the class itself.
    served_class: ClassVar[str]
    model_class: ClassVar[type[Model]]

    #: The description of the served model.
    described: Any

    def begin(self, rows: Mapping[Part, Sequence[LabelledRow]]) -> None:
        """Write a model with random weights beside the rows, which reads them; the served one comes at the end."""
        (self.out / served_folder.BACKBONE).mkdir(parents=True, exist_ok=True)
        self.described = self.describe(rows)
        reader = self.reader()
        heads = self._heads({kind.name: self._matrix(reader, kind) for kind in self.kinds})
        self.save({**_named("", reader), **heads}, self.out / served_folder.ROWS)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "described": self.described}

    @classmethod
    def shape_of(cls, backbone: Path, train: TrainTable) -> NetworkShape:
        return NetworkShape(cls.served_class, 0, 0, 0)

    @property
    def shape(self) -> NetworkShape:
        return self.shape_of(self.backbone, self.train)

    @cached_property
    def model(self) -> Any:
        tasks = {kind.name: Task(kind.name, kind.kind, "trained", "") for kind in self.kinds}
        return self.model_class(ModelSpec("trained", self.out / served_folder.ROWS, "", tasks, {}))

    @property
    def heads(self) -> dict[str, HeadDescription]:
        return {kind.name: HeadDescription(kind.labels, kind.function) for kind in self.kinds}  # type: ignore[arg-type]

    @abstractmethod
    def describe(self, rows: Mapping[Part, Sequence[LabelledRow]]) -> Any:
        """Return the description of the served model. Raises ConfigurationError, InvalidInput."""

    @abstractmethod
    def reader(self) -> Any:
        """Return the layers that the tasks share, with random weights and their output's `width`."""

    @abstractmethod
    def prepared(self, row: LabelledRow, kind: LabelledKind) -> Any:
        """Return a row's input as the served model takes it. Raises InvalidInput."""

    @abstractmethod
    def save(self, tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
        """Write the served model's file."""

    def read(self, row: LabelledRow, kinds: Sequence[LabelledKind]) -> ReadRow:
        return self.read_input(row, kinds, self.prepared(row, kinds[0]))

    def collate(self, rows: Sequence[ReadRow]) -> tuple[Arrays, Arrays]:
        inputs = self.model.collate([next(iter(row.asides.values())) for row in rows])
        return inputs, self.places(rows)

    def answer(self, kind: LabelledKind, outputs: Array, aside: Any) -> Any:
        return self.model.finish(self.model.spec.tasks[kind.name], outputs[0], kind.params, aside)

    # --- the network ---

    def build(self, recipe: Recipe) -> SharedNetwork:
        torch.manual_seed(recipe.seed)
        reader = self.reader()
        tasks = [MatrixTask(kind, None, self._matrix(reader, kind)) for kind in self.kinds]
        return SharedNetwork(Backbone(reader, frozen=False), tasks, recipe.weights)

    def _matrix(self, reader: Any, kind: LabelledKind) -> nn.Linear:
        return nn.Linear(reader.width, len(kind.labels))

    def calibrate(self, network: SharedNetwork) -> None:
        """Divide each head's values by the temperature that makes its probabilities right (Guo et al., 2017).

        It is that of the validation rows.
        """
        examples = self.examples("validation", "cpu")
        batch = examples.batch(examples.places())
        network.eval()
        with torch.no_grad():
            for task, values in zip(network.tasks, network.values(batch), strict=True):
                if task.kind.units != (1.0, 0.0) or task.module is None:  # a number has no probability
                    continue
                targets = batch[f"{TO}{task.kind.name}"]
                losses = [float(task.kind.losses(values / own, targets).sum()) for own in _TEMPERATURES]
                for parameter in task.module.parameters():
                    parameter.div_(float(_TEMPERATURES[int(np.argmin(losses))]))

    def write(self, network: SharedNetwork) -> None:
        for task in network.tasks:
            if task.module is not None and task.kind.units != (1.0, 0.0):
                served_folder.in_units(task.module, *task.kind.units)
        modules = {task.kind.name: task.module for task in network.tasks}
        tensors = {**_named("", network.encoder.backbone), **self._heads(modules)}
        self.save(tensors, self.out / served_folder.BACKBONE)

    def _heads(self, modules: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        named = [_named(f"{described_heads.HEAD}{task}.", module) for task, module in modules.items()]
        return {name: tensor for own in named for name, tensor in own.items()}


class TrainedTable(TrainedNetwork):
    """Rows of a table. Without hidden layers, the model is linear and explains its answers."""

    served_class, model_class = "tabular", TabularModel
    described: RowDescription

    def describe(self, rows: Mapping[Part, Sequence[LabelledRow]]) -> RowDescription:
        remedy = "leave it out: data.drop"
        names = self.kinds[0].columns
        cells = {name: [row.columns.get(name) for row in rows["train"]] for name in names}
        return RowDescription(tuple(table_columns.column(name, own, remedy) for name, own in cells.items()), self.heads)

    def reader(self) -> RowNetwork:
        return RowNetwork(sum(column.width for column in self.described.columns), self.train.hidden or ())

    def prepared(self, row: LabelledRow, kind: LabelledKind) -> Any:
        content = kind.content(row.columns, row.origin)
        columns = self.described.columns
        values = {one.name: table_columns.value(one, content.values[one.name], one.name) for one in columns}
        return type(content)(values)

    def save(self, tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
        tabular.save({**tensors, tabular.AVERAGE: self._mean()}, self.described, folder)

    def _mean(self) -> torch.Tensor:
        """Return the mean of the training rows as the network reads them; zeros before they were read."""
        width = sum(column.width for column in self.described.columns)
        if not hasattr(self, "parts"):
            return torch.zeros(width)
        examples = self.examples("train", "cpu")
        return examples.batch(examples.places())["input/row"].mean(0)


class TrainedSeries(TrainedNetwork):
    """Series of measurements, read in both directions by a recurrent network."""

    served_class, model_class = "series", SeriesModel
    described: SeriesDescription

    @classmethod
    def shape_of(cls, backbone: Path, train: TrainTable) -> NetworkShape:
        if train.hidden is not None and len(train.hidden) != 1:
            raise ConfigurationError(f"train.hidden: a series has one layer, not {len(train.hidden)}; name its width")
        return super().shape_of(backbone, train)

    def describe(self, rows: Mapping[Part, Sequence[LabelledRow]]) -> SeriesDescription:
        kind = self.kinds[0]
        read = {part: [kind.content(row.columns, row.origin) for row in own] for part, own in rows.items()}
        first = read["train"][0]
        names = first.names or tuple(map(str, range(len(first.channels))))
        values: dict[str, list[float]] = {name: [] for name in names}
        for one in read["train"]:
            for name, own in zip(one.names or names, one.channels, strict=False):
                values.get(name, []).extend(number for number in own if number is not None)
        channels = tuple(SeriesChannel(name, float(np.mean(own)), deviation(own)) for name, own in values.items())
        lengths = [len(one.channels[0]) for own in read.values() for one in own]
        return SeriesDescription(channels, (), (min(lengths), _LONGER * max(lengths)), self.heads)

    def reader(self) -> SeriesReader:
        [width] = self.train.hidden or (_SERIES_WIDTH,)
        return SeriesReader(len(self.described.channels), width=width)

    def prepared(self, row: LabelledRow, kind: LabelledKind) -> Any:
        return kind.content(row.columns, row.origin)

    def save(self, tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
        series.save(tensors, self.described, folder)


def _named(prefix: str, module: nn.Module) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in module.state_dict().items()}
