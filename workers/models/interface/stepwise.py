"""The interface of models that work step by step: requests join and leave between two steps of the device process."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from workers.models.interface import ragged
from workers.models.interface.model import Array, Arrays, Model, ModelSpec, Prepared


@dataclass(frozen=True, slots=True)
class Stepped:
    """What a step made of one request: the `text` for who listens, which goes on `at` so many characters, or its `output`, and
    then it has left.

    `forward_s` is the part of the device's time that it took, from its first step to its last.
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
    """A model that holds many requests at once and moves all of them a little with each `step`.

    A request is one row of one task, as `collate` packs it. Outputs are plain values, which travel as `ragged` rows.
    """

    # --- in the parent process ---

    def collate(self, rows: Sequence[Prepared]) -> Arrays:
        """Pack each task's requests, of rows that have one."""
        return {
            task: ragged.pack([row.arrays[task].tobytes() if task in row.arrays else b"" for row in rows])
            for task in self.spec.tasks
        }

    # --- in the device process, from one thread ---

    @abstractmethod
    def join(self, key: Hashable, task: str, request: Array, *, urgency: int) -> None:
        """Take a request; the lower its `urgency` number, the sooner it steps."""

    @abstractmethod
    def leave(self, key: Hashable) -> None:
        """Forget a request: nobody wants it any more."""

    @abstractmethod
    def step(self) -> list[Stepped]:
        """Move the requests a step on. It takes as long as one pass, so that others can join in between."""

    @abstractmethod
    def clear(self) -> None:
        """Forget all requests, after a step has failed."""

    @property
    @abstractmethod
    def busy(self) -> bool:
        """Whether there is anything to step for."""

    def forward(self, arrays: Arrays, wanted: Mapping[str, Array]) -> Arrays:
        """Step until all rows of a batch are through, for who has nothing to do in between."""
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
    """What holds a model's requests and moves them: `StepwiseModel` says what each of these does."""

    def leave(self, key: Hashable) -> None: ...
    def step(self) -> list[Stepped]: ...
    def clear(self) -> None: ...
    def __len__(self) -> int: ...


E = TypeVar("E", bound=Engine)


class EngineModel(StepwiseModel, Generic[E]):
    """A stepwise model whose requests are with an engine, made by `load` as `_engine`; `join` hands them over."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self._engine: E | None = None

    @property
    def engine(self) -> E:
        assert self._engine is not None, "loaded before the first request"
        return self._engine

    def leave(self, key: Hashable) -> None:
        self.engine.leave(key)

    def step(self) -> list[Stepped]:
        return self.engine.step()

    def clear(self) -> None:
        self.engine.clear()

    @property
    def busy(self) -> bool:
        return len(self.engine) > 0
