"""Answers that are JSON of a schema: at each step, only tokens that can still become one (llguidance)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from producers.wire.errors import InvalidInput

if TYPE_CHECKING:
    import torch
    from llguidance import LLMatcher, LLTokenizer


def of_schema(schema: Mapping[str, Any], field: str) -> str:
    """Return a JSON schema's grammar, for answers without needless spaces. Raises InvalidInput if it is none that is known."""
    from llguidance import LLMatcher

    text = msgspec.json.encode(schema).decode()
    compact = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    try:
        grammar = LLMatcher.grammar_from_json_schema(text, defaults=compact)  # type: ignore[arg-type]  # a typed dict of theirs
    except ValueError as error:
        raise InvalidInput(field, f"is no JSON schema: {error}") from error
    if problem := LLMatcher.validate_grammar(grammar):
        raise InvalidInput(field, f"cannot be written by: {problem.strip()[:500]}", "simplify the schema")
    return grammar


class Grammars:
    """Makes the matchers of one tokenizer; in the device process."""

    def __init__(self, tokenizer: str, vocabulary: int, eos: list[int]) -> None:
        self._source = tokenizer
        self._vocabulary = vocabulary
        self._eos = eos
        self._tokenizer: LLTokenizer | None = None
        self._made: dict[str, LLMatcher] = {}

    def matcher(self, grammar: str) -> Matcher:
        """Return a matcher at the grammar's beginning; a grammar is compiled once."""
        from llguidance import LLMatcher, LLTokenizer

        if self._tokenizer is None:  # a second's work, of which only JSON has need
            self._tokenizer = LLTokenizer(self._source, n_vocab=self._vocabulary, eos_token=self._eos)
        if grammar not in self._made:
            if len(self._made) >= 64:
                self._made.clear()
            self._made[grammar] = LLMatcher(self._tokenizer, grammar)
        return Matcher(self._made[grammar].deep_copy(), self._vocabulary)


class Matcher:
    """Where one answer is in its grammar."""

    def __init__(self, matcher: LLMatcher, vocabulary: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary

    def allowed(self) -> torch.Tensor:
        """Return which tokens may come next, (vocabulary,) of bool. Raises RuntimeError if the grammar is beyond the matcher."""
        import numpy as np
        import torch

        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        return torch.from_numpy(np.unpackbits(bits, count=self._vocabulary, bitorder="little").astype(bool))

    def take(self, token: int) -> None:
        """Go on by a token that was allowed."""
        self._matcher.consume_token(token)
        self._check()

    @property
    def ended(self) -> bool:
        """Whether nothing can follow."""
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise RuntimeError(f"the grammar: {self._matcher.get_error()}")
