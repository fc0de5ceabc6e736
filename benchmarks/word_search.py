"""Okapi BM25 (Robertson et al., 1994), the word search that retrieval by meaning has to beat."""

from __future__ import annotations

import heapq
import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

_WORD = re.compile(r"[a-z0-9]+")
_K, _B = 1.2, 0.75


class WordSearch:
    """Texts by their words."""

    def __init__(self, texts: Sequence[str]) -> None:
        counted = [Counter(_WORD.findall(text.lower())) for text in texts]
        self._sizes = [sum(words.values()) for words in counted]
        self._mean = sum(self._sizes) / len(self._sizes)
        self._where: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for place, words in enumerate(counted):
            for word, count in words.items():
                self._where[word].append((place, count))

    def best(self, query: str, count: int) -> list[int]:
        """Return the places of the texts that fit a query best."""
        scores: defaultdict[int, float] = defaultdict(float)
        for word in _WORD.findall(query.lower()):
            found = self._where.get(word, ())
            rarity = math.log(1 + (len(self._sizes) - len(found) + 0.5) / (len(found) + 0.5))
            for place, times in found:
                scores[place] += (
                    rarity * times * (_K + 1) / (times + _K * (1 - _B + _B * self._sizes[place] / self._mean))
                )
        return heapq.nlargest(count, scores, key=lambda place: scores[place])
