"""The word error rate of transcripts: Levenshtein's distance over words, as a share of the spoken words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

#: Shortened words, as readers say them.
_SPOKEN = {"mr": "mister", "mrs": "missis", "dr": "doctor"}


def words(text: str) -> list[str]:
    """Return a text's words as they are spoken: small letters, no marks, hyphens apart, ``Mr.`` said in full."""
    plain = re.sub(r"[^a-z0-9' ]", " ", text.lower())
    return [_SPOKEN.get(word, word) for word in plain.split()]


def distance(said: Sequence[str], written: Sequence[str]) -> int:
    """Return the number of words to change, leave out or put in, to make the written words of the spoken ones."""
    costs = list(range(len(written) + 1))
    for row, word in enumerate(said, 1):
        before, costs[0] = costs[0], row
        for column, other in enumerate(written, 1):
            change = before + (word != other)
            before = costs[column]
            costs[column] = min(change, before + 1, costs[column - 1] + 1)
    return costs[-1]


def rate(pairs: Iterable[tuple[str, str]]) -> float:
    """Return the word error rate over pairs of a spoken and a written text: 0 is perfect."""
    apart = [(words(said), words(written)) for said, written in pairs]
    return sum(distance(*pair) for pair in apart) / sum(len(said) for said, _ in apart)
