"""Graph models of TensorFlow.js to a graph of our own: ``graph.json`` and ``model.safetensors``. For `workers.models.converting.convert`.

Such a model is a JSON file with the nodes of a frozen TensorFlow graph, and a file with their constants, here in half precision. What is
written names few operations, in the order in which they run (`workers.models.converting.graph_network` runs them), without TensorFlow.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

Array: TypeAlias = NDArray[Any]
Node: TypeAlias = dict[str, Any]

GRAPH = "graph.json"
WEIGHTS = "model.safetensors"


def convert(source: Path, target: Path) -> None:
    """Write the graph in a ``.json`` file, whose constants lie beside it, as a folder. Raises ValueError for what it cannot have."""
    described = json.loads(source.read_text("utf-8"))
    nodes = {node["name"]: node for node in described["modelTopology"]["node"]}
    constants = dict(_constants(described["weightsManifest"], source.parent))
    written: list[Node] = []
    for node in _in_order(nodes):
        if node["op"] in ("Const", "Placeholder"):
            continue
        if node["op"] in _FOLDED and all(_source(name) in constants for name in node["input"]):
            constants[node["name"]] = _FOLDED[node["op"]](*(constants[_source(name)] for name in node["input"]))
        else:
            written.append(_TRANSLATED[node["op"]](node, constants) | {"name": node["name"]})
    used = {name for node in written for name in node["inputs"]}
    weights = {name: np.ascontiguousarray(constants[name]) for name in used if name in constants}
    graph = {
        "inputs": [node["name"] for node in nodes.values() if node["op"] == "Placeholder"],
        "outputs": [output["name"].removesuffix(":0") for output in described["signature"]["outputs"].values()],
        "nodes": written,
    }
    target.mkdir(parents=True, exist_ok=True)
    (target / GRAPH).write_text(json.dumps(graph, indent=1), encoding="utf-8")
    save_file(weights, target / WEIGHTS)


def _constants(manifest: list[Node], folder: Path) -> Iterator[tuple[str, Array]]:
    for group in manifest:
        content, place = b"".join((folder / path).read_bytes() for path in group["paths"]), 0
        for weight in group["weights"]:
            kept = weight.get("quantization", {}).get("dtype", weight["dtype"])
            if kept not in ("float16", "float32", "int32"):
                raise ValueError(f"{weight['name']}: constants of {kept} are not read")
            count = int(np.prod(weight["shape"], dtype=np.int64))
            values = np.frombuffer(content, np.dtype(kept), count, place).reshape(weight["shape"])
            place += values.nbytes
            yield weight["name"], values


def _in_order(nodes: Mapping[str, Node]) -> Iterator[Node]:
    """Yield the nodes, each behind those that it needs."""
    done: set[str] = set()
    for first in nodes:
        waiting = [first]
        while waiting:
            name = waiting[-1]
            needed = [_source(given) for given in nodes[name].get("input", ()) if _source(given) not in done]
            if needed:
                waiting += needed
                continue
            waiting.pop()
            if name not in done:
                done.add(name)
                yield nodes[name]


def _source(name: str) -> str:
    """Return the node that an input comes from: ``^node`` waits for it, ``node:1`` is its second output."""
    return name.removeprefix("^").partition(":")[0]


# --- what is computed once and for all --------------------------------------------------------------


def _sparse_to_dense(places: Array, shape: Array, values: Array, default: Array) -> Array:
    dense = np.full(shape.tolist(), default.item(), dtype=values.dtype)
    dense[tuple(places.reshape(-1, dense.ndim).T)] = values
    return dense


_FOLDED: Mapping[str, Callable[..., Array]] = {"SparseToDense": _sparse_to_dense, "AddV2": lambda a, b: a + b}


# --- operations -------------------------------------------------------------------------------------


def _plain(op: str) -> Callable[[Node, Mapping[str, Array]], Node]:
    return lambda node, _: {"op": op, "inputs": node["input"]}


def _conv(node: Node, constants: Mapping[str, Array]) -> Node:
    """Filters are (height, width, in, out), or by the channel (height, width, channels, filters each)."""
    [rows, filters] = node["input"]
    depthwise = node["op"] == "DepthwiseConv2dNative"
    strides, dilations = _numbers(node, "strides")[1:3], _numbers(node, "dilations")[1:3]
    same = _text(node, "padding") == "SAME"
    _known(filters, constants)
    found = {"strides": strides, "dilations": dilations, "same": same, "depthwise": depthwise}
    return {"op": "conv", "inputs": [rows, filters], **found}


def _conv_transposed(node: Node, constants: Mapping[str, Array]) -> Node:
    sizes, filters, rows = node["input"]
    size = _known(sizes, constants).tolist()[1:3]
    _known(filters, constants)
    return {
        "op": "conv_transposed",
        "inputs": [rows, filters],
        "strides": _numbers(node, "strides")[1:3],
        "size": size,
    }


def _transpose(node: Node, constants: Mapping[str, Array]) -> Node:
    return {"op": "permute", "inputs": node["input"][:1], "order": _known(node["input"][1], constants).tolist()}


def _pad(node: Node, constants: Mapping[str, Array]) -> Node:
    value = float(_known(node["input"][2], constants)) if len(node["input"]) > 2 else 0.0
    return {
        "op": "pad",
        "inputs": node["input"][:1],
        "by": _known(node["input"][1], constants).tolist(),
        "value": value,
    }


def _concat(node: Node, constants: Mapping[str, Array]) -> Node:
    return {"op": "concat", "inputs": node["input"][:-1], "axis": int(_known(node["input"][-1], constants))}


def _split(node: Node, constants: Mapping[str, Array]) -> Node:
    sizes, axis = (_known(name, constants) for name in node["input"][1:])
    return {"op": "split", "inputs": node["input"][:1], "sizes": sizes.tolist(), "axis": int(axis)}


def _reshape(node: Node, constants: Mapping[str, Array]) -> Node:
    """The first axis is the batch's, which was 1 where the graph was frozen."""
    rows, *others = _known(node["input"][1], constants).tolist()
    if rows not in (1, -1) or (rows, -1) == (-1, min(others)):
        raise ValueError(f"{node['name']}: a reshape to {[rows, *others]} would mix the rows of a batch")
    return {"op": "reshape", "inputs": node["input"][:1], "shape": others}


