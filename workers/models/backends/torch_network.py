"""torch as a backend: eager, or compiled on bucketed shapes, with CUDA graphs on GPUs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from workers.models.backends.choice import Backend
from workers.models.backends.network import TOKENS, Source, Tensors

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

#: Compiled networks see token counts that are multiples of this: few shapes, each compiled and captured once.
TOKEN_STEP = 32


class TorchNetwork:
    """The module itself, on its device and in its precision; floats come out as fp32."""

    def __init__(self, backend: Backend, source: Source, device: str) -> None:
        self._dtype = _DTYPES[backend.precision]
        self._module = source.make().to(device, self._dtype)
        self._run: Callable[..., dict[str, torch.Tensor]] = self._module
        self._compiled = backend.compiled
        if backend.compiled:
            # "reduce-overhead" captures a CUDA graph a shape; on a CPU there is nothing to capture
            mode = "reduce-overhead" if device.startswith("cuda") else "default"
            self._run = torch.compile(self._module, mode=mode, dynamic=False)

    def __call__(self, inputs: Tensors) -> dict[str, torch.Tensor]:
        prepared = {name: self._in_precision(tensor) for name, tensor in inputs.items()}
        if not self._compiled:
            results: dict[str, Any] = self._run(**prepared)
        else:
            rows, tokens = _extent(inputs)
            padded = {name: _padded(tensor) for name, tensor in prepared.items()}
            results = {name: _cut(name, tensor, rows, tokens) for name, tensor in self._run(**padded).items()}
        return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in results.items()}

    @property
    def module(self) -> Any:
        """The module itself, for who needs its gradients."""
        return self._module

    def _in_precision(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor


def _extent(inputs: Tensors) -> tuple[int, int]:
    """Return rows, and tokens (0 where no input has a token axis)."""
    rows = next(iter(inputs.values())).shape[0]
    tokens = [tensor.shape[1] for tensor in inputs.values() if tensor.ndim == 2]
    return rows, max(tokens, default=0)


def bucket(rows: int, tokens: int) -> tuple[int, int]:
    """Return the shape that a batch is padded to: rows to a power of two, tokens to a multiple of `TOKEN_STEP`."""
    return 1 << (rows - 1).bit_length(), -(-tokens // TOKEN_STEP) * TOKEN_STEP


def _padded(tensor: torch.Tensor) -> torch.Tensor:
    """Pad with the last row, so that no added row is degenerate, and with zero (masked) tokens."""
    rows, tokens = bucket(tensor.shape[0], tensor.shape[1] if tensor.ndim == 2 else 0)
    if tensor.ndim == 2 and tokens > tensor.shape[1]:
        tensor = torch.nn.functional.pad(tensor, (0, tokens - tensor.shape[1]))
    if rows > tensor.shape[0]:
        tensor = torch.cat([tensor, tensor[-1:].expand(rows - tensor.shape[0], *tensor.shape[1:])])
    return tensor


def _cut(name: str, tensor: torch.Tensor, rows: int, tokens: int) -> torch.Tensor:
    cut = tensor[:rows, :tokens] if name.startswith(TOKENS) else tensor[:rows]
    return cut.clone()  # a captured graph writes into the same memory again
