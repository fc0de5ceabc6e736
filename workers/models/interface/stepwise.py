"""The interface of models that work step by step: requests join and leave between two steps of the device process."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from workers.models.interface import ragged
from workers.models.interface.model import Array, Arrays, Model, ModelSpec, Prepared


@dataclass(frozen=True, slots=True)
class StepResult:
    """The result of a step for a request: a piece of `text` for listeners, or its final `output`.

    `at` is the position of `text`, in characters, in the whole answer. `forward_s` is the request's share of the
    device's time, from its first step to its last.
    """

    key: Hashable
    text: str = ""
    at: int = 0
    output: Any = None
    forward_s: float = 0.0

    @property
    def ended(self) -> bool:
        return self.output is not None


class StepwiseModel(Model):
    """A model that holds many requests at once and advances all of them with each `step`.

    A request is a row of a single task, as `collate` packs it. Outputs are plain values, packed as `ragged` rows.
    """

    # --- in the parent process ---

    def collate(self, rows: Sequence[Prepared]) -> Arrays:
        """Pack the requests of each task; rows without the task get an empty request."""
        return {
            task: ragged.pack([row.arrays[task].tobytes() if task in row.arrays else b"" for row in rows])
            for task in self.spec.tasks
        }

    # --- in the device process, from one thread ---

    @abstractmethod
    def join(self, key: Hashable, task: str, request: Array, *, urgency: int) -> None:
        """Add a request; a lower `urgency` number steps sooner."""

    @abstractmethod
    def leave(self, key: Hashable) -> None:
        """Drop a request that is no longer needed."""

    @abstractmethod
    def step(self) -> list[StepResult]:
        """Advance the requests by a step. A step takes as long as a pass, so that others can join in between."""

    @abstractmethod
    def clear(self) -> None:
        """Drop all requests, after a step has failed."""

    @property
    @abstractmethod
    def busy(self) -> bool:
        """Whether any request is left."""

    def forward(self, arrays: Arrays, wanted: Mapping[str, Array]) -> Arrays:
        """Step until all rows of a batch are done, for callers without other work between steps."""
        outputs: dict[str, list[Any]] = {task: [None] * len(rows) for task, rows in wanted.items()}
        for task, rows in wanted.items():
            for place, row in enumerate(rows):
                self.join((task, place), task, arrays[task][row], urgency=0)
        while self.busy:
            for stepped in self.step():
                if stepped.ended and isinstance(stepped.key, tuple):
                    task, place = stepped.key
                    outputs[task][place] = stepped.output
        return {task: ragged.pack(own) for task, own in outputs.items()}


class Engine(Protocol):
    """The holder of a model's requests; `StepwiseModel` documents the methods."""

    def leave(self, key: Hashable) -> None: ...
    def step(self) -> list[StepResult]: ...
    def clear(self) -> None: ...
    def __len__(self) -> int: ...


E = TypeVar("E", bound=Engine)


class EngineModel(StepwiseModel, Generic[E]):
    """A stepwise model that keeps its requests in an engine. `load` sets `_engine`, and `join` hands requests to it."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self._engine: E | None = None

    @property
    def engine(self) -> E:
        assert self._engine is not None, "loaded before the first request"
        return self._engine

    def leave(self, key: Hashable) -> None:
        self.engine.leave(key)

    def step(self) -> list[StepResult]:
        return self.engine.step()

    def clear(self) -> None:
        self.engine.clear()

    @property
    def busy(self) -> bool:
        return len(self.engine) > 0
