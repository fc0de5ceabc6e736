"""What goes over the wire between processes: gradients whole or compressed, bucket by bucket while the backward pass goes on.

Each way is a hook of DistributedDataParallel, which calls it with a bucket of gradients as soon as all of them are there and waits
for the average only when the pass is over: the exchange of one bucket is hidden behind the computing of those before it.
"""

# no `from __future__ import annotations`: DistributedDataParallel compares a hook's annotations with the types themselves
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

from workers.training.joint.recipe import Compression

#: A bucket's average to come, and the bytes that this process gave for it.
Exchange: TypeAlias = Callable[[GradBucket], tuple[Future[torch.Tensor], int]]

#: Steps whose gradients go whole: DDP puts its buckets in their final order after the first one, and what is held back from a
#: bucket must not be added to another.
WHOLE_STEPS = 2

RANK = 4
TOP_SHARE = 0.01


@dataclass(slots=True)
class Traffic:
    """Bytes of gradients that a process gave to collectives, and what they would have been uncompressed.

    Of what is given, an all-reduce sends 2 (n - 1) / n times as much in a ring of n processes, an all-gather n - 1 times: with two
    processes, either sends as much as is given.
    """

    given_bytes: int = 0
    uncompressed_bytes: int = 0

    def taken(self) -> Self:
        """Return what was counted, and begin again."""
        counted = type(self)(self.given_bytes, self.uncompressed_bytes)
        self.given_bytes = self.uncompressed_bytes = 0
        return counted


class SlowLink:
    """A link of so many bytes a second, imitated, for measurements: a bucket's average comes when its bytes are through."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._line = ThreadPoolExecutor(1)  # one bucket after the other, as on a wire

    def carry(self, bucket: GradBucket, average: Future[torch.Tensor], given_bytes: int) -> Future[torch.Tensor]:
        device = bucket.buffer().device
        arrived: Future[torch.Tensor] = Future(devices=[device] if device.type == "cuda" else None)
        ready = None
        if device.type == "cuda":  # we are here as soon as its computing is queued
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
    """Have a model's gradients exchanged in this way; return what counts them."""
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
        sent = state.total_numel_after_compression - before  # none in the steps whose gradients go whole
        return average, (sent or bucket.buffer().numel()) * bucket.buffer().element_size()

    return exchange


class TopShare:
    """The largest hundredth of each bucket's entries; the rest is kept and added to the next gradients (Stich, Cordonnier and
    Jaggi, 2018: error feedback). Entries and their places go in one all-gather, as each process has chosen its own."""

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
        # values travel as the integers that have their bits, so that one collective takes both
        packed = torch.cat([places.to(torch.int32), values.float().view(torch.int32)])
        gathered = packed.new_empty(distributed.get_world_size() * len(packed))
        work = distributed.all_gather_single(gathered, packed, async_op=True)
        average = work.get_future().then(lambda _: _averaged(gathered, gradient))
        return average, packed.nbytes

    def chosen(self, bucket: int, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return places and values of what is to be sent of a bucket's gradient and what is kept of it; keep the rest."""
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
