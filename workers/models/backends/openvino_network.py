"""OpenVINO as a backend: the module is traced once into a file, or an ONNX file is given; it is compiled at every start
for this CPU, or for the devices of the backend.
"""

from __future__ import annotations

import logging
import mmap
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from producers.wire.errors import ConfigurationError
from workers.models.backends import kept
from workers.models.backends.choice import Backend, named_devices
from workers.models.backends.compiled_network import Positional, Source, Tensors

logger = logging.getLogger(__name__)

# OpenVINO's converter sends telemetry about each model unless the user has opted out; without the module
# `openvino_telemetry` it uses a stub. A user's class that imports OpenVINO before this line is not covered.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # None is how Python says "not to be imported"

#: The operators of networks that find the ranges of activations at run time.
_AT_RUN_TIME = (b"DynamicQuantize", b"MatMulInteger", b"ConvInteger")

#: The precision of each layer, of those that are not quantised for int8.
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}


class OpenVinoNetwork:
    """A compiled OpenVINO model with one request. Results share the request's memory until the next call."""

    def __init__(self, backend: Backend, source: Source) -> None:
        import openvino

        file = _file(backend, source)
        compiled = _compiled(openvino.Core(), file, backend)
        self._request = compiled.create_infer_request()
        # a tensor of an ONNX file may have several names; those of its inputs are in another order than the example
        given = source.given is not None
        self._inputs = tuple(_name(one, source.inputs) for one in compiled.inputs) if given else source.inputs
        self._outputs = [_name(output, source.outputs) for output in compiled.outputs]

    def __call__(self, inputs: Tensors) -> dict[str, torch.Tensor]:
        arrays = [inputs[name].numpy() for name in self._inputs]
        results = self._request.infer(arrays, share_inputs=True, share_outputs=True)
        return {name: torch.from_numpy(results[place]) for place, name in enumerate(self._outputs)}


def _name(tensor: Any, known: Sequence[str]) -> str:
    return next((name for name in tensor.get_names() if name in known), None) or str(tensor.any_name)


def _compiled(core: Any, file: Path, backend: Backend) -> Any:
    """Compile a network's file for the backend's devices, each in the wanted precision.

    HETERO and AUTO take a device's settings from the core. Raises ConfigurationError with OpenVINO's reason.
    """
    device = backend.device or "CPU"
    try:
        for name in named_devices(device) or core.available_devices:
            settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": _HINTS[backend.precision]}
            if name == "CPU":
                settings["INFERENCE_NUM_THREADS"] = backend.threads or torch.get_num_threads()
            core.set_property(name, settings)
        compiled = core.compile_model(core.read_model(file), device, {"PERFORMANCE_HINT": "LATENCY"})
    except RuntimeError as error:
        raise ConfigurationError(
            f"device: OpenVINO cannot compile this network for {device}: {_said(error)}"
        ) from error
    if backend.device:
        logger.info("%s computes on %s", device, ", ".join(compiled.get_property("EXECUTION_DEVICES")))
    return compiled


def _said(error: RuntimeError) -> str:
    """Return OpenVINO's message without the places in its source."""
    lines = [line for line in str(error).splitlines() if line and not line.startswith(("Exception from", "Check "))]
    return re.sub(r"\s+", " ", " ".join(lines))[:300] or "no reason given"


def _file(backend: Backend, source: Source) -> Path:
    if source.given is not None:
        if backend.precision == "int8" and not _is_static(source.given):
            problem = f"{source.given.name} finds the ranges of activations at run time, which OpenVINO does not run"
            raise ConfigurationError(f"precision: {problem}; use onnxruntime")
        return source.given
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
    """Whether the ranges of a network's activations are part of its file.

    Its operators are looked for as words: the package that reads such files takes more memory than a small network.
    """
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return all(content.find(operator) < 0 for operator in _AT_RUN_TIME)


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
