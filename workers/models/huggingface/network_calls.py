"""Helpers to call a transformers network: filter its inputs, and select rows of its output."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def accepted(network: Any) -> Collection[str]:
    """Return the names of the inputs that a network accepts."""
    return inspect.signature(network.forward).parameters


def call(network: Any, inputs: Mapping[str, Any]) -> Any:
    """Call a transformers network with the inputs that it accepts."""
    known = accepted(network)
    chosen = {name: value for name, value in inputs.items() if name in known}
    if "use_cache" in known:
        chosen["use_cache"] = False
    return network(**chosen)


def rows_of(output: Any, rows: torch.Tensor, count: int) -> Any:
    """Select rows of the output of a pass of `count` rows, in every tensor at any depth.

    A tensor with another first axis, such as the layers of a detector, stays as it is.
    """
    import torch

    if isinstance(output, torch.Tensor):
        return output.index_select(0, rows) if output.shape[:1] == (count,) else output
    if isinstance(output, tuple):
        return tuple(rows_of(part, rows, count) for part in output)
    if isinstance(output, dict):  # for example transformers' ModelOutput
        return type(output)(**{name: rows_of(part, rows, count) for name, part in output.items()})
    return output
