"""Greedy decoding with Whisper's decoder: windows are decoded together, and finished windows leave the batch.

transformers' own code has the rules for tokens (suppressed tokens, ordered pairs of timestamps). The steps are our own,
because `generate` continues with all windows until the longest one ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

Rule: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

#: The batch shrinks when this share of its windows has ended. Each time, all keys and values are copied.
_GONE = 0.25


@dataclass(slots=True)
class WrittenTokens:
    """The tokens of a window without the end token; if they are measured, the sum of the logarithms of all
    probabilities, and the probability that nobody speaks.
    """

    tokens: list[int] = field(default_factory=list)
    logprob: float = 0.0
    no_speech_prob: float = 0.0

    @property
    def avg_logprob(self) -> float:
        """The mean over the tokens and the end, as in OpenAI's own program."""
        return self.logprob / (len(self.tokens) + 1)


def greedy(
    network: Any,
    prompts: torch.Tensor,
    encoded: torch.Tensor,
    most_tokens: int,
    *,
    timestamps: bool,
    measured: bool = False,
) -> list[WrittenTokens]:
    """Return up to `most_tokens` most likely tokens after each prompt `(windows, tokens)`.

    `encoded` is the encoder's output for the windows, `(windows, places, width)`.
    """
    begun, ids, new = prompts.shape[1], prompts, prompts
    rules, cache, ends = _rules(network, begun, timestamps=timestamps), _cache(), _ends(network)
    written = [WrittenTokens() for _ in prompts]
    places = list(range(len(prompts)))  # the window of each row of the batch
    ended: set[int] = set()
    for _ in range(min(most_tokens, int(network.config.max_target_positions) - begun)):
        hidden = _step(network, new, encoded, cache)
        if measured and ids is prompts:
            _measure_silence(network, hidden, written)
        scores = _scores(network, hidden)
        for rule in rules:
            scores = rule(ids, scores)
        new = scores.argmax(-1, keepdim=True)
        ids = torch.cat([ids, new], dim=-1)
        if measured:
            for place, logprob in zip(places, scores.log_softmax(-1).gather(-1, new)[:, 0].tolist(), strict=True):
                written[place].logprob += 0.0 if place in ended else logprob
        for place, token in zip(places, new[:, 0].tolist(), strict=True):
            if place in ended or token in ends:
                ended.add(place)
            else:
                written[place].tokens.append(token)
        left = [row for row, place in enumerate(places) if place not in ended]
        if not left:
            break
        if len(places) - len(left) >= _GONE * len(places):
            kept = torch.tensor(left, device=ids.device)
            cache.batch_select_indices(kept)
            ids, new, encoded = ids[kept], new[kept], encoded[kept]
            places = [places[row] for row in left]
    return written


def likeliest(network: Any, encoded: torch.Tensor, tokens: list[int]) -> list[int]:
    """Return for each window the index in `tokens` of its most likely first token."""
    begin = int(network.generation_config.decoder_start_token_id)
    start = torch.full((len(encoded), 1), begin, device=encoded.device)
    scores = _scores(network, _step(network, start, encoded, None))[:, tokens]
    best: list[int] = scores.argmax(-1).tolist()
    return best


def _step(network: Any, new: torch.Tensor, encoded: torch.Tensor, cache: Any) -> torch.Tensor:
    hidden: torch.Tensor = network.model.decoder(
        input_ids=new, encoder_hidden_states=encoded, past_key_values=cache, use_cache=cache is not None
    ).last_hidden_state
    return hidden


def _scores(network: Any, hidden: torch.Tensor, place: int = -1) -> torch.Tensor:
    scores: torch.Tensor = network.proj_out(hidden[:, place]).float()
    return scores


def _measure_silence(network: Any, hidden: torch.Tensor, written: list[WrittenTokens]) -> None:
    """Note the probability of the token for silence after the first token of the prompt."""
    silence = (getattr(network.generation_config, "no_timestamps_token_id", None) or 0) - 1
    if silence >= 0:
        found = _scores(network, hidden, 0).softmax(-1)[:, silence].tolist()
        for own, prob in zip(written, found, strict=True):
            own.no_speech_prob = prob


def _cache() -> Any:
    from transformers import DynamicCache, EncoderDecoderCache

    return EncoderDecoderCache(DynamicCache(), DynamicCache())


def _ends(network: Any) -> tuple[int, ...]:
    ends = network.generation_config.eos_token_id
    return tuple(ends) if isinstance(ends, list | tuple) else (ends,)


def _rules(network: Any, begun: int, *, timestamps: bool) -> list[Rule]:
    from transformers.generation.logits_process import (
        SuppressTokensAtBeginLogitsProcessor,
        SuppressTokensLogitsProcessor,
        WhisperTimeStampLogitsProcessor,
    )

    config, device = network.generation_config, network.device
    rules: list[Rule] = []
    if config.begin_suppress_tokens:
        rules.append(SuppressTokensAtBeginLogitsProcessor(config.begin_suppress_tokens, begun, device=device))
    if config.suppress_tokens:
        rules.append(SuppressTokensLogitsProcessor(config.suppress_tokens, device=device))
    if timestamps:
        rules.append(WhisperTimeStampLogitsProcessor(config, begin_index=begun))
    return rules
