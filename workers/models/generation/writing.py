"""Tokens to text as they come: whole characters only, and nothing that may still turn out to be a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: What a tokenizer makes of half a character.
_HALF = "\ufffd"


class Writer:
    """The text of one answer. `stopped` is set once a stop string was written, which itself is left out."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._tokens: list[int] = []
        self._from = 0  # tokens before this one cannot change what the others look like
        self._read = 0  # tokens before this one are in the text
        self._text = ""
        self._given = 0
        self.stopped = False

    @property
    def text(self) -> str:
        """All that is certain so far."""
        return self._text[: self._certain()]

    def add(self, token: int) -> None:
        self._tokens.append(token)
        self._append(self._decode(self._from), final=False)

    def end(self) -> None:
        """No more tokens: half a character is shown as one that is unreadable."""
        if not self.stopped:
            self._append(self._decode(self._from), final=True)
            self._stop = ()

    def piece(self) -> tuple[str, int]:
        """Return what has become certain since the last call, and where in the text it begins."""
        certain, at = self.text, self._given
        self._given = max(at, len(certain))
        return certain[at:], at

    def _append(self, shown: str, *, final: bool) -> None:
        before = self._tokenizer.decode(self._tokens[self._from : self._read], skip_special_tokens=True)
        if shown.endswith(_HALF) and not final:
            return
        self._text += shown[len(before) :].replace("\0", _HALF)  # as the store has it, which has no word for NUL
        # a few tokens stay in sight: some tokenizers write a token otherwise at the beginning
        self._from, self._read = self._read, len(self._tokens)
        found = [at for stop in self._stop if (at := self._text.find(stop)) >= 0]
        if found:
            self._text, self._stop, self.stopped = self._text[: min(found)], (), True

    def _decode(self, start: int) -> str:
        return self._tokenizer.decode(self._tokens[start:], skip_special_tokens=True)

    def _certain(self) -> int:
        """How much of the text is no beginning of a stop string."""
        for held in range(min(max(map(len, self._stop), default=0) - 1, len(self._text)), 0, -1):
            if any(stop.startswith(self._text[-held:]) for stop in self._stop):
                return len(self._text) - held
        return len(self._text)
