"""Quantisation-aware fine-tuning: matrix products round as ONNX Runtime's int8 does, and weights learn to bear it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize

#: The change of a layer's output by which its input counts as too coarse, as a share of the output.
MOST_CHANGED = 0.06


class _RoundedWeight(nn.Module):
    """Rounds a matrix to int8, with a scale for each output. The gradient passes unchanged (Jacob et al., 2018)."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        scale = weight.detach().abs().amax(1).clamp(min=1e-8) / 127
        zero = torch.zeros(len(weight), dtype=torch.int32, device=weight.device)
        return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -127, 127)


@contextmanager
def rounded(module: nn.Module) -> Iterator[None]:
    """Let all linear layers of a module round their weights and inputs; afterwards they are plain, with new weights."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    with ExitStack() as left:
        for layer in layers:
            parametrize.register_parametrization(layer, "weight", _RoundedWeight())
            left.callback(partial(parametrize.remove_parametrizations, layer, "weight", leave_parametrized=False))
            left.callback(layer.register_forward_pre_hook(_round_input).remove)
        yield


def coarse_layers(module: nn.Module, batches: Sequence[Mapping[str, torch.Tensor]]) -> list[str]:
    """Return the linear layers for whose inputs 256 steps over all their values are too coarse.

    Rounding the input of such a layer changes its output by over `MOST_CHANGED` at half of the places or more. Inputs
    with a few very large values are of this kind, mostly those of the second layer after an activation.
    """
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    ranges: dict[str, list[torch.Tensor]] = defaultdict(list)
    changes: dict[str, list[torch.Tensor]] = defaultdict(list)

    def note(name: str, _: nn.Module, given: tuple[Any, ...]) -> None:
        ranges[name] += given[0].aminmax()

    def compare(name: str, layer: nn.Linear, given: tuple[Any, ...], output: torch.Tensor) -> None:
        every = torch.stack(ranges[name])
        change = functional.linear(_rounded(given[0], every.min(), every.max()) - given[0], layer.weight)
        changes[name].append((change.norm(dim=-1) / output.norm(dim=-1).clamp(min=1e-8)).flatten())

    for hook, register in ((note, "register_forward_pre_hook"), (compare, "register_forward_hook")):
        with ExitStack() as left, torch.inference_mode():
            for name, layer in layers.items():
                left.callback(getattr(layer, register)(partial(hook, name)).remove)
            for inputs in batches:
                module(**inputs)
    return [name for name, own in changes.items() if torch.cat(own).median() > MOST_CHANGED]


def _round_input(_: nn.Module, given: tuple[Any, ...]) -> tuple[torch.Tensor]:
    return (_rounded(given[0], *given[0].detach().float().aminmax()),)


def _rounded(values: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Round values to 256 steps between `low` and `high`, 0 being one of them."""
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = ((high - low) / 255).clamp(min=1e-8)
    return torch.fake_quantize_per_tensor_affine(values, scale, (-low / scale).round().int(), 0, 255)
