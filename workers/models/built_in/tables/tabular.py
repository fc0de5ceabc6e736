"""Models of table rows: labels or numbers, from layers that all tasks share.

Without hidden layers, the decisions split exactly into contributions of the columns. `argosy train` writes one
safetensors file; the metadata hold the columns and the heads.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from producers.wire.catalogue import Task
from producers.wire.errors import InvalidInput
from producers.wire.kinds.explanation import ColumnPart, Explanation
from producers.wire.messages import RowInput
from workers.models.built_in.described_file import read_described, write_described
from workers.models.built_in.tables import described_heads
from workers.models.interface.model import SCORE_DIGITS, Array, Arrays, Model, ModelSpec, Prepared
from workers.models.interface.options import Options

FILE = "tabular.safetensors"
FORMAT = "argosy-tabular/2"

#: The format of a linear model of one head, by `workers.training.train_tabular`.
LINEAR_FORMAT = "argosy-tabular/1"

#: The name of the rows' mean in the training.
AVERAGE = "average"

_HIDDEN = "layers.0.weight"


class Column(msgspec.Struct, frozen=True, omit_defaults=True):
    """A column of the training data: numbers by `mean` and `scale`, or words by `categories`, one input each.

    `lowest` and `highest` are the extremes in the training data.
    """

    name: str
    mean: float = 0.0
    scale: float = 1.0
    lowest: float = -math.inf
    highest: float = math.inf
    categories: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        return len(self.categories) or 1

    def encode(self, value: object, field: str) -> list[float]:
        """Return the inputs for a value; null gives the average of the training data. Raises InvalidInput."""
        if value is None:
            return [0.0] * self.width
        if self.categories:
            if isinstance(value, bool):
                value = str(value).lower()
            if value not in self.categories:
                raise InvalidInput(
                    field, f"is {value!r}, unknown to the model", f"one of {', '.join(self.categories)}, or null"
                )
            return [float(value == category) for category in self.categories]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidInput(
                field, f"must be a number, not {type(value).__name__}", "give a number, or null if unknown"
            )
        return [(float(value) - self.mean) / self.scale]

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON Schema of the column's values."""
        return {"enum": [*self.categories, None]} if self.categories else {"type": ["number", "null"]}


class RowDescription(msgspec.Struct, frozen=True):
    """The metadata of a model's file."""

    columns: tuple[Column, ...]
    heads: described_heads.Heads


