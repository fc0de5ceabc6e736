"""Build a network on the chosen backend: the same torch module through torch, ONNX Runtime or OpenVINO."""

from __future__ import annotations

from producers.wire.errors import ConfigurationError
from workers.models.backends import kept
from workers.models.backends.choice import Backend, require
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
    if source.given is not None:
        return _built(backend, source)
    with kept.in_use(source.cache):
        return _built(backend, source)


def _built(backend: Backend, source: Source) -> Network:
    if backend.name == "openvino":
        from workers.models.backends.openvino_network import OpenVinoNetwork

        return OpenVinoNetwork(backend, source)
    from workers.models.backends.onnx_network import OnnxNetwork

    return OnnxNetwork(backend, source)
