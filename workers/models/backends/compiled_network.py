"""The interface of a network on a backend (named tensors in and out), and the source that a backend builds it from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

Tensors = Mapping[str, torch.Tensor]

#: A result with this prefix has an axis of tokens after the axis of rows.
TOKENS = "tokens"

#: The name without suffix of a network's files in a model's folder.
NETWORK = "network"


class Network(Protocol):
    """Named tensors in and out, batch axis first. The next call may overwrite the result."""

    def __call__(self, inputs: Tensors) -> dict[str, torch.Tensor]: ...


@dataclass(frozen=True, slots=True)
class Source:
    """The source of a network for a backend.

    `module` builds the module in evaluation mode, in fp32, on the CPU; it takes the tensors of `example` by name and
    returns tensors by name. Inputs with two axes vary in both (rows and tokens), all others in the first only. `cache`
    is a path without suffix for the backend's files (see `kept`), different for every module. A backend with cached
    files does not build the module, which would take seconds. `folder` is the model's: a network's file in it, which
    `argosy compress` wrote, is used in place of the cache. `given` is an ONNX file that is run as it is, with
    the `outputs` in its order: then there is no module.
    """

    module: Callable[[], nn.Module]
    example: Tensors
    cache: Path
    folder: Path | None = None
    given: Path | None = None
    outputs: tuple[str, ...] = ()

    def file(self, suffix: str) -> Path:
        """Return the file of a backend: in the model's folder if it is there, or else in the cache."""
        own = None if self.folder is None else self.folder / f"{NETWORK}{suffix}"
        # a model's name, and so the cache's, may have dots
        return own if own and own.is_file() else self.cache.with_name(f"{self.cache.name}{suffix}")

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(self.example)

    def make(self) -> nn.Module:
        """Build the module."""
        module = self.module()
        if module.training:
            raise ValueError(
                f"{type(module).__name__} is in training mode: it would run with its dropout; call .eval()"
            )
        return module


class Positional(nn.Module):
    """A module with positional arguments and results, as exporters need it. `outputs` names the results."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self._module = source.make()
        self._inputs = source.inputs
        self.eval()  # exporters restore the mode of the outer module in all inner modules
        with torch.inference_mode():
            self.outputs = tuple(self._module(**source.example))

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results = self._module(**dict(zip(self._inputs, tensors, strict=True)))
        return tuple(results[name] for name in self.outputs)
