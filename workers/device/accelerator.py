"""What a device process needs of a GPU beside running models on it."""

from __future__ import annotations

from typing import Any


def set_up(device: str) -> None:
    """Prepare a process for its GPU. On a CPU, do nothing.

    fp32 means fp32: libraries round to 10 bits (TF32) where they are let. Attention is left to kernels that take any shape:
    cuDNN plans anew for each, and hardly two batches of texts, or steps of a generation, are of one shape.
    """
    if device.startswith("cuda"):
        import torch

        of: Any = torch.backends
        for library in (of.cuda.matmul, of.cudnn.conv, of.cudnn.rnn):
            library.fp32_precision = "ieee"
        torch.backends.cuda.enable_cudnn_sdp(False)


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
