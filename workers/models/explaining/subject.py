"""The interface between a model and its explanations: its continuous input, and the pass from there to the logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from producers.wire.kinds.explanation import Explanation
from workers.models.explaining.gradients import margin
from workers.models.interface.model import Array, Arrays, Model, Prepared

if TYPE_CHECKING:
    import torch

M = TypeVar("M", bound=Model)


@dataclass(frozen=True, slots=True)
class IntegrationPath:
    """The straight line from a `baseline` to an input `x`, for a task.

    Both are `(tokens, width)` or `(channels, height, width)`. `fixed` are the inputs that stay constant along the line:
    a sequence's tokens.
    """

    task: str
    x: torch.Tensor
    baseline: torch.Tensor
    fixed: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Attribution:
    """The result of a line: contributions by token or by field of an image `(down, across)`, and the ends' log-odds."""

    contributions: Array
    value: float
    base: float


class Subject(ABC, Generic[M]):
    """A model on the reference backend, with the methods that its explanation needs."""

    def __init__(self, model: M) -> None:
        self.model = model
        self.device = "cpu"  # set when the model is loaded

    # --- in the parent process ---

    @property
    @abstractmethod
    def tasks(self) -> Mapping[str, Sequence[str]]:
        """The tasks that can be explained, with their labels in the order of the scores."""

    @abstractmethod
    def about(self, task: str, content: Any, params: Any, prepared: Prepared) -> tuple[Arrays, Any]:
        """Return the further inputs of the device for an item, and the data that `told` needs."""

    @abstractmethod
    def told(self, measured: Attribution, about: Any, *, steps: int) -> Explanation:
        """Return the explanation in the form of the answer."""

    # --- in the device process ---

    @abstractmethod
    def line(self, task: str, row: Arrays, about: Arrays) -> IntegrationPath:
        """Return a row's line."""

    @abstractmethod
    def cost(self, line: IntegrationPath) -> int:
        """Return the cost of a point of the line, in the unit of the model's batches."""

    @abstractmethod
    def along(self, line: IntegrationPath, other: IntegrationPath) -> bool:
        """Return whether points of both lines may share a pass."""

    @abstractmethod
    def log_odds(self, points: Sequence[Points]) -> torch.Tensor:
        """Return the log-odds at all points, concatenated, as a differentiable function of the points' `values`."""

    def rivals(self, task: str) -> bool:
        """Return whether the task's labels exclude each other."""
        return True

    def odds(
        self, points: Sequence[Points], logits_of: Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]]
    ) -> torch.Tensor:
        """Return the log-odds at all points, from a function that gives each task's logits for its rows among them."""
        import torch

        device = points[0].values.device
        tasks = [own.line.task for own in points for _ in own.values]
        targets = torch.tensor([own.target for own in points for _ in own.values], device=device)
        rows = {
            task: torch.tensor([n for n, own in enumerate(tasks) if own == task], device=device)
            for task in dict.fromkeys(tasks)
        }
        odds = points[0].values.new_zeros(len(tasks))
        for task, logits in logits_of(rows).items():
            odds = odds.index_add(0, rows[task], margin(logits, targets[rows[task]], rivals=self.rivals(task)))
        return odds

    @abstractmethod
    def condensed(self, contributions: torch.Tensor) -> torch.Tensor:
        """Condense contributions of the input's shape to the shape of the answer."""


@dataclass(frozen=True, slots=True)
class Points:
    """Points of a line `(points, …)`, and the index of the explained label."""

    line: IntegrationPath
    target: int
    values: torch.Tensor
