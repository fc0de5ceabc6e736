"""The exchange of gradients between processes: whole or compressed, bucket by bucket while the backward pass goes on.

Each method is a hook of DistributedDataParallel, which calls it with a bucket of gradients as soon as the bucket is
complete and waits for the average only after the pass: the exchange of a bucket is hidden behind the computation of the
later ones.
"""

# no `from __future__ import annotations`: DistributedDataParallel compares a hook's annotations with the types
# themselves
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import torch
from torch import distributed
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from workers.training.loop.recipe import Compression

#: The future average of a bucket, and the bytes that this process sent for it.
Exchange: TypeAlias = Callable[[GradBucket], tuple[Future[torch.Tensor], int]]

#: The first steps send gradients whole: DDP orders its buckets for good after the first step, and the error kept of a
#: bucket must not be added to another.
WHOLE_STEPS = 2

RANK = 4
TOP_SHARE = 0.01


@dataclass(slots=True)
class Traffic:
    """Bytes of gradients that a process gave to collectives, and their uncompressed size.

    In a ring of n processes, an all-reduce sends 2 (n - 1) / n times the given bytes, an all-gather n - 1 times: with
    two processes, either sends as much as it is given.
    """

    given_bytes: int = 0
    uncompressed_bytes: int = 0

    def taken(self) -> Self:
        """Return the counts, and reset them."""
        counted = type(self)(self.given_bytes, self.uncompressed_bytes)
        self.given_bytes = self.uncompressed_bytes = 0
        return counted


class SlowLink:
    """An imitated link of limited bytes per second, for measurements: the average of a bucket comes after its bytes."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._line = ThreadPoolExecutor(1)  # one bucket after the other, as on a wire

    def carry(self, bucket: GradBucket, average: Future[torch.Tensor], given_bytes: int) -> Future[torch.Tensor]:
        device = bucket.buffer().device
        arrived: Future[torch.Tensor] = Future(devices=[device] if device.type == "cuda" else None)
        ready = None
        if device.type == "cuda":  # this code runs as soon as the computation is queued
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record()
        self._line.submit(self._deliver, ready, average, given_bytes, arrived)
        return arrived

    def _deliver(
        self,
        ready: torch.cuda.Event | None,
        average: Future[torch.Tensor],
        given_bytes: int,
        arrived: Future[torch.Tensor],
    ) -> None:
        if ready:
            ready.synchronize()
        time.sleep(given_bytes / self._bytes_per_s)
        arrived.set_result(average.wait())

    def close(self) -> None:
        self._line.shutdown()


def attach(model: DistributedDataParallel, compression: Compression, link: SlowLink | None = None) -> Traffic:
    """Let a model's gradients be exchanged by this method; return the counter."""
    exchange = _EXCHANGES[compression]()
    traffic = Traffic()

    def hook(traffic: Traffic, bucket: GradBucket) -> Future[torch.Tensor]:
        traffic.uncompressed_bytes += bucket.buffer().nbytes
        average, given_bytes = exchange(bucket)
        traffic.given_bytes += given_bytes
        return average if link is None else link.carry(bucket, average, given_bytes)

    model.register_comm_hook(traffic, hook)
    return traffic


def _whole(bucket: GradBucket) -> tuple[Future[torch.Tensor], int]:
    return default_hooks.allreduce_hook(None, bucket), bucket.buffer().nbytes  # type: ignore[arg-type]


def _halved(hook: Callable[[Any, GradBucket], Future[torch.Tensor]]) -> Exchange:
    return lambda bucket: (hook(None, bucket), bucket.buffer().numel() * 2)


def _low_rank() -> Exchange:
    """PowerSGD (Vogels, Karimireddy and Jaggi, 2019), torch's own, with error feedback."""
    state = PowerSGDState(None, matrix_approximation_rank=RANK, start_powerSGD_iter=WHOLE_STEPS)

    def exchange(bucket: GradBucket) -> tuple[Future[torch.Tensor], int]:
        before = state.total_numel_after_compression
        average = powerSGD_hook(state, bucket)
        sent = state.total_numel_after_compression - before  # none in the steps with whole gradients
        return average, (sent or bucket.buffer().numel()) * bucket.buffer().element_size()

    return exchange


class TopShare:
    """The largest hundredth of each bucket's entries; the rest is kept and added to the next gradients (Stich,
    Cordonnier and Jaggi, 2018: error feedback). Entries and their places share an all-gather, since each process
    chooses its own.
    """

    def __init__(self, share: float = TOP_SHARE) -> None:
        self._share = share
        self._kept: dict[int, torch.Tensor] = {}
        self._step = 0

    def __call__(self, bucket: GradBucket) -> tuple[Future[torch.Tensor], int]:
        whole = self._step < WHOLE_STEPS
        self._step += bucket.is_last()
        return _whole(bucket) if whole else self._exchange(bucket)

    def _exchange(self, bucket: GradBucket) -> tuple[Future[torch.Tensor], int]:
        gradient = bucket.buffer()
        places, values = self.chosen(bucket.index(), gradient)
        # values travel as integers of the same bits, so that one collective takes both
        packed = torch.cat([places.to(torch.int32), values.float().view(torch.int32)])
        gathered = packed.new_empty(distributed.get_world_size() * len(packed))
        work = distributed.all_gather_single(gathered, packed, async_op=True)
        average = work.get_future().then(lambda _: _averaged(gathered, gradient))
        return average, packed.nbytes

    def chosen(self, bucket: int, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return places and values of the entries to send of a gradient and its kept error; keep the rest."""
        if bucket in self._kept:
            gradient.add_(self._kept[bucket])
        places = gradient.abs().topk(max(1, int(self._share * gradient.numel())), sorted=False).indices
        values = gradient[places]
        self._kept[bucket] = gradient.clone().index_fill_(0, places, 0)
        return places, values


def _averaged(gathered: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    gradient.zero_()
    processes = distributed.get_world_size()
    for packed in gathered.chunk(processes):
        places, values = packed.chunk(2)
        gradient.index_add_(0, places, values.view(torch.float32).to(gradient.dtype), alpha=1 / processes)
    return gradient


_EXCHANGES: dict[Compression, Callable[[], Exchange]] = {
    "none": lambda: _whole,
    "fp16": lambda: _halved(default_hooks.fp16_compress_hook),
    "bf16": lambda: _halved(default_hooks.bf16_compress_hook),
    "powersgd": _low_rank,
    "topk": TopShare,
}
