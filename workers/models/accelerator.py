"""What a device process needs of a GPU beside running models on it."""

from __future__ import annotations

from typing import Any


def set_up(device: str) -> None:
    """Have fp32 mean fp32 on a GPU: libraries round to 10 bits (TF32) where they are let. On a CPU, do nothing."""
    if device.startswith("cuda"):
        import torch

        of: Any = torch.backends
        for library in (of.cuda.matmul, of.cudnn.conv, of.cudnn.rnn):
            library.fp32_precision = "ieee"


def is_lost(device: str) -> bool:
    """Whether nothing more can be run here: after a fault in one of its kernels a process gets nothing but errors of its GPU."""
    if not device.startswith("cuda"):
        return False
    import torch

    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
