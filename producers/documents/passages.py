"""Cut documents into passages: whole sentences, as many as fit, each with its place in the document."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from producers.wire.kinds.retrieval import PIECES

#: The end of a sentence, a paragraph or a list item, with its closing marks and the space after it.
_ENDS = re.compile(
    r"[.!?…][\"'\u201d\u2019)\]]*\s+(?=[^\s.,;:a-z])|[\u3002\uff01\uff1f]+\s*|\n\s*\n\s*"
    r"|\n\s*(?=#{1,6} |[-*•] |\d+[.)] )"
)
_HEADING = re.compile(r"#{1,6} ")

#: A word, a number or a mark: close to a token of usual tokenizers. In scripts without spaces, each character.
_PIECE = re.compile(r"[A-Za-z0-9]{1,10}|[^\s]")


@dataclass(frozen=True, slots=True)
class Document:
    """A text with its name, such as a file's path. Citations show the name."""

    name: str
    text: str


class PassageText(msgspec.Struct, frozen=True):
    """Characters `start` to `end` of a document."""

    document: str
    start: int
    end: int
    text: str


def passages(document: Document, *, pieces: int = PIECES) -> Iterator[PassageText]:
    """Yield a document's passages of at most `pieces` pieces (words of up to ten letters, marks), without overlap.

    Passages are whole sentences; a Markdown heading begins a new passage. A longer sentence is cut between words.
    """
    start = end = count = 0
    for begin, stop in _sentences(document.text, pieces):
        size = _size(document.text[begin:stop])
        if end and (count + size > pieces or _HEADING.match(document.text, begin)):
            yield _passage(document, start, end)
            end = count = 0
        if not end:
            start = begin
        end, count = stop, count + size
    if end:
        yield _passage(document, start, end)


def _passage(document: Document, start: int, end: int) -> PassageText:
    return PassageText(document.name, start, end, document.text[start:end])


def sentences(text: str) -> list[str]:
    """Return a text's sentences, without the space around them."""
    return [text[begin:stop] for begin, stop in _bounds(text)]


def _sentences(text: str, pieces: int) -> Iterator[tuple[int, int]]:
    for begin, stop in _bounds(text):
        if _size(text[begin:stop]) <= pieces:
            yield begin, stop
        else:
            yield from _cut(text, begin, stop, pieces)


def _bounds(text: str) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each sentence, without the space around it."""
    begin = 0
    for match in _ENDS.finditer(text):
        yield from _without_space(text, begin, match.start() + len(match.group().rstrip()))
        begin = match.end()
    yield from _without_space(text, begin, len(text))


def _without_space(text: str, begin: int, stop: int) -> Iterator[tuple[int, int]]:
    stretch = text[begin:stop]
    if stretch.strip():
        yield begin + len(stretch) - len(stretch.lstrip()), begin + len(stretch.rstrip())


def _cut(text: str, begin: int, stop: int, pieces: int) -> Iterator[tuple[int, int]]:
    """Yield parts of a long sentence, cut before a word if possible."""
    start, count = begin, 0
    for match in _PIECE.finditer(text, begin, stop):
        if count == pieces:
            space = max(text.rfind(" ", start, match.start()), text.rfind("\n", start, match.start()))
            at = space + 1 if space > start else match.start()
            yield from _without_space(text, start, at)
            start, count = at, _size(text[at : match.start()])
        count += 1
    yield from _without_space(text, start, stop)


def _size(text: str) -> int:
    return sum(1 for _ in _PIECE.finditer(text))
