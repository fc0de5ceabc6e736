"""The keys and values of earlier prompts, for those that begin alike: a task's template, a dialogue's earlier turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cachetools import LRUCache

if TYPE_CHECKING:
    from workers.models.generation.key_value_memory import Kept

#: A shorter beginning costs more to look after than to read again.
LEAST_TOKENS = 8


class Prefixes:
    """At most `most_tokens` tokens, the least recently used out first."""

    def __init__(self, most_tokens: int) -> None:
        self.most_tokens = most_tokens
        self._held: LRUCache[tuple[int, ...], Kept] = LRUCache(most_tokens, getsizeof=lambda kept: kept.shape[3])

    @property
    def tokens(self) -> int:
        """How many are held."""
        return int(self._held.currsize)

    def find(self, tokens: Sequence[int]) -> Kept | None:
        """Return what is held of the longest known beginning of a prompt; its last token is left to be read."""
        best, length = None, LEAST_TOKENS - 1
        for known in self._held:
            alike = common(known, tokens[:-1], length)
            if alike > length:
                best, length = known, alike
        if best is None:
            return None
        return self._held[best][:, :, :, :length]

    def keep(self, tokens: Sequence[int], kept: Kept) -> None:
        """Hold what was read. What is the beginning of something longer is not held twice."""
        new = tuple(tokens)
        if not LEAST_TOKENS <= len(new) <= self.most_tokens or self.holds(new):
            return
        for known in [known for known in self._held if known == new[: len(known)]]:
            del self._held[known]
        self._held[new] = kept

    def holds(self, tokens: Sequence[int]) -> bool:
        """Say whether something held begins with these tokens."""
        new = tuple(tokens)
        return any(known[: len(new)] == new for known in self._held)


def common(one: Sequence[int], other: Sequence[int], least: int = 0) -> int:
    """Return how many tokens two sequences begin with in common; one that is known not to exceed `least` may be told as 0."""
    if list(one[:least]) != list(other[:least]):
        return 0
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count
