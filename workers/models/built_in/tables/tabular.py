"""Classify table rows with a calibrated linear model, whose decisions split exactly into contributions of the columns.

`workers.training.train_tabular` trains it and writes one safetensors file; the metadata hold the columns and labels.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import msgspec
import numpy as np

from producers.wire.catalogue import Task
from producers.wire.errors import InvalidInput
from producers.wire.kinds.explanation import ColumnPart, Explanation
from producers.wire.messages import RowInput
from workers.models.built_in.described_file import read_described
from workers.models.interface.model import SCORE_DIGITS, Array, Arrays, Model, ModelSpec, Prepared
from workers.models.interface.options import Options

FILE = "tabular.safetensors"
FORMAT = "argosy-tabular/1"


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


class TabularModel(Model):
    """A model of rows (`producers.wire.messages.RowInput`). All its tasks give the same answer, explained or not."""

    options_class = Options
    default_cost = 4096
    explains = True

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self._network: Any = None
        self._device = "cpu"

    # --- in the parent process ---

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
        return Prepared({"row": row}, 1, hashlib.blake2b(row.tobytes(), digest_size=16).digest(), aside=content)

    def finish(self, task: Task, output: Array, params: Any, prepared: Prepared) -> list[dict[str, Any]]:
        """Return the best labels of probabilities `(labels,)`, explained if `explain` is set."""
        best = np.argsort(-output, kind="stable")[: params.top_k]
        answers: list[dict[str, Any]] = []
        for place in best:
            answer: dict[str, Any] = {"label": self.labels[place], "score": round(float(output[place]), SCORE_DIGITS)}
            if params.explain:
                answer["explanation"] = self._explanation(int(place), prepared)
            answers.append(answer)
        return answers

    def _explanation(self, label: int, prepared: Prepared) -> Explanation:
        weights, bias = (self._tensors[name].astype(np.float64) for name in ("weight", "bias"))
        slope = weights[label] - np.delete(weights, label, axis=0).mean(axis=0)
        average = self._tensors["average"]
        base = float(slope @ average + bias[label] - np.delete(bias, label).mean())
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
        return self._described[0]

    @property
    def labels(self) -> Sequence[str]:
        return self._described[1]

    @cached_property
    def _described(self) -> tuple[tuple[Column, ...], tuple[str, ...]]:
        def decode(metadata: Mapping[str, str]) -> tuple[tuple[Column, ...], tuple[str, ...]]:
            columns = msgspec.json.decode(metadata["columns"], type=tuple[Column, ...])
            return columns, tuple(json.loads(metadata["labels"]))

        return read_described(self.spec.folder / FILE, FORMAT, decode, where=f"models.{self.spec.name}: ")

    @cached_property
    def _tensors(self) -> Arrays:
        from safetensors.numpy import load_file

        return load_file(self.spec.folder / FILE)

    # --- in the device process ---

    def load(self, device: str) -> None:
        import torch

        self._device = device
        _ = self.columns  # report errors in the file before anything is loaded
        weight, bias = self._tensors["weight"], self._tensors["bias"]
        network = torch.nn.Linear(weight.shape[1], weight.shape[0])
        network.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
        self._network = network.eval().to(device)

    def forward(self, arrays: Arrays, wanted: Mapping[str, Array]) -> Arrays:
        import torch

        with torch.inference_mode():
            scores = self._network(torch.from_numpy(arrays["row"].copy()).to(self._device)).softmax(-1).cpu().numpy()
        return {task: scores[rows] for task, rows in wanted.items()}
