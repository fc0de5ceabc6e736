"""Rows shared out: each process has the whole network, and some rows of each step (DistributedDataParallel)."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from torch.nn.parallel import DistributedDataParallel

from workers.training.loop.processes import Process
from workers.training.loop.recipe import Recipe
from workers.training.splits import compression
from workers.training.splits.compression import SlowLink
from workers.training.splits.splitting import Splitting


class Rows(Splitting):
    """A bucket of gradients goes out as soon as it is complete, while earlier layers are computed."""

    replica: DistributedDataParallel

    def __init__(self, network: Any, process: Process, recipe: Recipe, bucket_mb: float, link: SlowLink | None) -> None:
        super().__init__(network, process, recipe)
        self.rank, self.sharers = process.rank, process.count
        self.draws = process.rank
        self.replica = DistributedDataParallel(
            network,
            device_ids=[process.device] if process.device.startswith("cuda") else None,
            bucket_cap_mb=bucket_mb,
            gradient_as_bucket_view=True,
        )
        self.traffic = compression.attach(self.replica, recipe.compression, link)

    def exchanging(self, *, last: bool) -> AbstractContextManager[Any]:
        return super().exchanging(last=last) if last else self.replica.no_sync()
