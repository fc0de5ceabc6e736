"""Calls of a network of transformers: the inputs that it knows, and the rows of its output."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def accepted(network: Any) -> Collection[str]:
    """Return the names of a network's inputs."""
    return inspect.signature(network.forward).parameters


def call(network: Any, inputs: Mapping[str, Any]) -> Any:
    """Call a network of transformers with those of the inputs that it knows."""
    known = accepted(network)
    chosen = {name: value for name, value in inputs.items() if name in known}
    if "use_cache" in known:
        chosen["use_cache"] = False
    return network(**chosen)


def rows_of(output: Any, rows: torch.Tensor) -> Any:
    """Return the rows of a network's output: of every tensor in it, however it is nested."""
    import torch

    if isinstance(output, torch.Tensor):
        return output.index_select(0, rows)
    if isinstance(output, tuple):
        return tuple(rows_of(part, rows) for part in output)
    if isinstance(output, dict):  # transformers' ModelOutput is one
        return type(output)(**{name: rows_of(part, rows) for name, part in output.items()})
    return output
