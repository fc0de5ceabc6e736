"""OpenVINO as a backend: the module is traced once into a file, and compiled for this CPU at every start."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from producers.wire.errors import ConfigurationError
from workers.models.backends import kept
from workers.models.backends.choice import Backend
from workers.models.backends.compiled_network import Positional, Source, Tensors

# OpenVINO's converter sends telemetry about each model unless the user has opted out; without the module
# `openvino_telemetry` it uses a stub. A user's class that imports OpenVINO before this line is not covered.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # None is how Python says "not to be imported"

#: The precision of each layer, of those that are not quantised for int8.
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}


class OpenVinoNetwork:
    """A compiled OpenVINO model with one request. Results share the request's memory until the next call."""

    def __init__(self, backend: Backend, source: Source) -> None:
        import openvino

        file = _file(backend, source)
        core = openvino.Core()
        compiled = core.compile_model(
            core.read_model(file),
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": _HINTS[backend.precision],
                "INFERENCE_NUM_THREADS": backend.threads or torch.get_num_threads(),
                "PERFORMANCE_HINT": "LATENCY",
            },
        )
        self._request = compiled.create_infer_request()
        self._inputs = source.inputs
        self._outputs = [output.any_name for output in compiled.outputs]

    def __call__(self, inputs: Tensors) -> dict[str, torch.Tensor]:
        arrays = [inputs[name].numpy() for name in self._inputs]
        results = self._request.infer(arrays, share_inputs=True, share_outputs=True)
        return {name: torch.from_numpy(results[place]) for place, name in enumerate(self._outputs)}


def _file(backend: Backend, source: Source) -> Path:
    if backend.precision == "int8":
        file = source.file("-int8.onnx")
        if not file.is_file() or not _is_static(file):
            problem = "openvino runs int8 networks that are quantised beforehand"
            raise ConfigurationError(f"precision: {problem}: argosy compress (docs/compression.md)")
        return file
    file = source.file(".xml")
    if not file.is_file():
        _export(source, file)
    return file


def _is_static(file: Path) -> bool:
    """Whether the ranges of a network's activations are part of its file."""
    import onnx

    nodes = onnx.load(file, load_external_data=False).graph.node
    return not any(node.op_type.startswith("DynamicQuantize") for node in nodes)


def _export(source: Source, file: Path) -> None:
    import openvino

    module = Positional(source)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # the tracer's warnings about Python values that do not vary here
        model: Any = openvino.convert_model(module, example_input=tuple(source.example.values()))
    for name, given in zip(source.inputs, model.inputs, strict=True):
        example = source.example[name]
        varying = 2 if example.ndim == 2 else 1
        given.get_node().set_partial_shape(openvino.PartialShape([-1] * varying + list(example.shape[varying:])))
    for name, result in zip(module.outputs, model.outputs, strict=True):
        result.get_tensor().set_names({name})
    model.validate_nodes_and_infer_types()
    _keep(model, file)


def _keep(model: Any, file: Path) -> None:
    """Write the weights first, and last, atomically, the graph, which marks the network as complete.

    Several workers may start at once.
    """
    import openvino

    with kept.made_beside(file) as made:
        openvino.save_model(model, made, compress_to_fp16=False)
        made.with_suffix(".bin").replace(file.with_suffix(".bin"))
        made.replace(file)
