"""A model that only decodes files: its outputs are the sums of their values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from producers.wire.catalogue import Task
from workers.models.interface.model import Array, Arrays, Model, Prepared, digest
from workers.models.pictures import pixels


class FileModel(Model):
    """Answers a picture with the sum of its pixels."""

    def prepare(self, content: Any, params: Mapping[str, msgspec.Struct]) -> Prepared:
        arrays = {"sum": np.array([int(pixels.decode(content).sum())], dtype=np.int64)}
        return Prepared(arrays, 1, digest(arrays))

    def finish(self, task: Task, output: Array, params: msgspec.Struct, prepared: Prepared) -> Any:
        return [{"label": str(int(output[0])), "score": 1.0}]

    def load(self, device: str) -> None:
        """Load nothing."""

    def forward(self, arrays: Arrays, wanted: Mapping[str, Array]) -> Arrays:
        return {task: arrays["sum"][rows] for task, rows in wanted.items()}
