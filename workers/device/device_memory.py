"""What a device process takes of its device's memory, and how it gives back what it no longer uses."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from pathlib import Path

_STATM = Path("/proc/self/statm")


def resident_bytes(device: str) -> int:
    """Return what this process holds: on a GPU what torch has reserved there, on a CPU its resident memory (0 where
    the system does not say).
    """
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.memory_reserved(device))
    try:
        return int(_STATM.read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux
        return 0


def give_back(device: str) -> None:
    """Return freed memory to the device, or to the system: both torch and the C library keep it for later otherwise."""
    gc.collect()
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc has no such call
        ctypes.CDLL(None).malloc_trim(0)


def import_libraries() -> None:
    """Import what most models need before anything is measured: what a library takes is not the first model's."""
    with contextlib.suppress(ImportError):  # a fleet's models may do without
        import torch  # noqa: F401
