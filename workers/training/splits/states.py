"""States shared out: each process keeps a part of weights, gradients and averages (FSDP2), and takes some rows."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from workers.training.loop.processes import Process
from workers.training.loop.recipe import Recipe
from workers.training.splits import layouts
from workers.training.splits.splitting import Splitting


class States(Splitting):
    """A layer's weights are gathered for its pass and dropped after it (Rajbhandari et al., 2020: ZeRO stage 3)."""

    def __init__(self, network: Any, process: Process, recipe: Recipe) -> None:
        super().__init__(network, process, recipe)
        self.rank, self.sharers = process.rank, process.count
        self.draws = process.rank
        mesh = init_device_mesh(torch.device(process.device).type, (distributed.get_world_size(),))
        for layer in layouts.layers_of(network.encoder.backbone):
            fully_shard(layer, mesh=mesh)
        fully_shard(network, mesh=mesh)
        self._evaluated = _Evaluated(network)

    def exchanging(self, *, last: bool) -> AbstractContextManager[Any]:
        self.network.set_requires_gradient_sync(last)
        return contextlib.nullcontext()

    @property
    def evaluated(self) -> Any:
        return self._evaluated


class _Evaluated:
    """A network whose methods `values` and `generated` gather the weights, as its call does."""

    def __init__(self, network: Any) -> None:
        self._network = network
        for name in ("values", "generated"):
            if hasattr(network, name):
                # by another name: within a call, the weights are there already
                setattr(network, f"evaluated_{name}", getattr(network, name))
                register_fsdp_forward_method(network, f"evaluated_{name}")

    def values(self, *arguments: Any) -> Any:
        return self._network.evaluated_values(*arguments)

    def generated(self, *arguments: Any) -> Any:
        """Let all processes write equally many tokens: each token gathers the weights."""
        return self._network.evaluated_generated(*arguments, together=True)

    def __call__(self, **batch: torch.Tensor) -> Any:
        return self._network(**batch)
