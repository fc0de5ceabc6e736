"""Decode tokens to text incrementally: whole characters only, without a possible beginning of a stop string."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: The decoded text of an incomplete character.
_HALF = "\ufffd"

#: A token that is a byte, of vocabularies with byte fallback. Bytes that follow one another are decoded together: if
#: they are no valid text, each becomes U+FFFD.
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")

#: The most tokens that wait for the end of their bytes.
_MOST_BYTES = 64


class TextWriter:
    """The text of an answer. `stopped` is set after a stop string, which is not part of the text."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._tokens: list[int] = []
        self._from = 0  # earlier tokens do not affect how later tokens are decoded
        self._read = 0  # the text has the tokens before this index
        self._text = ""
        self._given = 0
        self.stopped = False

    @property
    def text(self) -> str:
        """The text that can no longer change."""
        return self._text[: self._certain()]

    def add(self, token: int) -> None:
        self._tokens.append(token)
        self._append(self._decode(self._from), final=False)

    def end(self) -> None:
        """End the text; an incomplete character is shown as U+FFFD."""
        if not self.stopped:
            self._append(self._decode(self._from), final=True)
            self._stop = ()

    def piece(self) -> tuple[str, int]:
        """Return the new final text since the last call, and its offset in the text."""
        certain, at = self.text, self._given
        self._given = max(at, len(certain))
        return certain[at:], at

    def _append(self, shown: str, *, final: bool) -> None:
        before = self._tokenizer.decode(self._tokens[self._from : self._read], skip_special_tokens=True)
        if not final and (shown.endswith(_HALF) or self._within_bytes()):
            return
        joined = shown.startswith(before)  # not if bytes behind a text make all of its bytes invalid
        new = shown[len(before) :] if joined else self._decode(self._read)
        self._text += new.replace("\0", _HALF)  # the store cannot hold NUL
        # decode a few earlier tokens again: some tokenizers write a first token differently. Special tokens, which are
        # not shown, are none
        self._from, self._read = self._read if new else self._from, len(self._tokens)
        found = [at for stop in self._stop if (at := self._text.find(stop)) >= 0]
        if found:
            self._text, self._stop, self.stopped = self._text[: min(found)], (), True

    def _within_bytes(self) -> bool:
        """Whether the last token is a byte, and more bytes may follow it."""
        last = self._tokenizer.id_to_token(self._tokens[-1]) or ""
        return bool(_BYTE.fullmatch(last)) and len(self._tokens) - self._read < _MOST_BYTES

    def _decode(self, start: int) -> str:
        return self._tokenizer.decode(self._tokens[start:], skip_special_tokens=True)

    def _certain(self) -> int:
        """Return the length of the text without a possible beginning of a stop string."""
        for held in range(min(max(map(len, self._stop), default=0) - 1, len(self._text)), 0, -1):
            if any(stop.startswith(self._text[-held:]) for stop in self._stop):
                return len(self._text) - held
        return len(self._text)
