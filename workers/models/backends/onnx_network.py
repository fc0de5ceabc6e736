"""ONNX Runtime as a backend: the module is exported once into a file, in fp32 or with int8 weights."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workers.models.backends import kept
from workers.models.backends.choice import Backend
from workers.models.backends.compiled_network import TOKENS, Positional, Source, Tensors

_OPSET = 17

# ONNX Runtime reads this variable at its import; unless set, it writes a session file and sends telemetry. Device
# processes inherit it from `workers.device.devices`; benchmarks and tests build networks in their own process.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"


class OnnxNetwork:
    """An ONNX Runtime session on the CPU."""

    def __init__(self, backend: Backend, source: Source) -> None:
        import onnxruntime

        file = source.file(f"-{backend.precision}.onnx")
        if not file.is_file():
            with kept.made_beside(file) as made:
                _export(source, made)
                (_quantised(made) if backend.precision == "int8" else made).replace(file)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = backend.threads or torch.get_num_threads()
        # waiting threads give their core away, as in `workers.device.devices.pinned_environment`
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, inputs: Tensors) -> dict[str, torch.Tensor]:
        arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in inputs.items()}
        results = self._session.run(self._outputs, arrays)
        found = zip(self._outputs, results, strict=True)
        return {name: torch.from_numpy(np.ascontiguousarray(result)) for name, result in found}


def _export(source: Source, file: Path) -> None:
    module = Positional(source)
    axes = {name: {0: "rows", 1: "tokens"} if t.ndim == 2 else {0: "rows"} for name, t in source.example.items()}
    for name in module.outputs:
        axes[name] = {0: "rows", 1: "tokens"} if name.startswith(TOKENS) else {0: "rows"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's warnings about Python values that do not vary here
        torch.onnx.export(
            module,
            tuple(source.example.values()),
            str(file),
            input_names=list(source.inputs),
            output_names=list(module.outputs),
            dynamic_axes=axes,
            opset_version=_OPSET,
            dynamo=False,  # the newer exporter needs another package, and fixes these shapes
        )


def _quantised(file: Path) -> Path:
    """Return the model with int8 weights in its matrix products, with a scale for each channel."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    made = file.with_suffix(".int8.onnx")
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns on the root logger about a step that only static quantisation needs
    try:
        quantize_dynamic(
            file,
            made,
            weight_type=QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=["MatMul"],
            extra_options={"MatMulConstBOnly": True},
        )
    finally:
        logger.setLevel(level)
    return made
