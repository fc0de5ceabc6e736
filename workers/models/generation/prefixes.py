"""A cache of earlier prompts' keys and values, for prompts with the same prefix (a template, a dialogue so far)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cachetools import LRUCache

if TYPE_CHECKING:
    from workers.models.generation.key_value_memory import Kept

#: The shortest prefix in the cache: looking up a shorter one costs more than reading it again.
LEAST_TOKENS = 8


class Prefixes:
    """A cache of up to `most_tokens` tokens that evicts the least recently used prefix."""

    def __init__(self, most_tokens: int) -> None:
        self.most_tokens = most_tokens
        self._held: LRUCache[tuple[int, ...], Kept] = LRUCache(most_tokens, getsizeof=lambda kept: kept.shape[3])

    @property
    def tokens(self) -> int:
        """The number of cached tokens."""
        return int(self._held.currsize)

    def find(self, tokens: Sequence[int]) -> Kept | None:
        """Return the keys and values of a prompt's longest cached prefix. The prompt's last token is always left to
        read.
        """
        best, length = None, LEAST_TOKENS - 1
        for known in self._held:
            alike = common(known, tokens[:-1], length)
            if alike > length:
                best, length = known, alike
        if best is None:
            return None
        return self._held[best][:, :, :, :length]

    def keep(self, tokens: Sequence[int], kept: Kept) -> None:
        """Cache a prefix in place of its own prefixes. Do nothing if a cached entry already begins with it."""
        new = tuple(tokens)
        if not LEAST_TOKENS <= len(new) <= self.most_tokens or self.holds(new):
            return
        for known in [known for known in self._held if known == new[: len(known)]]:
            del self._held[known]
        self._held[new] = kept

    def holds(self, tokens: Sequence[int]) -> bool:
        """Return whether a cached entry begins with these tokens."""
        new = tuple(tokens)
        return any(known[: len(new)] == new for known in self._held)


def common(one: Sequence[int], other: Sequence[int], least: int = 0) -> int:
    """Return the length of the common prefix of two sequences. The result may be 0 if it is under `least`."""
    if list(one[:least]) != list(other[:least]):
        return 0
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count
