"""ONNX Runtime as a backend: the module is exported once into a file, in fp32 or with int8 weights. A given ONNX file
is run as it is.
"""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from producers.wire.errors import ConfigurationError
from workers.models.backends import kept
from workers.models.backends.choice import Backend
from workers.models.backends.compiled_network import TOKENS, Positional, Source, Tensors

logger = logging.getLogger(__name__)

_OPSET = 17

#: The ending of the names of execution providers.
PROVIDER = "ExecutionProvider"

# ONNX Runtime reads this variable at its import; unless set, it writes a session file and sends telemetry. Device
# processes inherit it from `workers.device.devices`; benchmarks and tests build networks in their own process.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"


class OnnxNetwork:
    """An ONNX Runtime session on the CPU, or on the execution provider of the backend's `device`."""

    def __init__(self, backend: Backend, source: Source) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = backend.threads or torch.get_num_threads()
        # waiting threads give their core away, as in `workers.device.devices.pinned_environment`
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = _session(_file(backend, source), options, backend.device or "CPU")
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, inputs: Tensors) -> dict[str, torch.Tensor]:
        arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in inputs.items()}
        results = self._session.run(self._outputs, arrays)
        found = zip(self._outputs, results, strict=True)
        return {name: torch.from_numpy(np.ascontiguousarray(result)) for name, result in found}


def _file(backend: Backend, source: Source) -> Path:
    if source.given is not None:
        return source.given
    if backend.precision == "fp16":
        raise ConfigurationError("precision: onnxruntime runs fp16 only from an ONNX file in fp16; use fp32 or int8")
    file = source.file(f"-{backend.precision}.onnx")
    if not file.is_file():
        with kept.made_beside(file) as made:
            _export(source, made)
            (_quantised(made) if backend.precision == "int8" else made).replace(file)
    return file


def _session(file: Path, options: Any, device: str) -> Any:
    """Return a session on a provider. Operators that it does not have run on the CPU.

    Raises ConfigurationError if the provider does not start here, or has none of the network's operators: ONNX Runtime
    alone would take the CPU, at the start or at a later fault, with at most a line of output.
    """
    import onnxruntime

    if device == "CPU":
        return onnxruntime.InferenceSession(str(file), options, providers=[f"CPU{PROVIDER}"])
    wanted = device + PROVIDER
    if wanted not in onnxruntime.get_available_providers():
        raise ConfigurationError(f"device: this installation of ONNX Runtime lacks the provider {device}")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = onnxruntime.InferenceSession(str(file), options, providers=[wanted, f"CPU{PROVIDER}"], enable_fallback=0)
    if wanted not in session.get_providers():
        raise ConfigurationError(f"device: ONNX Runtime cannot start its provider {device} here; its log says why")
    parts = session.get_provider_graph_assignment_info()
    every = sum(len(part.get_nodes()) for part in parts)
    own = sum(len(part.get_nodes()) for part in parts if part.ep_name == wanted)
    if not own:
        raise ConfigurationError(f"device: ONNX Runtime's provider {device} has none of this network's operators")
    logger.info("%s has %d of the network's %d operators, the CPU the others", device, own, every)
    return session


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
    """Return the model with int8 weights in its matrix products, with a scale for each channel, and int8 activations
    with a scale for each row.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from workers.models.backends import row_ranges

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
    model = onnx.load(made)
    row_ranges.give(model)
    onnx.save(model, made)
    return made
