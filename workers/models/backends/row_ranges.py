"""Dynamic int8 with a range for each row of an activation, so that no answer depends on the other inputs of a batch.

ONNX's DynamicQuantizeLinear finds a single range over all rows: a neighbour with a large value then makes the steps of
all rows coarse. Here a row, such as the features of a token, is divided by its own largest magnitude (per-token
quantisation: Yao et al., "ZeroQuant", 2022, section 4.1).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

import numpy as np

#: The place of zero among the 256 steps of an activation. Steps run from -127 to 127.
_ZERO: Final = np.uint8(128)

#: The smallest step: a row of zeros has one too.
_LEAST: Final = np.float32(1e-30)

#: The domain of ONNX Runtime's own operators.
_FUSED: Final = "com.microsoft"

_TINY, _SHARE, _ONE, _MIDDLE = "row/least", "row/share", "row/one", "row/zero"


def give(model: Any) -> None:
    """Replace the single range of each quantised activation of a model (`onnx.ModelProto`) by one for each row.

    The model is one of ONNX Runtime's `quantize_dynamic`, which quantises matrix products with constant weights: an
    activation is quantised to 8 bits, multiplied (MatMulInteger) and converted (Cast), and the product is multiplied by
    the steps of the activation and of the weights.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    of = {name: node for node in graph.node for name in node.output}
    steps = {node.output[1] for node in graph.node if node.op_type == "DynamicQuantizeLinear"}
    scales = {node.output[0] for node in graph.node if node.op_type == "Mul" and steps & set(node.input)}
    nodes: list[Any] = []
    for node in graph.node:
        if node.op_type == "DynamicQuantizeLinear":
            nodes += _quantising(node)
        elif node.op_type == "Mul" and scales & set(node.input):
            nodes += _multiplying(node, of, scales, steps)
        elif not _is_replaced(node, of, scales):
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    values = {_TINY: _LEAST, _SHARE: np.float32(1 / 127), _ONE: np.float32(1), _MIDDLE: _ZERO}
    graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in values.items())
    if all(own.domain != _FUSED for own in model.opset_import):
        model.opset_import.append(helper.make_opsetid(_FUSED, 1))


def _is_replaced(node: Any, of: Mapping[str, Any], scales: Collection[str]) -> bool:
    """Return whether a node is a part of a product that `_multiplying` has put into one."""
    converts = node.op_type == "Cast" and node.input[0] in of and of[node.input[0]].op_type == "MatMulInteger"
    return converts or node.op_type == "MatMulInteger" or node.output[0] in scales


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


def _multiplying(node: Any, of: Mapping[str, Any], scales: Collection[str], steps: Collection[str]) -> Iterator[Any]:
    """Yield the nodes in the place of a product and of its multiplication by both steps.

    The steps of the weights, one for each channel, are part of the product. The row's own step follows: ONNX Runtime
    takes only one for all rows there.
    """
    from onnx import helper

    [both], [converted] = set(node.input) & set(scales), set(node.input) - set(scales)
    [row], [channels] = set(of[both].input) & set(steps), set(of[both].input) - set(steps)
    quantised, weights, _, zeros = of[of[converted].input[0]].input
    given = [quantised, weights, _ONE, channels, _MIDDLE, zeros]
    yield helper.make_node("MatMulIntegerToFloat", given, [f"{node.output[0]}/channels"], domain=_FUSED)
    yield helper.make_node("Mul", [f"{node.output[0]}/channels", row], [node.output[0]])