def _resize(node: Node, constants: Mapping[str, Array]) -> Node:
    if not node["attr"]["half_pixel_centers"]["b"] or node["attr"]["align_corners"]["b"]:
        raise ValueError(f"{node['name']}: only bilinear resizing with centres at half pixels is known")
    return {"op": "resize", "inputs": node["input"][:1], "size": _known(node["input"][1], constants).tolist()}


def _pool(node: Node, _: Mapping[str, Array]) -> Node:
    if _text(node, "padding") != "VALID":
        raise ValueError(f"{node['name']}: pooling with padding is not known")
    op = "largest" if node["op"] == "MaxPool" else "mean"
    return {
        "op": op,
        "inputs": node["input"],
        "size": _numbers(node, "ksize")[1:3],
        "strides": _numbers(node, "strides")[1:3],
    }


def _leaky(node: Node, _: Mapping[str, Array]) -> Node:
    return {"op": "leaky_relu", "inputs": node["input"], "alpha": float(node["attr"]["alpha"]["f"])}


_TRANSLATED: Mapping[str, Callable[[Node, Mapping[str, Array]], Node]] = {
    **dict.fromkeys(("Add", "AddV2", "AddN"), _plain("add")),
    **dict.fromkeys(("Conv2D", "DepthwiseConv2dNative"), _conv),
    **dict.fromkeys(("Pad", "PadV2"), _pad),
    **dict.fromkeys(("MaxPool", "AvgPool"), _pool),
    "ConcatV2": _concat,
    "Conv2DBackpropInput": _conv_transposed,
    "Identity": _plain("same"),
    "LeakyRelu": _leaky,
    "Mul": _plain("multiply"),
    "Relu": _plain("relu"),
    "Relu6": _plain("relu6"),
    "Reshape": _reshape,
    "ResizeBilinear": _resize,
    "Sigmoid": _plain("sigmoid"),
    "SplitV": _split,
    "Transpose": _transpose,
}


def _known(name: str, constants: Mapping[str, Array]) -> Array:
    if name not in constants:
        raise ValueError(f"{name}: is computed, where a constant is needed")
    return constants[name]


def _numbers(node: Node, attribute: str) -> list[int]:
    return [int(value) for value in node["attr"][attribute]["list"]["i"]]


def _text(node: Node, attribute: str) -> str:
    return base64.b64decode(node["attr"][attribute]["s"]).decode()
