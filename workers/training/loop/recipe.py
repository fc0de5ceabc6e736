"""The settings of the training loop."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

import msgspec

from producers.wire.errors import ConfigurationError

Compression = Literal["none", "fp16", "bf16", "powersgd", "topk"]

#: The parts of a training that processes share out: the rows of a step, the matrices of each layer, the states of all
#: weights, or stages of successive layers.
Split = Literal["rows", "layers", "states", "stages"]


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """All settings that the trained weights depend on, besides the data.

    `rows` are those of all processes together."""

    steps: int = 1500
    rows: int = 64
    max_tokens: int = 256
    encoder_rate: float = 5e-5
    head_rate: float = 1e-3
    #: Tasks are drawn by their number of examples to the power of 1 / temperature: 1 keeps the proportions, large
    #: values level them.
    temperature: float = 2.0
    #: A task's fixed share of the loss; without any, the shares are learnt (`JointNetwork`).
    weights: Mapping[str, float] | None = None
    dropout: bool = True
    precision: Literal["fp32", "bf16"] = "fp32"
    compression: Compression = "none"
    evaluate_every: int = 100
    #: The training ends after this many evaluations without a better one.
    patience: int = 5
    seed: int = 20261122
    #: A digest of all else that the weights depend on: a training that goes on has the same. Behind a dot it has a
    #: second digest, of settings that older checkpoints do not tell.
    subject: str = ""

    def check(self, tasks: Collection[str], parts: int) -> None:
        """Raise ConfigurationError unless a step's rows can be divided among `parts` and `weights` name these tasks."""
        if self.rows < parts:
            raise ConfigurationError(f"rows: {self.rows} cannot be dealt to {parts} micro-batches; take more rows")
        if min(self.steps, self.evaluate_every, self.patience) < 1 or self.temperature <= 0:
            raise ConfigurationError("steps, evaluate_every, patience and temperature must be above 0")
        if self.weights is not None and self.weights.keys() != set(tasks):
            raise ConfigurationError(f"weights: must name {', '.join(tasks)}, each with its share of the loss")
