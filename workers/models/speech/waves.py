"""Batching for networks that read samples (Wav2Vec2 and similar): groups that share a pass, and frame counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from producers.wire.errors import InvalidInput
from workers.models.huggingface import token_sequences
from workers.models.interface.model import Array

if TYPE_CHECKING:
    import torch

#: Cost is counted in tenths of a second.
COSTS_PER_S = 10


def cost(samples: int, rate: int) -> int:
    """Return the cost of a number of samples."""
    return max(1, -(-samples * COSTS_PER_S // rate))


def frames(samples: int, config: Mapping[str, Any]) -> int:
    """Return the number of frames that the convolutions of a config make from a number of samples."""
    for width, stride in zip(config.get("conv_kernel", ()), config.get("conv_stride", ()), strict=True):
        samples = max(0, (samples - width) // stride + 1)
    return samples


def check_length(samples: int, config: Mapping[str, Any]) -> None:
    """Raise InvalidInput if a recording gives no frame."""
    if frames(samples, config) < 1:
        raise InvalidInput("input", f"has {samples:,} samples, too few to hear anything", "send a longer recording")


def together(lengths: Sequence[int], config: Mapping[str, Any], *, equal_lengths: bool = False) -> list[list[int]]:
    """Group recordings by length, so that padding does not change a result.

    Some networks are sensitive to padding, so only equal lengths share a pass: networks that normalise over the whole
    recording ("group"), and networks with an adapter and Conformers, whose convolutions reach beyond the end. Others
    mask it. `equal_lengths` says it of any network.
    """
    masked = config.get("feat_extract_norm") == "layer" and not config.get("add_adapter")
    conformer = "conformer" in str(config.get("model_type"))
    return token_sequences.plan(list(enumerate(lengths)), equal_lengths=equal_lengths or conformer or not masked)


def tensors(sounds: Sequence[Array], device: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return recordings as a network's input, with a mask if they differ in length."""
    import torch

    longest = max(map(len, sounds))
    values = np.zeros((len(sounds), longest), dtype=np.float32)
    mask = np.zeros((len(sounds), longest), dtype=np.int64)
    for row, sound in enumerate(sounds):
        values[row, : len(sound)] = sound
        mask[row, : len(sound)] = 1
    found = {"input_values": torch.from_numpy(values).to(device, dtype)}
    return found if mask.all() else found | {"attention_mask": torch.from_numpy(mask).to(device)}
