"""Short texts of five tasks: sentiment, rating, topic, spam and entities, each with one label, in three parts.

The sentences of `sentiment` and of `rating` come from different sources, and so do all other texts: no text has labels
of two tasks. The entities are those that spaCy's small model finds, which is installed by ``argosy[entities]``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from producers.wire.errors import ConfigurationError
from workers.models.sources import model_source
from workers.shipped_heads.text import entity_scores, teacher
from workers.shipped_heads.text.teacher import Marked
from workers.training import data
from workers.training.data import SEED, Example, Split

#: The kind of each task.
KINDS = {
    "sentiment": "classification",
    "rating": "regression",
    "topic": "classification",
    "spam": "classification",
    "entities": "token-labels",
}

#: The rows to train, to validate and to judge.
COUNTS = {
    "sentiment": (4000, 150, 800),
    "rating": (4000, 150, 800),
    "topic": (1400, 150, 300),
    "spam": (2000, 150, 500),
    "entities": (1600, 150, 300),
}

PARTS = ("train", "validation", "test")

#: Longer texts are cut, since short ones train in minutes; longer ones with entities are left out.
CHARS = 160

#: The types of the entities: common ones, which a hundredth of the rows has, too.
TYPES = ("PERSON", "ORG", "GPE", "DATE")

#: The pieces of articles among which are the short ones.
_PIECES = 12_000

_REVIEWS, _OTHERS = ("movie", "amazon"), ("tweets", "nyt")

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class TaskRows:
    """A task's rows by part, in random order."""

    task: str
    parts: Mapping[str, Sequence[Row]]

    def share(self, share: float, seed: int) -> list[Row]:
        """Return a share of the training rows. It has every label; smaller shares of a seed are parts of larger ones."""
        rows = [*self.parts["train"]]
        Random(f"{seed} {self.task}").shuffle(rows)
        seen: set[str] = set()
        first, rest = list[Row](), list[Row]()
        for row in rows:
            (rest if self._names(row) <= seen else first).append(row)
            seen |= self._names(row)
        return (first + rest)[: max(len(first), round(share * len(rows)))]

    def _names(self, row: Row) -> set[str]:
        label = row[self.task]
        if isinstance(label, list):
            return {entity["label"] for entity in label}
        return {label} if isinstance(label, str) else set()


def read(*, quick: bool) -> dict[str, TaskRows]:
    """Return all tasks' rows, after pulling their data. Raises ConfigurationError without spaCy.

    `quick` takes a few, and needs no spaCy.
    """
    cache = model_source.cache_folder()
    found = {
        "sentiment": _labelled(_split(_of_domains(data.read("sentiment", cache), _REVIEWS)), str),
        "rating": _labelled(_rated(data.read_ratings(data.pull("ratings", cache))), float),
        "topic": _labelled(_split(data.read("topic", cache)), str),
        "spam": _labelled(_split(data.read("spam", cache)), str, task="spam"),
        "entities": _marked(entity_scores.gold()) if quick else _entities(cache),
    }
    most = dict.fromkeys(COUNTS, (24, 8, 12)) if quick else COUNTS
    return {task: TaskRows(task, _few(task, parts, most[task])) for task, parts in found.items()}


def write(path: Path, rows: Iterable[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    return path


Labelled = Mapping[str, Sequence[tuple[str, Any]]]


def _few(task: str, parts: Labelled, counts: Sequence[int]) -> dict[str, list[Row]]:
    found = {}
    for part, count in zip(PARTS, counts, strict=True):
        chosen = Random(SEED).sample(parts[part], min(count, len(parts[part])))
        found[part] = [{"text": text, task: label} for text, label in chosen]
    return found


def _split(examples: Sequence[Example]) -> Split:
    return data.split(examples, seed=SEED)


def _of_domains(examples: Sequence[Example], domains: Sequence[str]) -> list[Example]:
    return [one for one in examples if one.domain in domains]


def _rated(examples: Sequence[Example]) -> Split:
    """Split by domain alone: each rating would be a stratum of its own."""
    ratings = {one.text: one.label for one in examples}
    parts = _split([replace(one, label="") for one in _of_domains(examples, _OTHERS)])
    return Split(*([replace(one, label=ratings[one.text]) for one in getattr(parts, part)] for part in PARTS))


def _labelled(split: Split, label: Callable[[str], Any], *, task: str = "") -> Labelled:
    found = {}
    for part in PARTS:
        examples = getattr(split, part)
        texts = (" ".join(text.split())[:CHARS].strip() for text in data.texts_as_served(examples, task))
        found[part] = [(text, label(one.label)) for text, one in zip(texts, examples, strict=True) if text]
    return found


def _entities(cache: Path) -> Labelled:
    if find_spec("spacy") is None:
        raise ConfigurationError("the entities' texts are marked by spaCy; pip install 'argosy[entities]'")
    parts = teacher.parts(cache, _PIECES)
    short = {part: [text for text in texts if len(text) <= CHARS] for part, texts in parts.items()}
    counts = dict(zip(PARTS, COUNTS["entities"], strict=True))
    return {part: _spans(teacher.mark(texts[: counts[part]], cache)) for part, texts in short.items()}


def _marked(marked: Sequence[Marked]) -> Labelled:
    """Return the sentences that a person has marked as all three parts."""
    return {part: _spans(marked) for part in PARTS}


def _spans(marked: Sequence[Marked]) -> list[tuple[str, Any]]:
    return [
        (
            one.text,
            [{"start": own.start, "end": own.end, "label": own.type} for own in one.entities if own.type in TYPES],
        )
        for one in marked
    ]
