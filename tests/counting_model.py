"""A stepwise model whose requests take as many steps as their text says."""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping
from typing import Any

import msgspec
import numpy as np

from producers.wire.catalogue import Task
from workers.models.interface import ragged
from workers.models.interface.model import Array, ModelSpec, Prepared, digest
from workers.models.interface.stepwise import StepResult, StepwiseModel


class CountingModel(StepwiseModel):
    """Answers a number with itself, after as many steps."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self._left: dict[Hashable, int] = {}

    def prepare(self, content: Any, params: Mapping[str, msgspec.Struct]) -> Prepared:
        data = np.frombuffer(msgspec.msgpack.encode(int(content)), dtype=np.uint8)
        return Prepared({"count": data}, 1, digest({"count": data}))

    def finish(self, task: Task, output: Array, params: msgspec.Struct, prepared: Prepared) -> Any:
        return [{"label": ragged.unpack(output), "score": 1.0}]

    def load(self, device: str) -> None:
        pass

    def join(self, key: Hashable, task: str, request: Array, *, urgency: int) -> None:
        self._left[key] = int(msgspec.msgpack.decode(ragged.unpack(request)))

    def leave(self, key: Hashable) -> None:
        self._left.pop(key, None)

    def step(self) -> list[StepResult]:
        time.sleep(0.001)
        self._left = {key: left - 1 for key, left in self._left.items()}
        ended = [key for key, left in self._left.items() if left <= 0]
        for key in ended:
            del self._left[key]
        return [StepResult(key, output="counted", forward_s=0.001) for key in ended]

    def clear(self) -> None:
        self._left.clear()

    @property
    def busy(self) -> bool:
        return bool(self._left)
