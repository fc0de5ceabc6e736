"""Write a network for another runtime into the model's folder, from which workers then serve it.

The serving code exports, quantises and compares; the file is checked against torch (`Exported`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from workers.device.device_process import ModelToLoad
from workers.models.backends.choice import Backend, require
from workers.models.backends.compiled_network import NETWORK
from workers.models.huggingface.network_calls import accepted
from workers.models.huggingface.text.encoder import EncoderModel
from workers.training.compressing import rounding, task_networks
from workers.training.compressing.lessons import TokenizedRows

if TYPE_CHECKING:
    from workers.models.huggingface.exported import Inputs

#: Sequences by which the ranges of activations are measured.
FOR_RANGES = 128


class _Written(EncoderModel):
    """A model whose network's files lie in its folder instead of the cache."""

    RECALLS = False

    def _cache_file(self, example: Inputs) -> Path:
        return self.spec.folder / NETWORK


def write(wanted: ModelToLoad, backend: Backend) -> None:
    """Write the network's file of a backend. Raises ConfigurationError if its outputs differ from torch's."""
    model = task_networks.served(msgspec.structs.replace(wanted, backend=backend))
    _Written(model.spec).load("cpu")


def write_static(wanted: ModelToLoad, rows: TokenizedRows) -> None:
    """Write an int8 network with the ranges of its activations on some sequences of the rows.

    Layers whose inputs int8 would round too coarsely stay in fp32, and so do the outputs of all layers: in a
    transformer they have a few places with very large values.
    """
    require(Backend("onnxruntime", "int8"))
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    backbone = task_networks.load(task_networks.served(wanted)).backbone
    known = accepted(backbone)
    batches = [
        {name: own for name, own in lessons.inputs.items() if name in known} for lessons in rows.some(FOR_RANGES)
    ]
    coarse = rounding.coarse_layers(backbone, batches)
    write(wanted, Backend("onnxruntime", "fp32"))
    folder = Path(wanted.folder)
    exported, made = folder / f"{NETWORK}-fp32.onnx", folder / f"{NETWORK}-int8.onnx"
    simplified = folder / f"{NETWORK}-simplified.onnx"
    try:
        with _quiet():
            quant_pre_process(exported, simplified, skip_symbolic_shape=True)
            graph = onnx.load(simplified, load_external_data=False).graph
            nodes = [node.name for node in graph.node if any(_is_of(node.name, layer) for layer in coarse)]
            quantize_static(
                simplified,
                made,
                _Ranges([_named(inputs) for inputs in batches]),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Gather", "MatMul", "Gemm"],  # embeddings are half of a small model
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=nodes,
                extra_options={
                    "MatMulConstBOnly": True,  # not the products of activations in the attention
                    "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
                },
            )
    finally:
        for file in (exported, simplified):
            file.unlink(missing_ok=True)


def _is_of(node: str, layer: str) -> bool:
    """Whether a node of the exported graph is a layer's matrix product: ``…/layer.0/output/dense/MatMul``."""
    path = re.sub(r"[.](?!\d)", "/", layer)
    return node.endswith((f"/{path}/MatMul", f"/{path}/Gemm"))


def _named(inputs: Inputs) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in inputs.items()}


class _Ranges:
    """The batches by which ranges are measured, in the form that ONNX Runtime reads."""

    def __init__(self, batches: Sequence[dict[str, Any]]) -> None:
        self._left: Iterator[dict[str, Any]] = iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._left, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the root logger, on which ONNX Runtime warns about steps that are done here."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
