"""A network on a backend: named tensors in, named tensors out, whatever computes them; and what a backend makes it from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

Tensors = Mapping[str, torch.Tensor]

#: A result whose name begins so has an axis of tokens after that of rows.
TOKENS = "tokens"


class Network(Protocol):
    """Named tensors in, named tensors out, batch axis first. What comes out may be overwritten by the next call."""

    def __call__(self, inputs: Tensors) -> dict[str, torch.Tensor]: ...


@dataclass(frozen=True, slots=True)
class Source:
    """What a backend makes a network from.

    `module` makes the module, which takes the tensors of `example` by name and returns tensors by name; it is in evaluation
    mode, in fp32, on the CPU. In an input of two axes both may vary (rows and tokens), in any other the first alone. `cache`
    is the file, without suffix, under which a backend may keep what it made of the module (`kept`): another module has another.
    What is kept there needs no module, whose making takes seconds.
    """

    module: Callable[[], nn.Module]
    example: Tensors
    cache: Path

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(self.example)

    def make(self) -> nn.Module:
        """Return the module."""
        module = self.module()
        if module.training:
            raise ValueError(
                f"{type(module).__name__} is in training mode: it would run with its dropout; call .eval()"
            )
        return module


class Positional(nn.Module):
    """A module of named tensors as exporters want it: arguments and results by place. `outputs` are the results' names."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self._module = source.make()
        self._inputs = source.inputs
        self.eval()  # exporters leave a module, and all within, in the mode that the whole was in
        with torch.inference_mode():
            self.outputs = tuple(self._module(**source.example))

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results = self._module(**dict(zip(self._inputs, tensors, strict=True)))
        return tuple(results[name] for name in self.outputs)
