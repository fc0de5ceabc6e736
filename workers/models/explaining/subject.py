"""What must be known of a model to explain it: where its input is continuous, and how it goes on from there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from producers.wire.kinds.explanation import Explanation
from workers.models.interface.model import Array, Arrays, Model, Prepared

if TYPE_CHECKING:
    import torch

M = TypeVar("M", bound=Model)


@dataclass(frozen=True, slots=True)
class Line:
    """The straight line from a `baseline` to an input `x`, for one task; both `(tokens, width)` or `(channels, height, width)`.

    `fixed` is what stays as it is along it: a sequence's tokens.
    """

    task: str
    x: torch.Tensor
    baseline: torch.Tensor
    fixed: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Measured:
    """What a line came to: contributions by token, or by field of an image `(down, across)`; the log-odds at its ends."""

    contributions: Array
    value: float
    base: float


class Subject(ABC, Generic[M]):
    """A model of the reference backend as something to explain."""

    def __init__(self, model: M) -> None:
        self.model = model
        self.device = "cpu"  # once loaded, where the model is

    # --- in the parent process ---

    @property
    @abstractmethod
    def tasks(self) -> Mapping[str, Sequence[str]]:
        """The tasks that can be explained, with their labels in the order of the scores."""

    @abstractmethod
    def about(self, task: str, content: Any, params: Any, prepared: Prepared) -> tuple[Arrays, Any]:
        """Return what the device needs of an input besides its row, and what `told` needs of it."""

    @abstractmethod
    def told(self, measured: Measured, about: Any, *, steps: int) -> Explanation:
        """Return the explanation for who asked."""

    # --- in the device process ---

    @abstractmethod
    def line(self, task: str, row: Arrays, about: Arrays) -> Line:
        """Return where a row's line begins and ends."""

    @abstractmethod
    def cost(self, line: Line) -> int:
        """Return what a point of the line costs, in the unit of the model's batches."""

    @abstractmethod
    def along(self, line: Line, other: Line) -> bool:
        """Say whether points of both may go through the network together."""

    @abstractmethod
    def log_odds(self, points: Sequence[Points]) -> torch.Tensor:
        """Return the log-odds at all points, one behind the other, as a function of the points' `values`."""

    @abstractmethod
    def condensed(self, contributions: torch.Tensor) -> torch.Tensor:
        """Return what is told of contributions of the shape of the input."""


@dataclass(frozen=True, slots=True)
class Points:
    """Some points of a line `(points, …)`, and which label they are asked about."""

    line: Line
    target: int
    values: torch.Tensor
