"""A model with backends that fail in different places: at the load, in a pass, in a large batch, in answers."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from producers.wire.catalogue import Task
from workers.models.interface.model import Array, Arrays, Model, Prepared, digest


class FragileModel(Model):
    """Answers with the length of a text.

    OpenVINO does not load, torch in bf16 raises, and answers of ONNX Runtime cannot be finished. The option `deadly`
    names a backend whose passes kill the process.
    """

    tunable = True
    backends = ("torch", "openvino", "onnxruntime")
    budgets = (16, 32, 64)

    #: The most rows of a batch.
    most_rows = 40

    def prepare(self, content: Any, params: Mapping[str, msgspec.Struct]) -> Prepared:
        arrays = {"length": np.array([len(content), 1.0], dtype=np.float32)}
        return Prepared(arrays, 1, digest(arrays))

    def finish(self, task: Task, output: Array, params: msgspec.Struct, prepared: Prepared) -> Any:
        if self.spec.backend.name == "onnxruntime":
            raise LookupError("no such answer")
        return output

    def load(self, device: str) -> None:
        if self.spec.backend.name == "openvino":
            raise KeyError("opset")

    def forward(self, arrays: Arrays, wanted: Mapping[str, Array]) -> Arrays:
        if str(self.spec.backend) == self.spec.options.get("deadly"):
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.spec.backend.precision == "bf16":
            raise TypeError("expected Float but found BFloat16\nfor argument #2")
        rows = arrays["length"]
        if len(rows) > self.most_rows:
            raise MemoryError("out of memory")
        return {task: rows[own] for task, own in wanted.items()}