class TabularModel(Model):
    """A model of rows (`producers.wire.messages.RowInput`). All its tasks share a pass."""

    options_class = Options
    default_cost = 4096
    explains = True

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self._network: Any = None
        self._modules: dict[str, Any] = {}
        self._device = "cpu"

    # --- in the parent process ---

    @property
    def revision(self) -> str:
        described_heads.check(self.spec, self.described.heads)  # when the worker starts
        return super().revision

    def prepare(self, content: Any, params: Mapping[str, msgspec.Struct]) -> Prepared:
        """Standardise a row. It must have exactly the columns of the training data; null is allowed."""
        if not isinstance(content, RowInput):
            raise InvalidInput("input", "must be an object of columns and values", "see `argosy tasks`")
        known = {column.name for column in self.columns}
        if unknown := sorted(set(content.values) - known):
            raise InvalidInput(
                f"input.{unknown[0]}", "is not a column of the model", f"columns: {', '.join(sorted(known))}"
            )
        if missing := sorted(known - set(content.values)):
            raise InvalidInput(f"input.{missing[0]}", "is missing", "give its value, or null if it is unknown")
        encoded = [
            part
            for column in self.columns
            for part in column.encode(content.values[column.name], f"input.{column.name}")
        ]
        row = np.array(encoded, dtype=np.float32)
        content_of = hashlib.blake2b(row.tobytes(), digest_size=16).digest()
        return Prepared({"row": row}, 1, content_of, self._unexplained(params), aside=content)

    def _unexplained(self, params: Mapping[str, msgspec.Struct]) -> dict[str, InvalidInput]:
        """Return the refusals of tasks that are asked for an explanation which they do not have."""
        if _HIDDEN not in self._tensors:
            return {}
        problem = "the model has hidden layers, whose decisions do not split into columns"
        error = InvalidInput("params.explain", problem, "train it without `hidden`")
        return {task: error for task, own in params.items() if getattr(own, "explain", False)}

    def finish(self, task: Task, output: Array, params: Any, prepared: Prepared) -> Any:
        """Return the best labels of a head's values `(labels,)`, explained if `explain` is set, or a number."""
        answer = described_heads.answer(task, self.described.heads, output, getattr(params, "top_k", None))
        if getattr(params, "explain", False):
            for one in answer:
                one["explanation"] = self._explanation(task.name, one["label"], prepared)
        return answer

    def _explanation(self, task: str, name: str, prepared: Prepared) -> Explanation:
        head = described_heads.of(task, self.described.heads)
        prefix = described_heads.HEAD + (
            described_heads.EVERY if described_heads.EVERY in self.described.heads else task
        )
        weights, bias = (self._tensors[f"{prefix}.{part}"].astype(np.float64) for part in ("weight", "bias"))
        label = head.labels.index(name)
        slope, average = weights[label], self._tensors[AVERAGE]
        base = float(bias[label])
        if head.function == "softmax":  # against the other labels' mean
            slope = slope - np.delete(weights, label, axis=0).mean(axis=0)
            base -= float(np.delete(bias, label).mean())
        base += float(slope @ average)
        parts = slope * (prepared.arrays["row"] - average)
        return Explanation(
            method="linear",
            baseline="the average row of the training",
            value=round(base + float(parts.sum()), SCORE_DIGITS),
            base=round(base, SCORE_DIGITS),
            columns=tuple(sorted(self._contributions(parts, prepared), key=lambda part: -abs(part.contribution))),
        )

    def _contributions(self, parts: Array, prepared: Prepared) -> Iterator[ColumnPart]:
        start = 0
        for column in self.columns:
            part = float(parts[start : start + column.width].sum())
            start += column.width
            yield ColumnPart(column.name, prepared.aside.values[column.name], round(part, SCORE_DIGITS))

    def declared_schemas(self) -> dict[str, Any]:
        columns = {column.name: column.schema for column in self.columns}
        return {"input": {"type": "object", "properties": columns, "required": [*columns]}}

    @property
    def columns(self) -> Sequence[Column]:
        return self.described.columns

    @cached_property
    def described(self) -> RowDescription:
        """The metadata of the model's file. Raises ConfigurationError."""

        def decode(metadata: Mapping[str, str]) -> RowDescription:
            if metadata["format"] == FORMAT:
                return msgspec.json.decode(metadata["described"], type=RowDescription)
            columns = msgspec.json.decode(metadata["columns"], type=tuple[Column, ...])
            head = described_heads.HeadDescription(tuple(json.loads(metadata["labels"])))
            return RowDescription(columns, {described_heads.EVERY: head})

        return read_described(
            self.spec.folder / FILE, (FORMAT, LINEAR_FORMAT), decode, where=f"models.{self.spec.name}: "
        )

    @cached_property
    def _tensors(self) -> Arrays:
        from safetensors.numpy import load_file

        prefix = f"{described_heads.HEAD}{described_heads.EVERY}."
        tensors = load_file(self.spec.folder / FILE)
        return {f"{prefix}{name}" if name in ("weight", "bias") else name: own for name, own in tensors.items()}

    # --- in the device process ---

    def load(self, device: str) -> None:
        import torch

        from workers.models.built_in.tables.row_network import RowNetwork

        self._device = device
        columns = sum(column.width for column in self.columns)  # report errors in the file before anything is loaded
        tensors = {name: torch.from_numpy(own) for name, own in self._tensors.items()}
        self._network = RowNetwork.of_tensors(tensors, columns).eval().to(device)
        heads = described_heads.load(tensors, self.described.heads)
        self._modules = {name: head.eval().to(device) for name, head in heads.items()}

    def forward(self, arrays: Arrays, wanted: Mapping[str, Array]) -> Arrays:
        import torch

        with torch.inference_mode():
            features = self._network(torch.from_numpy(arrays["row"].copy()).to(self._device))
            return described_heads.run(self._modules, features, wanted)


def save(tensors: Mapping[str, Any], described: RowDescription, folder: Path) -> None:
    """Write tensors of torch with their description: `layers.N`, `heads/TASK`, and the rows' mean, `AVERAGE`."""
    metadata = {"format": FORMAT, "described": msgspec.json.encode(described).decode()}
    write_described(folder / FILE, tensors, metadata)
