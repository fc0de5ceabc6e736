"""Match the sentences of an answer to passages, by their common words and numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from producers.documents.passages import sentences

_WORD = re.compile(r"[^\W\d_]{4,}")
_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")

#: Letters of a word that are compared, so that "returned" matches "return".
_STEM = 5


@dataclass(frozen=True, slots=True)
class Cited:
    """A sentence of an answer and the number of its passage, from 1, or None. `share` of its words are in there."""

    sentence: str
    passage: int | None
    share: float

    def __str__(self) -> str:
        return f"{self.sentence} [{self.passage}]" if self.passage else f"{self.sentence} [not in the documents]"


def cite(answer: str, passages: Sequence[Mapping[str, Any]], *, least_share: float = 0.6) -> list[Cited]:
    """Return an answer's sentences, each with the first passage (a mapping with `text`) that has most of its words.

    A sentence has no passage if the best share is under `least_share`, or if the passage lacks a number of the
    sentence. A citation shows where to look, and unsupported sentences; it does not prove a sentence.
    """
    known = [_words(str(passage["text"])) for passage in passages]
    return [_cited(sentence, known, least_share) for sentence in sentences(answer)]


def _cited(sentence: str, known: Sequence[set[str]], least_share: float) -> Cited:
    own, numbers = _words(sentence), set(_NUMBER.findall(sentence))
    shares = [len(own & theirs) / len(own) if own and numbers <= theirs else 0.0 for theirs in known]
    best = max(shares, default=0.0)
    return Cited(sentence, shares.index(best) + 1 if best >= least_share else None, round(best, 3))


def _words(text: str) -> set[str]:
    return {word[:_STEM].lower() for word in _WORD.findall(text)} | set(_NUMBER.findall(text))
