"""torch as a backend: plain or compiled, with CUDA graphs on GPUs."""

from __future__ import annotations

import torch

from workers.models.backends.choice import DTYPES, Backend
from workers.models.backends.compiled_network import TOKENS, Source, Tensors
from workers.models.backends.cuda_graphs import CapturedPasses, Pass, extent, padded


class TorchNetwork:
    """The module on its device and in its precision; floats are returned as fp32."""

    def __init__(self, backend: Backend, source: Source, device: str) -> None:
        self._dtype: torch.dtype = getattr(torch, DTYPES[backend.precision])
        self._module = source.make().to(device, self._dtype)
        self._compiled = backend.compiled
        # one compilation for all shapes, since each would take ten seconds
        module = torch.compile(self._module, dynamic=True) if backend.compiled else self._module

        def run(inputs: Tensors) -> dict[str, torch.Tensor]:
            outputs: dict[str, torch.Tensor] = module(**inputs)
            return outputs

        self._run: Pass = CapturedPasses(run) if device.startswith("cuda") else run
        if backend.compiled:
            with torch.inference_mode():  # compile while loading, so that no batch waits for it
                # cloned: torch compiles again for tensors made outside of inference mode
                self({name: tensor.to(device).clone() for name, tensor in source.example.items()})

    def __call__(self, inputs: Tensors) -> dict[str, torch.Tensor]:
        rows, tokens = extent(inputs)
        prepared = {name: self._in_precision(tensor) for name, tensor in inputs.items()}
        if self._compiled:  # torch compiles again for an axis of length one
            prepared = dict(padded(prepared, max(2, rows), max(2, tokens)))
        return {name: _own(name, tensor, rows, tokens) for name, tensor in self._run(prepared).items()}

    @property
    def module(self) -> torch.nn.Module:
        """The module itself, for callers that need gradients."""
        return self._module

    @property
    def captured(self) -> int:
        """The number of passes that are replayed as CUDA graphs."""
        return self._run.captured if isinstance(self._run, CapturedPasses) else 0

    def _in_precision(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor


def _own(name: str, tensor: torch.Tensor, rows: int, tokens: int) -> torch.Tensor:
    """Cut a padded result to its rows and tokens, and return floats as fp32."""
    own = tensor[:rows, :tokens] if name.startswith(TOKENS) else tensor[:rows]
    return own.float() if own.is_floating_point() else own
