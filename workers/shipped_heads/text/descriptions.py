"""Debian's package descriptions in several languages, as Debian's indices have them: ``Translation-en``, ``Translation-fr`` …"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

#: A list's bullet, or the dash that French descriptions have in its place.
_BULLET = re.compile(r"^(?:[*+•·\u2013\u2014-]+|o(?= ))\s*")
_SENTENCE = re.compile(r"(?<=[.!?:])\s+(?=[A-ZÀ-Ý«\"'(])")
_LETTER = re.compile(r"[^\W\d_]")
_SPACES = re.compile(r"[\s⋅]+")  # the dot operator stands for a no-break space in some of them
_AFFIX = re.compile(r"^(lib|python3?-|php[\d.]*-|node-|golang-|ruby-|r-[a-z]+-|fonts-|texlive-|task-|haskell-|elpa-)")


@dataclass(frozen=True, slots=True)
class Pair:
    """A sentence and its translation, out of the description of a package of this `family`."""

    source: str
    target: str
    family: str


def read(path: Path) -> dict[str, tuple[str, str]]:
    """Return a language's descriptions: (package, description) by the digest of the English one."""
    language = path.name.removeprefix("Translation-")
    found = {}
    for stanza in path.read_text("utf-8").split("\n\n"):
        fields = dict(re.findall(r"^([A-Za-z0-9_-]+): (.*(?:\n .*)*)", stanza, re.MULTILINE))
        if description := fields.get(f"Description-{language}"):
            found[fields["Description-md5"]] = fields["Package"], description
    return found


def paragraphs(description: str) -> list[str]:
    """Return the synopsis and the paragraphs of a description; each line of a list is one."""
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
    """Return the sentences of one language beside those of the other; each sentence of `source` once.

    Descriptions with other numbers of paragraphs are left out; so is what is the same in both languages.
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
    """Write typographic marks as most do, and drop the list's punctuation that only the translation has."""
    target = target.replace("\u2019", "'")
    if source[-1] not in ".;:,":
        target = target.rstrip(" ;,.")
    return target


def _is_translation(pair: Pair) -> bool:
    if not pair.target or same(pair.source) == same(pair.target) or not _LETTER.search(pair.source):
        return False
    return 0.5 <= (len(pair.target) + 10) / (len(pair.source) + 10) <= 2.5


def family(package: str) -> str:
    """Return what packages of one origin have in common: ``libfoo2-dev`` and ``foo-doc`` are both ``foo``."""
    stem = _AFFIX.sub("", package)
    return re.split(r"[-\d.+]", stem, maxsplit=1)[0] or stem


def same(text: str) -> str:
    """Reduce a text to what equal ones share: its letters, without case, figures or punctuation."""
    return " ".join(re.findall(r"[^\W\d_]+", text.lower()))


def part(family: str) -> str:
    """Return in which part a family is: ``test`` and ``validation`` get one in 32 each, by a digest of the name."""
    place = blake2b(family.encode(), digest_size=2).digest()[0] % 32
    return {0: "test", 1: "validation"}.get(place, "train")


def split(found: list[Pair]) -> dict[str, list[Pair]]:
    """Part pairs by family: no package, and no sentence, is in two parts."""
    parts: dict[str, list[Pair]] = {"train": [], "validation": [], "test": []}
    for pair in found:
        parts[part(pair.family)].append(pair)
    return parts
