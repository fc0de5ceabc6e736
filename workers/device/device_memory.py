"""The memory that a device process holds on its device, and how it returns unused memory."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from pathlib import Path

_STATM = Path("/proc/self/statm")


def resident_bytes(device: str) -> int:
    """Return the bytes that this process holds: on a GPU the bytes reserved by torch, on a CPU its resident memory (0
    where the system does not report it).
    """
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.memory_reserved(device))
    try:
        return int(_STATM.read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux
        return 0


def give_back(device: str) -> None:
    """Return freed memory to the device, or to the system: torch and the C library would keep it for later."""
    gc.collect()
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()
        return
    with contextlib.suppress(OSError, AttributeError):  # a C library other than glibc lacks this call
        ctypes.CDLL(None).malloc_trim(0)


def import_libraries() -> None:
    """Import common libraries before any measurement, so that their memory does not count for the first model."""
    with contextlib.suppress(ImportError):  # the models of a fleet may not need it
        import torch  # noqa: F401
