"""The processes of a training: started here, or by torchrun; each with its rank and its device."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import distributed, multiprocessing
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]
from torch.multiprocessing.spawn import ProcessExitedException

from producers.wire.errors import ConfigurationError
from workers.device import devices

Work = TypeVar("Work")

#: How long a process waits for another one, which may read rows or judge a test part meanwhile.
_PATIENCE = timedelta(hours=2)


@dataclass(frozen=True, slots=True)
class Process:
    """One of `count` processes that train together, and its device."""

    rank: int = 0
    count: int = 1
    device: str = "cpu"

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def launched_by_torchrun() -> bool:
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys()


def is_first() -> bool:
    """Return whether this process, outside of `run`, writes the result: of torchrun's processes, the first."""
    return os.environ.get("RANK", "0") == "0"


def restarted() -> bool:
    """Return whether torchrun has started its processes again, after some of them failed or left."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def tell(work: object) -> None:
    """Send a pickled object from the first process to all others, which wait for it in `told`."""
    if distributed.is_initialized():
        distributed.broadcast_object_list([work], src=0)


def told() -> Any:
    """Return the next object that the first process sends. If that has ended, which it explains, end this one, too."""
    found: list[Any] = [None]
    try:
        distributed.broadcast_object_list(found, src=0)
    except RuntimeError:
        sys.exit(1)
    return found[0]


def run(do: Callable[[Process, Work], object], work: Work, *, count: int, device: str, group: bool = False) -> None:
    """Let `count` processes do `work`, and return when all are done. A single process, or one of torchrun's, runs it
    here.

    A `group` of one runs torch.distributed too, only to test it. An exception in one process ends all. Raises
    ConfigurationError if one of them was killed, or without a GPU for each.
    """
    if launched_by_torchrun():
        with _group(_of_torchrun(device), _meeting_of_torchrun()) as process:
            do(process, work)
    elif count == 1 and not group:
        do(Process(device=placed(device, 0)), work)
    else:
        placed(device, count - 1)
        with tempfile.TemporaryDirectory(prefix="argosy-training-") as folder:
            meeting = f"file://{Path(folder) / 'meeting'}"
            if count == 1:
                _member(0, do, work, 1, device, meeting)
            else:
                _start((do, work, count, device, meeting), count)


def _start(arguments: tuple[Any, ...], count: int) -> None:
    try:
        multiprocessing.start_processes(_member, arguments, count, start_method="spawn")  # type: ignore[attr-defined, no-untyped-call]
    except ProcessExitedException as error:
        if error.exit_code > 0:  # the process has told why
            sys.exit(error.exit_code)
        raise ConfigurationError(f"{error}; go on from the last checkpoint") from error


def _of_torchrun(device: str) -> Process:
    environment = {name: int(os.environ[name]) for name in ("RANK", "WORLD_SIZE")}
    local = int(os.environ.get("LOCAL_RANK", environment["RANK"]))
    return Process(environment["RANK"], environment["WORLD_SIZE"], placed(device, local))


def placed(device: str, local_rank: int) -> str:
    """Return the device of a process of this machine. Raises ConfigurationError without a GPU for it."""
    if device != "cuda":
        return device
    if not torch.cuda.is_available():
        raise ConfigurationError("device: this machine has no GPU that torch can use; train on the CPU: --device cpu")
    if local_rank >= torch.cuda.device_count():
        raise ConfigurationError(f"device: no GPU for process {local_rank}; there are {torch.cuda.device_count()}")
    return f"cuda:{local_rank}"


def _member(rank: int, do: Callable[[Process, Any], object], work: Any, count: int, device: str, meeting: str) -> None:
    if count > 1:
        torch.set_num_threads(max(1, devices.available_cores() // count))
    with _group(Process(rank, count, placed(device, rank)), meeting) as process:
        do(process, work)


def _meeting_of_torchrun() -> str | Store:
    """Return the place where torchrun's processes find each other, a new one after each restart.

    torchrun (2.13) keeps its store over restarts: processes that were started again would read the addresses of the
    ended ones, and fail to connect.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return "env://"
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    attempt = f"{os.environ['TORCHELASTIC_RESTART_COUNT']}-{os.environ['WORLD_SIZE']}"
    return PrefixStore(f"argosy-{attempt}", TCPStore(address, port, is_master=False))


@contextmanager
def _group(process: Process, meeting: str | Store) -> Iterator[Process]:
    cuda = process.device.startswith("cuda")
    if cuda:
        torch.cuda.set_device(process.device)
    distributed.init_process_group(
        "nccl" if cuda else "gloo",
        init_method=meeting if isinstance(meeting, str) else None,
        store=None if isinstance(meeting, str) else meeting,
        rank=process.rank,
        world_size=process.count,
        timeout=_PATIENCE,
        device_id=torch.device(process.device) if cuda else None,
    )
    try:
        yield process
    finally:
        distributed.destroy_process_group()
