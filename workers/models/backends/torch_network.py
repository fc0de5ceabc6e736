"""torch as a backend: as it is or compiled, on GPUs with captured passes."""

from __future__ import annotations

import torch

from workers.models.backends.choice import DTYPES, Backend
from workers.models.backends.compiled_network import TOKENS, Source, Tensors
from workers.models.backends.cuda_graphs import CapturedPasses, Pass, extent, padded


class TorchNetwork:
    """The module itself, on its device and in its precision; floats come out as fp32."""

    def __init__(self, backend: Backend, source: Source, device: str) -> None:
        self._dtype: torch.dtype = getattr(torch, DTYPES[backend.precision])
        self._module = source.make().to(device, self._dtype)
        self._compiled = backend.compiled
        # one compilation for all shapes: each would take ten seconds
        module = torch.compile(self._module, dynamic=True) if backend.compiled else self._module

        def run(inputs: Tensors) -> dict[str, torch.Tensor]:
            outputs: dict[str, torch.Tensor] = module(**inputs)
            return outputs

        self._run: Pass = CapturedPasses(run) if device.startswith("cuda") else run
        if backend.compiled:
            with torch.inference_mode():  # part of loading: no batch should wait for it
                # cloned: a tensor that was made outside of this mode is compiled for by itself
                self({name: tensor.to(device).clone() for name, tensor in source.example.items()})

    def __call__(self, inputs: Tensors) -> dict[str, torch.Tensor]:
        rows, tokens = extent(inputs)
        prepared = {name: self._in_precision(tensor) for name, tensor in inputs.items()}
        if self._compiled:  # an axis of one is compiled by itself, a second time
            prepared = dict(padded(prepared, max(2, rows), max(2, tokens)))
        return {name: _own(name, tensor, rows, tokens) for name, tensor in self._run(prepared).items()}

    @property
    def module(self) -> torch.nn.Module:
        """The module itself, for who needs its gradients."""
        return self._module

    @property
    def captured(self) -> int:
        """How many passes are replayed as CUDA graphs."""
        return self._run.captured if isinstance(self._run, CapturedPasses) else 0

    def _in_precision(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor


def _own(name: str, tensor: torch.Tensor, rows: int, tokens: int) -> torch.Tensor:
    """Return the rows and tokens that were asked for."""
    own = tensor[:rows, :tokens] if name.startswith(TOKENS) else tensor[:rows]
    return own.float() if own.is_floating_point() else own
