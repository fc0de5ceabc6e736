"""Choose a row's next token from its logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from workers.models.generation.checkpoint_rules import Rule
from workers.models.generation.generation_request import Sampling

#: The lowest effective temperature, to avoid a division by almost 0.
_COLDEST = 1e-6


class Sampler:
    """Chooses the tokens of a row. The same seed gives the same tokens beside any neighbours."""

    def __init__(self, sampling: Sampling, rules: Sequence[Rule] = ()) -> None:
        self._sampling = sampling
        self._rules = rules
        self._generator: torch.Generator | None = None
        if sampling.temperature:
            assert sampling.seed is not None, "the parent draws the seed"
            self._generator = torch.Generator().manual_seed(sampling.seed)

    def choose(self, logits: torch.Tensor, seen: Sequence[int], allowed: torch.Tensor | None = None) -> int:
        """Return a token.

        `logits` is (vocabulary,); `seen` has the tokens of the prompt and the answer so far; `allowed` masks the
        vocabulary.
        """
        asked = self._sampling
        if asked.repetition_penalty != 1:
            logits = penalised(logits, seen, asked.repetition_penalty)
        if self._rules:
            tokens, scores = torch.tensor([seen], device=logits.device), logits[None]
            for rule in self._rules:
                scores = rule(tokens, scores)
            logits = scores[0]
        if allowed is not None:
            logits = logits.masked_fill(~allowed.to(logits.device), -torch.inf)
        if self._generator is None:
            return int(logits.argmax())
        logits = (logits / max(asked.temperature, _COLDEST)).cpu()
        if asked.top_k:
            least = logits.topk(min(asked.top_k, len(logits))).values[-1]
            logits = logits.masked_fill(logits < least, -torch.inf)
        if asked.top_p < 1:
            logits = _nucleus(logits, asked.top_p)
        return int(torch.multinomial(logits.softmax(-1), 1, generator=self._generator))


def penalised(logits: torch.Tensor, seen: Sequence[int], penalty: float) -> torch.Tensor:
    """Make earlier tokens less likely (Keskar et al., 2019, section 4.1; negative scores as in transformers)."""
    tokens = torch.tensor(sorted(set(seen)), device=logits.device)
    scores = logits[tokens]
    logits = logits.clone()
    logits[tokens] = torch.where(scores < 0, scores * penalty, scores / penalty)
    return logits


def _nucleus(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keep the most likely tokens up to a total probability of `top_p` (Holtzman et al., 2020), at least one."""
    ordered, places = logits.sort(descending=True)
    before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
    too_unlikely = before >= top_p
    too_unlikely[0] = False  # `top_p` may be too small for 32 bits
    out = torch.zeros_like(logits, dtype=torch.bool).scatter(0, places, too_unlikely)
    return logits.masked_fill(out, -torch.inf)
