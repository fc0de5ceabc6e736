"""A request in the device process: the tokens read and generated so far, and its outcome."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from workers.models.generation.decoder_network import Feed
from workers.models.generation.generation_request import GenerationRequest, Written
from workers.models.generation.grammar import Matcher
from workers.models.generation.sampling import Sampler
from workers.models.generation.writing import TextWriter

if TYPE_CHECKING:
    from workers.models.generation.key_value_memory import Kept


@dataclass(slots=True, eq=False)
class GeneratedSequence:
    """A request in progress: `pending` has the tokens to read next, `read` the tokens read so far. The keys and values
    of `read` are in `kept`, or in a `row` of the block of generating lines.
    """

    key: Hashable
    request: GenerationRequest
    urgency: int
    number: int
    writer: TextWriter
    sampler: Sampler
    matcher: Matcher | None
    eos: Collection[int]
    pending: list[int]
    adapter: int = 0
    kept: Kept | None = None
    row: int | None = None
    read: list[int] = field(default_factory=list)
    written: int = 0
    cached: int = 0
    forward_s: float = 0.0
    outcome: Written | None = None
    steps: int = 0
    waited: int = 0
    kept_until: int = 0

    @property
    def writes(self) -> bool:
        """Whether its prompt is read and it generates token by token."""
        return self.written > 0

    def take(self, logits: torch.Tensor) -> None:
        """Choose the next token from (vocabulary,) logits; set `outcome` after the last. Raises FloatingPointError."""
        _check(logits)
        allowed = self.matcher.allowed() if self.matcher else None
        token = self.sampler.choose(logits, self.read, allowed)
        self.written += 1
        if token in self.eos:
            self._end("stop")
            return
        self.pending = [token]
        self.writer.add(token)
        if self.matcher:
            self.matcher.take(token)
        if self.writer.stopped or (self.matcher is not None and self.matcher.ended):
            self._end("stop")
        elif self.written >= self.request.max_new_tokens:
            self._end("length")

    def _end(self, reason: str) -> None:
        self.writer.end()
        self.outcome = Written(self.writer.text, reason, self.written, self.cached)

    # --- labels ---

    def tree(self, rest: Sequence[int]) -> Feed:
        """Return the rest of the prompt followed by all labels. Each label attends to the prompt and itself only."""
        tokens, offsets, spans = list(rest), list(range(len(rest))), []
        for label in self.request.labels:
            spans.append((len(tokens), len(tokens) + len(label) - 1))
            tokens += label[:-1]  # nothing follows the last token
            offsets += range(len(rest), len(rest) + len(label) - 1)
        sees = torch.ones((len(tokens), len(tokens)), dtype=torch.bool).tril()
        for start, end in spans:
            sees[start:end, len(rest) : start] = False
        return Feed(tokens, range(len(rest) - 1, len(tokens)), offsets, sees, self.adapter)

    def score(self, logits: torch.Tensor) -> None:
        """Set the outcome from the logits at the prompt's last token and at the labels' tokens, in the order of `tree`.

        Raises FloatingPointError.
        """
        _check(logits)
        chances, ends = logits.log_softmax(-1), list(self.eos)
        scores, at = [], 1
        for label in self.request.labels:
            places = [0, *range(at, at + len(label) - 1)]
            at += len(label) - 1
            own = chances[places, label]
            if label[-1] in ends:
                own[-1] = chances[places[-1], ends].logsumexp(-1)
            scores.append(float(own.sum()))
        self.outcome = Written(cached_tokens=self.cached, scores=scores)


def _check(logits: torch.Tensor) -> None:
    """Raise FloatingPointError if the logits have a NaN. The row must go: attention multiplies masked values by 0, so a
    NaN among its keys would reach the next request in the row.
    """
    if logits.isnan().any():
        raise FloatingPointError(
            "the network's output is not a number; if other inputs fail, too, use another precision"
        )
