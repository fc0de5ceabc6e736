"""Build a network on the chosen backend: the same torch module through torch, ONNX Runtime or OpenVINO."""

from __future__ import annotations

import importlib.util

from producers.wire.errors import ConfigurationError
from workers.models.backends import kept
from workers.models.backends.choice import Backend
from workers.models.backends.compiled_network import Network, Source


def build(backend: Backend, source: Source, device: str) -> Network:
    """Build `source` on `backend`. Raises ConfigurationError if the backend cannot run here."""
    if backend.name == "torch":
        from workers.models.backends.torch_network import TorchNetwork

        return TorchNetwork(backend, source, device)
    if backend.name == "vllm":
        raise ConfigurationError("backend: vllm runs only models that generate text; use 'torch'")
    if device != "cpu":
        raise ConfigurationError(f"backend: {backend.name} runs on the CPU here, not on {device}; use 'torch'")
    require(backend)
    with kept.in_use(source.cache):
        if backend.name == "openvino":
            from workers.models.backends.openvino_network import OpenVinoNetwork

            return OpenVinoNetwork(backend, source)
        from workers.models.backends.onnx_network import OnnxNetwork

        return OnnxNetwork(backend, source)


#: The modules that each backend imports, and the extra that installs them.
_NEEDS = {
    "torch": (("torch",), "worker"),
    "openvino": (("openvino",), "openvino"),
    "onnxruntime": (("onnxruntime", "onnx"), "onnx"),
}


def require(backend: Backend) -> None:
    """Raise ConfigurationError, with the remedy, unless the backend's packages are installed."""
    modules, extra = _NEEDS[backend.name]
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise ConfigurationError(f"backend: {backend.name} needs {module}; pip install 'argosy[{extra}]'")
