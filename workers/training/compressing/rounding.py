"""Quantisation-aware fine-tuning: matrix products round as ONNX Runtime's int8 does, and weights learn to bear it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize


class _RoundedWeight(nn.Module):
    """Rounds a matrix to int8, with a scale for each output. The gradient passes unchanged (Jacob et al., 2018)."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        scale = weight.detach().abs().amax(1).clamp(min=1e-8) / 127
        zero = torch.zeros(len(weight), dtype=torch.int32, device=weight.device)
        return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -127, 127)


@contextmanager
def rounded(module: nn.Module) -> Iterator[None]:
    """Let all linear layers of a module round their weights and inputs; afterwards they keep what they learnt."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    with ExitStack() as left:
        for layer in layers:
            parametrize.register_parametrization(layer, "weight", _RoundedWeight())
            left.callback(partial(parametrize.remove_parametrizations, layer, "weight", leave_parametrized=False))
            left.callback(layer.register_forward_pre_hook(_round_input).remove)
        yield


def _round_input(_: nn.Module, given: tuple[Any, ...]) -> tuple[torch.Tensor]:
    """Round an input to 256 steps between its least and its greatest value, 0 being one of them."""
    low, high = (own.detach().float() for own in given[0].aminmax())
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = ((high - low) / 255).clamp(min=1e-8)
    return (torch.fake_quantize_per_tensor_affine(given[0], scale, (-low / scale).round().int(), 0, 255),)
