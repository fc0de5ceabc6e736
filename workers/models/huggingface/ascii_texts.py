"""Tokenise ASCII texts without a normalizer, which takes almost half of the time of a BERT tokenizer.

A normalizer notes for each character where it came from. The normalizers here change each character of an ASCII text by
itself, so that a table does the same. It is made by asking the normalizer for each of the 128 characters.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

#: The normalizers that change each ASCII character by itself. The others may look at its neighbours.
BY_CHARACTER = frozenset({"BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "StripAccents"})

#: The niceness of the threads that tokenise batches, beyond the worker's own.
POOL_NICENESS = 10


@dataclass(frozen=True, slots=True)
class AsciiTexts:
    """A BERT tokenizer without its normalizer, the normalizer's table, and the added tokens as a pattern."""

    tokenizer: Tokenizer
    table: dict[int, str]
    added: re.Pattern[str]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> AsciiTexts | None:
        """Return it, and take the normalizer away from the tokenizer; None if that could change a token."""
        normalizer = tokenizer.normalizer
        kinds = {type(one).__name__ for one in _parts(normalizer)}
        if not kinds <= BY_CHARACTER or type(tokenizer.pre_tokenizer).__name__ != "BertPreTokenizer":
            return None
        table = {code: normalizer.normalize_str(chr(code)) for code in range(128)}
        added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
        found = {form for one in added for form in (one.translate(table), normalizer.normalize_str(one))}
        if "" in found:
            return None
        tokenizer.normalizer = None
        return cls(tokenizer, table, re.compile("|".join(map(re.escape, sorted(found))) or r"(?!)", re.IGNORECASE))

    def normalized(self, text: str) -> str | None:
        """Return a text as the normalizer leaves it; None if it is not ASCII, or if it may contain an added token.

        A tokenizer finds added tokens in the text as it was written, or in the normalized one.
        """
        if not text.isascii():
            return None
        normalized = text.translate(self.table)
        return None if self.added.search(normalized) else normalized


@cache
def start_pool() -> None:
    """Start the pool of threads that tokenises batches, at a low priority, so that urgent work is first at the cores.

    A thread gets the priority of the thread that starts it. Only Linux has priorities of threads.
    """
    from tokenizers import Tokenizer, models

    def start() -> None:
        own = os.getpriority(os.PRIO_PROCESS, 0)
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(own + POOL_NICENESS, 19))
        Tokenizer(models.BPE()).encode_batch_fast([""] * 2)

    if sys.platform == "linux":
        starter = threading.Thread(target=start, name="start of the tokenising pool")
        starter.start()
        starter.join()


def encode_batch(tokenizer: Tokenizer, ascii_texts: AsciiTexts | None, texts: Sequence[str]) -> list[Encoding]:
    """Return the encodings of texts without their positions. Raises like the tokenizer if a text is at fault."""
    start_pool()
    if ascii_texts is None:
        return tokenizer.encode_batch_fast(list(texts))
    normalized = [ascii_texts.normalized(text) for text in texts]
    plain = iter(ascii_texts.tokenizer.encode_batch_fast([text for text in normalized if text is not None]))
    others = [text for text, own in zip(texts, normalized, strict=True) if own is None]
    rest = iter(tokenizer.encode_batch_fast(others))
    return [next(rest if own is None else plain) for own in normalized]


def _parts(normalizer: object) -> Iterator[object]:
    """Yield a normalizer, or the normalizers of a sequence."""
    if type(normalizer).__name__ == "Sequence":
        for one in normalizer:  # type: ignore[attr-defined]
            yield from _parts(one)
    else:
        yield normalizer
