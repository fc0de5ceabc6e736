"""Dynamic int8 with a range for each row of an activation, so that no answer depends on the other inputs of a batch.

ONNX's DynamicQuantizeLinear finds a single range over all rows: a neighbour with a large value then makes the steps of
all rows coarse. Here a row, such as the features of a token, is divided by its own largest magnitude (per-token
quantisation: Yao et al., "ZeroQuant", 2022, section 4.1).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np

#: The place of zero among the 256 steps of an activation. Steps run from -127 to 127.
_ZERO: Final = np.uint8(128)

#: The smallest step: a row of zeros has one too.
_LEAST: Final = np.float32(1e-30)

_TINY, _SHARE, _ONE, _MIDDLE = "row/least", "row/share", "row/one", "row/zero"


def give(graph: Any) -> None:
    """Replace the single range of each quantised activation of an ONNX graph (`onnx.GraphProto`) by one for each row.

    The graph is one of ONNX Runtime's `quantize_dynamic`, which quantises matrix products with constant weights: an
    activation is quantised to 8 bits, multiplied (MatMulInteger), and the product is multiplied by the step of the
    activation times those of the weights.
    """
    from onnx import numpy_helper

    steps = {node.output[1] for node in graph.node if node.op_type == "DynamicQuantizeLinear"}
    scales = {node.output[0]: node for node in graph.node if node.op_type == "Mul" and steps & set(node.input)}
    nodes: list[Any] = []
    for node in graph.node:
        if node.op_type == "DynamicQuantizeLinear":
            nodes += _quantising(node)
        elif node.op_type == "MatMulInteger":
            nodes.append(_with_zero(node))
        elif node.op_type == "Mul" and scales.keys() & set(node.input):
            nodes += _scaling(node, scales, steps)
        elif not (node.op_type == "Mul" and node.output[0] in scales):
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    values = {_TINY: _LEAST, _SHARE: np.float32(1 / 127), _ONE: np.float32(1), _MIDDLE: _ZERO}
    graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in values.items())


def _quantising(node: Any) -> Iterator[Any]:
    """Yield the nodes in the place of a DynamicQuantizeLinear, for activations of at least two axes."""
    from onnx import helper

    given, (quantised, step, _) = node.input[0], node.output
    yield helper.make_node("Abs", [given], [f"{step}/sizes"])
    yield helper.make_node("ReduceMax", [f"{step}/sizes"], [f"{step}/largest"], axes=[-1], keepdims=1)
    yield helper.make_node("Mul", [f"{step}/largest", _SHARE], [f"{step}/steps"])
    yield helper.make_node("Max", [f"{step}/steps", _TINY], [step])
    yield helper.make_node("Div", [given, step], [f"{step}/places"])
    yield helper.make_node("QuantizeLinear", [f"{step}/places", _ONE, _MIDDLE], [quantised])


def _with_zero(node: Any) -> Any:
    node.input[2] = _MIDDLE
    return node


def _scaling(node: Any, scales: dict[str, Any], steps: set[str]) -> Iterator[Any]:
    """Yield the nodes in the place of the multiplication by both steps: by those of the weights, one for each channel,
    then by that of the row. ONNX Runtime fuses the single multiplication, and then wants one step for all rows.
    """
    from onnx import helper

    [both] = scales.keys() & set(node.input)
    [product] = set(node.input) - {both}
    [row] = steps & set(scales[both].input)
    [channels] = set(scales[both].input) - {row}
    yield helper.make_node("Mul", [product, channels], [f"{node.output[0]}/channels"])
    yield helper.make_node("Mul", [f"{node.output[0]}/channels", row], [node.output[0]])
