"""The interface between the training loop and its subject: the tasks, their examples, and the network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from workers.training.loop.recipe import Recipe
from workers.training.loop.schedule import Place
from workers.training.splits.layouts import NetworkShape

Part = Literal["train", "validation", "test"]


class Examples(ABC):
    """The examples of a part, by their places, as tensors on a device."""

    @abstractmethod
    def places(self) -> list[Place]:
        """Return the places of all examples."""

    @abstractmethod
    def lengths(self, places: Sequence[Place]) -> list[int]:
        """Return the examples' costs: their tokens, or 1 each if all have the same shape."""

    @abstractmethod
    def batch(self, places: Sequence[Place]) -> dict[str, torch.Tensor]:
        """Return the network's arguments."""

    @abstractmethod
    def judged(self, network: Any, places: Sequence[Place]) -> Any:
        """Return the network's outputs for these examples as `TrainingSubject.scores` needs them; they are pickled."""


class TrainingSubject(ABC):
    """The tasks that share a network. All processes have equal subjects.

    A stream is a list of examples that come in shuffled epochs; the schedule draws from the streams.
    """

    @property
    @abstractmethod
    def tasks(self) -> Sequence[str]:
        """The tasks' names, in the order of losses and scores."""

    @property
    @abstractmethod
    def stream_sizes(self) -> tuple[int, ...]:
        """The number of training examples in each stream."""

    @property
    @abstractmethod
    def shape(self) -> NetworkShape:
        """The facts by which a split is refused."""

    @property
    def stream_tasks(self) -> tuple[tuple[int, ...], ...]:
        """The tasks' numbers of each stream: by default, a stream for each task."""
        return tuple((number,) for number in range(len(self.stream_sizes)))

    @abstractmethod
    def build(self, recipe: Recipe) -> nn.Module:
        """Return the network on the CPU: `encoder`, `heads`, and `weights` of the losses.

        It returns the sum of a batch's losses, and for each task a row of its examples and its plain loss. A parameter
        without gradient must not require it. Raises ConfigurationError.
        """

    @abstractmethod
    def examples(self, part: Part, device: str) -> Examples:
        """Return the examples of a part."""

    @abstractmethod
    def scores(self, judged: Sequence[Any]) -> list[float]:
        """Return each task's score on the validation part, higher being better, from all that was `judged`."""
