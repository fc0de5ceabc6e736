"""Answers in JSON that match a schema: each step allows only tokens that can lead to a valid answer (llguidance)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from producers.wire.errors import InvalidInput

if TYPE_CHECKING:
    import torch
    from llguidance import LLMatcher, LLTokenizer


def of_schema(schema: Mapping[str, Any], field: str) -> str:
    """Return a JSON schema's grammar, without optional spaces. Raises InvalidInput if the schema is not supported."""
    from llguidance import LLMatcher

    text = msgspec.json.encode(schema).decode()
    compact = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    try:
        # llguidance declares `defaults` as a TypedDict
        grammar = LLMatcher.grammar_from_json_schema(text, defaults=compact)  # type: ignore[arg-type]
    except ValueError as error:
        raise InvalidInput(field, f"is not a supported JSON schema: {error}") from error
    if problem := LLMatcher.validate_grammar(grammar):
        raise InvalidInput(field, f"cannot be compiled to a grammar: {problem.strip()[:500]}", "simplify the schema")
    return grammar


class Grammars:
    """The matchers of a tokenizer, in the device process."""

    def __init__(self, tokenizer: str, vocabulary: int, eos: list[int]) -> None:
        self._source = tokenizer
        self._vocabulary = vocabulary
        self._eos = eos
        self._tokenizer: LLTokenizer | None = None
        self._made: dict[str, LLMatcher] = {}

    def matcher(self, grammar: str) -> Matcher:
        """Return a matcher at the start of a grammar. Compiled grammars are cached."""
        from llguidance import LLMatcher, LLTokenizer

        if self._tokenizer is None:  # takes a second, so only the first JSON request pays for it
            self._tokenizer = LLTokenizer(self._source, n_vocab=self._vocabulary, eos_token=self._eos)
        if grammar not in self._made:
            if len(self._made) >= 64:
                self._made.clear()
            self._made[grammar] = LLMatcher(self._tokenizer, grammar)
        return Matcher(self._made[grammar].deep_copy(), self._vocabulary)


class Matcher:
    """The state of an answer in its grammar."""

    def __init__(self, matcher: LLMatcher, vocabulary: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary

    def allowed(self) -> torch.Tensor:
        """Return the tokens that may come next, (vocabulary,) of bool. Raises RuntimeError if the matcher fails."""
        import numpy as np
        import torch

        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        return torch.from_numpy(np.unpackbits(bits, count=self._vocabulary, bitorder="little").astype(bool))

    def take(self, token: int) -> None:
        """Advance by an allowed token."""
        self._matcher.consume_token(token)
        self._check()

    @property
    def ended(self) -> bool:
        """Whether the answer is complete."""
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise RuntimeError(f"the grammar failed: {self._matcher.get_error()}")
