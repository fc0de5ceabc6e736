"""GPU settings and checks of a device process."""

from __future__ import annotations

from typing import Any


def set_up(device: str) -> None:
    """Prepare a process for its GPU. On a CPU, do nothing.

    fp32 stays fp32: by default libraries round to 10 bits (TF32). Attention uses kernels that take any shape, since
    cuDNN plans anew for each shape, and batches of texts or steps of a generation rarely have equal shapes.
    """
    if device.startswith("cuda"):
        import torch

        of: Any = torch.backends
        for library in (of.cuda.matmul, of.cudnn.conv, of.cudnn.rnn):
            library.fp32_precision = "ieee"
        torch.backends.cuda.enable_cudnn_sdp(False)


def is_lost(device: str) -> bool:
    """Whether the GPU is lost to this process: after a fault in a kernel, every call of it fails."""
    if not device.startswith("cuda"):
        return False
    import torch

    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
