"""LoRA adapters (Hu et al., 2021) on one network: rows of different adapters share a pass.

Each linear layer with adapters is replaced by an `AdaptedLinear` layer. It computes the base layer once for all rows,
then two thin products batched over the rows, each row with its own matrices (as in Punica, Chen et al., 2023).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from producers.wire.errors import ConfigurationError
from workers.models.adapters.lora_folder import WEIGHTS, WRAPPED, Adapter

#: The matrices of a layer: (rank, in), and (out, rank) with the scaling included.
Pair = tuple[torch.Tensor, torch.Tensor]


class NotByRow(ValueError):
    """A layer with adapters has an input in which the rows of a pass are not apart, so rows cannot differ in adapter.

    Examples are DeBERTa's embeddings of relative positions, and networks whose first axis is that of the tokens.
    """


class AdapterRows:
    """The adapter of each row in the present pass, by number: 0 is no adapter, the adapters count from 1."""

    def __init__(self) -> None:
        self.numbers: torch.Tensor | None = None
        self.only: int | None = 0
        self._tokens = 0

    def set(self, numbers: Sequence[int], tokens: int, device: Any) -> None:
        """Set the adapters of the next pass, whose rows have `tokens` tokens."""
        self._tokens = tokens
        self.only = numbers[0] if len(set(numbers)) == 1 else None
        self.numbers = None if self.only is not None else torch.tensor(numbers, device=device)

    def by_row(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return a layer's inputs as `(rows, tokens, in)`, if each row has its own part of them. Raises NotByRow."""
        assert self.numbers is not None, "either all rows have one adapter, or each its own"
        rows = len(self.numbers)
        if len(inputs) != rows and inputs.shape[:-1] != (rows * self._tokens,):
            problem = f"a layer with adapters reads {tuple(inputs.shape)} in a pass of {rows} rows"
            raise NotByRow(f"{problem}, which does not tell the rows apart")
        return inputs.reshape(rows, -1, inputs.shape[-1])


class AdaptedLinear(nn.Module):
    """A linear layer with its adapters. `pairs` are by adapter number; missing adapters add nothing."""

    def __init__(self, base: nn.Linear, pairs: Mapping[int, Pair], rows: AdapterRows, count: int) -> None:
        super().__init__()
        self.base = base
        self._rows = rows
        rank = max(len(down) for down, _ in pairs.values())
        self._known = frozenset(pairs)
        self.down: torch.Tensor
        self.up: torch.Tensor
        self.register_buffer("down", base.weight.new_zeros(count + 1, rank, base.in_features), persistent=False)
        self.register_buffer("up", base.weight.new_zeros(count + 1, base.out_features, rank), persistent=False)
        for number, (down, up) in pairs.items():
            self.down[number, : len(down)] = down
            self.up[number, :, : len(down)] = up

    @property
    def weight(self) -> torch.Tensor:
        """The base layer's weight, for code that reads the weight of a linear layer."""
        return self.base.weight

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map `(rows, …, in)` to `(rows, …, out)`."""
        whole: torch.Tensor = self.base(inputs)
        only = self._rows.only
        if only is not None:
            if only not in self._known:
                return whole
            thin = nn.functional.linear(inputs, self.down[only])
            return whole + nn.functional.linear(thin, self.up[only])
        flat, numbers = self._rows.by_row(inputs), self._rows.numbers
        thin = torch.bmm(flat, self.down[numbers].transpose(1, 2))
        return whole + torch.bmm(thin, self.up[numbers].transpose(1, 2)).reshape(whole.shape)


def tensors(adapter: Adapter) -> dict[str, torch.Tensor]:
    """Return an adapter's tensors by the model's own names."""
    return {name.removeprefix(WRAPPED): tensor for name, tensor in load_file(adapter.folder / WEIGHTS).items()}


def attach(network: nn.Module, adapters: Sequence[Adapter], prefix: str = "") -> AdapterRows:
    """Attach adapters to a network, numbered from 1 in their order; return the `AdapterRows` to set before each pass.

    `prefix` is the network's name within the models that the adapters were trained on. Raises ConfigurationError if an
    adapter does not fit the network.
    """
    rows = AdapterRows()
    pairs: dict[str, dict[int, Pair]] = {}
    for number, adapter in enumerate(adapters, start=1):
        own = tensors(adapter)
        for module in adapter.pairs:
            name = module.removeprefix(f"{prefix}.") if prefix else module
            pair = own[f"{module}.lora_A.weight"], own[f"{module}.lora_B.weight"] * adapter.scaling(module)
            _check(network, name, pair, adapter)
            pairs.setdefault(name, {})[number] = pair
    for name, own_pairs in pairs.items():
        parent, _, last = name.rpartition(".")
        base = network.get_submodule(name)
        assert isinstance(base, nn.Linear), "checked"
        setattr(network.get_submodule(parent), last, AdaptedLinear(base, own_pairs, rows, len(adapters)))
    return rows


def _check(network: nn.Module, name: str, pair: Pair, adapter: Adapter) -> None:
    try:
        base = network.get_submodule(name)
    except AttributeError:
        problem = f"the model has no layer {name}; was the adapter made for another model?"
        raise ConfigurationError(f"{adapter.where}: {problem}") from None
    if not isinstance(base, nn.Linear):
        raise ConfigurationError(f"{adapter.where}: {name} is a {type(base).__name__}; only linear layers are served")
    if (base.in_features, base.out_features) != (pair[0].shape[1], pair[1].shape[0]):
        shape = f"{tuple(pair[0].shape)} and {tuple(pair[1].shape)}"
        problem = f"{name} has matrices of {shape}; was the adapter made for another model?"
        raise ConfigurationError(f"{adapter.where}: {problem}")
