"""Runs the graphs that `workers.models.converting.tfjs` writes, as a torch module. Imports torch: for the device process."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from workers.models.converting.tfjs import GRAPH, WEIGHTS

Tensor: TypeAlias = torch.Tensor
Node: TypeAlias = Mapping[str, Any]
Result: TypeAlias = Tensor | Sequence[Tensor]


class GraphNetwork(nn.Module):
    """A graph of one input, of which each row is on its own. Returns the outputs by name."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        graph = json.loads((folder / GRAPH).read_text("utf-8"))
        [self.input] = graph["inputs"]
        self.outputs: list[str] = graph["outputs"]
        self._nodes: list[Node] = graph["nodes"]
        self._buffer_of: dict[str, str] = {}
        filters = {node["inputs"][1]: node for node in self._nodes if node["op"].startswith("conv")}
        for number, (name, weight) in enumerate(sorted(load_file(folder / WEIGHTS).items())):
            self._buffer_of[name] = f"weight_{number}"
            values = weight.float()
            self.register_buffer(
                f"weight_{number}", _filters(values, filters[name]) if name in filters else values, persistent=False
            )

    def forward(self, rows: Tensor) -> dict[str, Tensor]:
        """Map the input, in the axes that the graph wants, to its outputs."""
        values: dict[str, Result] = {name: getattr(self, buffer) for name, buffer in self._buffer_of.items()}
        values[self.input] = rows
        for node in self._nodes:
            values[node["name"]] = _OPERATIONS[node["op"]](node, [_value(values, name) for name in node["inputs"]])
        return {name: _value(values, name) for name in self.outputs}


def _value(values: Mapping[str, Result], name: str) -> Tensor:
    node, _, place = name.partition(":")
    found = values[node]
    return found if isinstance(found, Tensor) else found[int(place or 0)]


def _filters(filters: Tensor, node: Node) -> Tensor:
    """Bring filters of (height, width, in, out) into torch's order; a transposed convolution's are (height, width, out, in)."""
    if node.get("depthwise"):
        return filters.permute(2, 3, 0, 1).flatten(0, 1)[:, None].contiguous()
    return filters.permute(3, 2, 0, 1).contiguous()


# --- operations: (rows, height, width, channels), as TensorFlow has them ----------------------------


def _conv(node: Node, given: list[Tensor]) -> Tensor:
    rows, filters = given
    images = rows.permute(0, 3, 1, 2)
    if node["same"]:
        images = _padded(images, filters, node["strides"], node["dilations"])
    groups = images.shape[1] // filters.shape[1]
    made = functional.conv2d(images, filters, stride=node["strides"], dilation=node["dilations"], groups=groups)
    return made.permute(0, 2, 3, 1)


def _padded(images: Tensor, filters: Tensor, strides: Sequence[int], dilations: Sequence[int]) -> Tensor:
    """Pad as TensorFlow's SAME does: an odd row or column more comes last."""
    by: list[int] = []
    for axis in (3, 2):  # the last axis comes first
        size, kernel = images.shape[axis], (filters.shape[axis] - 1) * dilations[axis - 2] + 1
        missing = max((-(-size // strides[axis - 2]) - 1) * strides[axis - 2] + kernel - size, 0)
        by += [missing // 2, missing - missing // 2]
    return functional.pad(images, by)


def _conv_transposed(node: Node, given: list[Tensor]) -> Tensor:
    rows, filters = given
    height, width = node["size"]
    made = functional.conv_transpose2d(rows.permute(0, 3, 1, 2), filters, stride=node["strides"])
    return made[:, :, :height, :width].permute(0, 2, 3, 1)


def _pad(node: Node, given: list[Tensor]) -> Tensor:
    by = [amount for pair in reversed(node["by"]) for amount in pair]
    return functional.pad(given[0], by, value=node["value"])


def _resize(node: Node, given: list[Tensor]) -> Tensor:
    images = given[0].permute(0, 3, 1, 2)
    return functional.interpolate(images, node["size"], mode="bilinear", align_corners=False).permute(0, 2, 3, 1)


def _pooled(pool: Callable[..., Tensor]) -> Callable[[Node, list[Tensor]], Tensor]:
    def run(node: Node, given: list[Tensor]) -> Tensor:
        return pool(given[0].permute(0, 3, 1, 2), tuple(node["size"]), tuple(node["strides"])).permute(0, 2, 3, 1)

    return run


def _add(_: Node, given: list[Tensor]) -> Tensor:
    first, *others = given
    for other in others:
        first = first + other
    return first


_OPERATIONS: Mapping[str, Callable[[Node, list[Tensor]], Result]] = {
    "add": _add,
    "concat": lambda node, given: torch.cat(given, node["axis"]),
    "conv": _conv,
    "conv_transposed": _conv_transposed,
    "largest": _pooled(functional.max_pool2d),
    "leaky_relu": lambda node, given: functional.leaky_relu(given[0], node["alpha"]),
    "mean": _pooled(functional.avg_pool2d),
    "multiply": lambda _, given: given[0] * given[1],
    "pad": _pad,
    "permute": lambda node, given: given[0].permute(node["order"]),
    "relu": lambda _, given: given[0].relu(),
    "relu6": lambda _, given: functional.relu6(given[0]),
    "reshape": lambda node, given: given[0].reshape(given[0].shape[0], *node["shape"]),
    "resize": _resize,
    "same": lambda _, given: given[0],
    "sigmoid": lambda _, given: given[0].sigmoid(),
    "split": lambda node, given: torch.split(given[0], node["sizes"], node["axis"]),
}
