"""Networks that read samples themselves (Wav2Vec2 and its kin): which recordings go through together, and how many frames come out."""

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
    """Return what so many samples cost."""
    return max(1, -(-samples * COSTS_PER_S // rate))


def frames(samples: int, config: Mapping[str, Any]) -> int:
    """Return how many frames the convolutions of a config make of so many samples."""
    for width, stride in zip(config.get("conv_kernel", ()), config.get("conv_stride", ()), strict=True):
        samples = max(0, (samples - width) // stride + 1)
    return samples


def check_length(samples: int, config: Mapping[str, Any]) -> None:
    """Raise InvalidInput for a recording of which no frame comes out."""
    if frames(samples, config) < 1:
        raise InvalidInput("input", f"has {samples:,} samples, too few to hear anything", "send a longer recording")


def together(lengths: Sequence[int], config: Mapping[str, Any]) -> list[list[int]]:
    """Group recordings by their lengths, so that no neighbour changes what is heard.

    A network that normalises over the whole recording ("group") would hear the padding, and so would one with an adapter, whose
    convolutions reach beyond the end; the others have a mask for it.
    """
    if config.get("feat_extract_norm") == "layer" and not config.get("add_adapter"):
        return token_sequences.plan(list(enumerate(lengths)))
    alike: dict[int, list[int]] = {}
    for place, length in enumerate(lengths):
        alike.setdefault(length, []).append(place)
    return list(alike.values())


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
