"""Debian's package descriptions in several languages, from Debian's indices: ``Translation-en``, ``Translation-fr``
…
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

#: A list's bullet, or the dash in its place in French descriptions.
_BULLET = re.compile(r"^(?:[*+•·\u2013\u2014-]+|o(?= ))\s*")
_SENTENCE = re.compile(r"(?<=[.!?:])\s+(?=[A-ZÀ-Ý«\"'(])")
_LETTER = re.compile(r"[^\W\d_]")
_SPACES = re.compile(r"[\s⋅]+")  # some of them use the dot operator for a no-break space
_AFFIX = re.compile(r"^(lib|python3?-|php[\d.]*-|node-|golang-|ruby-|r-[a-z]+-|fonts-|texlive-|task-|haskell-|elpa-)")


@dataclass(frozen=True, slots=True)
class Pair:
    """A sentence and its translation, from the description of a package of this `family`."""

    source: str
    target: str
    family: str


def read(path: Path) -> dict[str, tuple[str, str]]:
    """Return a language's descriptions: (package, description) by the digest of the English description."""
    language = path.name.removeprefix("Translation-")
    found = {}
    for stanza in path.read_text("utf-8").split("\n\n"):
        fields = dict(re.findall(r"^([A-Za-z0-9_-]+): (.*(?:\n .*)*)", stanza, re.MULTILINE))
        if description := fields.get(f"Description-{language}"):
            found[fields["Description-md5"]] = fields["Package"], description
    return found


def paragraphs(description: str) -> list[str]:
    """Return the synopsis and the paragraphs of a description; each line of a list is a paragraph."""
    found: list[list[str]] = [[]]
    for number, line in enumerate(description.split("\n")):
        text = line.strip()
        if text == "." or number < 2 or line.startswith("  ") or _BULLET.match(text):
            found.append([])
        if text != ".":
            found[-1].append(text)
    joined = (_BULLET.sub("", _SPACES.sub(" ", " ".join(lines))).strip() for lines in found)
    return [text for text in joined if text]


def pairs(source: Path, target: Path) -> list[Pair]:
    """Return pairs of sentences of two languages; each sentence of `source` once.

    Descriptions with different numbers of paragraphs are left out, and so are sentences that are equal in both
    languages.
    """
    theirs = read(target)
    found: dict[str, Pair] = {}
    for digest, (package, description) in read(source).items():
        if digest not in theirs:
            continue
        ours, other = paragraphs(description), paragraphs(theirs[digest][1])
        if len(ours) == len(other):
            for before, after in zip(ours, other, strict=True):
                for pair in _sentences(before, after, family(package)):
                    found.setdefault(same(pair.source), pair)
    return list(found.values())


def _sentences(source: str, target: str, family: str) -> Iterator[Pair]:
    ours, theirs = _SENTENCE.split(source), _SENTENCE.split(target)
    if len(ours) != len(theirs):
        ours, theirs = [source], [target]
    for before, after in zip(ours, theirs, strict=True):
        pair = Pair(before, _tidied(before, after), family)
        if _is_translation(pair):
            yield pair


def _tidied(source: str, target: str) -> str:
    """Replace typographic marks by common ones, and drop list punctuation that only the translation has."""
    target = target.replace("\u2019", "'")
    if source[-1] not in ".;:,":
        target = target.rstrip(" ;,.")
    return target


def _is_translation(pair: Pair) -> bool:
    if not pair.target or same(pair.source) == same(pair.target) or not _LETTER.search(pair.source):
        return False
    return 0.5 <= (len(pair.target) + 10) / (len(pair.source) + 10) <= 2.5


def family(package: str) -> str:
    """Return the common name of packages of one origin: ``libfoo2-dev`` and ``foo-doc`` are both ``foo``."""
    stem = _AFFIX.sub("", package)
    return re.split(r"[-\d.+]", stem, maxsplit=1)[0] or stem


def same(text: str) -> str:
    """Reduce a text to the part that equal texts share: its letters, without case, figures or punctuation."""
    return " ".join(re.findall(r"[^\W\d_]+", text.lower()))


def part(family: str) -> str:
    """Return the part of a family: ``test`` and ``validation`` get one in 32 each, by a digest of the name."""
    place = blake2b(family.encode(), digest_size=2).digest()[0] % 32
    return {0: "test", 1: "validation"}.get(place, "train")


def split(found: list[Pair]) -> dict[str, list[Pair]]:
    """Split pairs by family: no package, and no sentence, is in two parts."""
    parts: dict[str, list[Pair]] = {"train": [], "validation": [], "test": []}
    for pair in found:
        parts[part(pair.family)].append(pair)
    return parts
