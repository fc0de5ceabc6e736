"""Times of a Whisper model's tokens, from its decoder's cross-attention.

The "alignment heads" of the cross-attention follow the sound. Dynamic time warping turns their weights into a time for
each token (OpenAI's `whisper/timing.py`, 2022). The arithmetic is transformers' own; all tokens share one pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

#: Seconds between two positions of the encoder's output.
_STEP_S = 0.02


def token_times(
    network: Any, prompt: Sequence[int], tokens: Sequence[int], encoded: torch.Tensor, places: int
) -> list[float]:
    """Return each token's time in seconds. The first `places` of `encoded`, `(places or more, width)`, are sound."""
    from transformers.models.whisper.generation_whisper import _dynamic_time_warping, _median_filter

    if not tokens:
        return []
    ids = torch.tensor([[*prompt, *tokens]], device=encoded.device)
    with _showing_attention(network):
        layers = network.model.decoder(
            input_ids=ids, encoder_hidden_states=encoded[None], use_cache=False, output_attentions=True
        ).cross_attentions
    heads = [layers[layer][0, head] for layer, head in network.generation_config.alignment_heads]
    weights = torch.stack(heads).float()[:, len(prompt) :, : max(1, places)]
    deviation, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
    smooth = _median_filter((weights - mean) / deviation, network.config.median_filter_width).mean(dim=0)
    which, when = _dynamic_time_warping(-smooth.cpu().double().numpy())
    first = np.pad(np.diff(which), (1, 0), constant_values=1).astype(bool)
    return [float(time) * _STEP_S for time in when[first]]


@contextmanager
def _showing_attention(network: Any) -> Iterator[None]:
    """Switch to eager attention, because faster implementations do not return their weights."""
    config = network.model.decoder.config
    usual = config._attn_implementation  # noqa: SLF001 - there is no other way to change it for one pass
    config._attn_implementation = "eager"  # noqa: SLF001
    try:
        yield
    finally:
        config._attn_implementation = usual  # noqa: SLF001
