"""The choice of a split by its name."""

from __future__ import annotations

from typing import Any

from torch import distributed

from workers.training.loop.processes import Process
from workers.training.loop.recipe import Recipe, Split
from workers.training.splits.compression import SlowLink
from workers.training.splits.layers import Layers
from workers.training.splits.rows import Rows
from workers.training.splits.splitting import Splitting
from workers.training.splits.stages import PipelineStages
from workers.training.splits.states import States


def split_network(
    split: Split, network: Any, process: Process, recipe: Recipe, *, bucket_mb: float, link: SlowLink | None
) -> Splitting:
    """Return this process's part of a network, which is changed in place. All processes call it at the same time."""
    if split == "rows":
        if not distributed.is_initialized():
            return Splitting(network, process, recipe)
        return Rows(network, process, recipe, bucket_mb, link)
    kinds = {"layers": Layers, "states": States, "stages": PipelineStages}
    return kinds[split](network, process, recipe)
