"""Layers shared out: each process has some attention heads and inner features of each layer (tensor parallelism).

It has their columns and rows of the matrices (Shoeybi et al., 2019, section 3), as torch's DTensor. Two sums over all
processes per layer, forward and backward, join the parts. All other parameters are whole in every process, which
computes the same with them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from workers.training.loop.processes import Process
from workers.training.loop.recipe import Recipe
from workers.training.splits import layouts
from workers.training.splits.splitting import Splitting


class Layers(Splitting):
    """All processes see all rows."""

    def __init__(self, network: Any, process: Process, recipe: Recipe) -> None:
        super().__init__(network, process, recipe)
        backbone = network.encoder.backbone
        layout = layouts.layout_of(network.encoder)
        mesh = init_device_mesh(torch.device(process.device).type, (distributed.get_world_size(),))
        plan: dict[str, ParallelStyle] = {name: ColwiseParallel() for name in layout.columns}
        plan |= {name: RowwiseParallel() for name in layout.rows}
        for layer in (layer for stack in layout.stacks for layer in backbone.get_submodule(stack)):
            frozen = {name for name, parameter in layer.named_parameters() if not parameter.requires_grad}
            there = {name for name, _ in layer.named_modules()}  # an encoder's layers lack some of a decoder's
            parallelize_module(layer, mesh, {name: style for name, style in plan.items() if name in there})
            for name, parameter in layer.named_parameters():
                parameter.requires_grad_(name not in frozen)
