"""Another model's marks as training data: spaCy's small English model names the entities of news articles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from workers.training import data
from workers.training.data import SEED

#: The teacher's labels that are learnt: names, times and amounts. The others are rare in news, or vague.
TYPES = ("PERSON", "ORG", "GPE", "LOC", "NORP", "DATE", "TIME", "MONEY", "PERCENT")

#: A training text has this many paragraphs: users send sentences as well as articles.
_PARAGRAPHS = (1, 1, 2, 3)


@dataclass(frozen=True, slots=True)
class Entity:
    """Characters `start` to `end` of a text, and their type."""

    start: int
    end: int
    type: str


@dataclass(frozen=True, slots=True)
class Marked:
    """A text with its entities."""

    text: str
    entities: tuple[Entity, ...]


def parts(cache: Path, most_texts: int) -> dict[str, list[str]]:
    """Return pieces of BBC articles, `most_texts` to train on and a fifth as many to judge by; no article is in two
    parts.
    """
    split = data.split(data.read("topic", cache), seed=SEED)
    wanted = {"train": (split.train, most_texts), "validation": (split.validation, most_texts // 10),
              "test": (split.test, most_texts // 10)}  # fmt: skip
    random = Random(SEED)  # noqa: S311 (a repeatable choice, no secret)
    found: dict[str, list[str]] = {}
    for name, (examples, most) in wanted.items():
        texts = [piece for example in examples for piece in _pieces(example.text, random)]
        found[name] = random.sample(texts, min(most, len(texts)))
    return found


def _pieces(text: str, random: Random) -> Iterator[str]:
    paragraphs = [paragraph.strip() for paragraph in text.split("\n\n") if paragraph.strip()]
    while paragraphs:
        count = random.choice(_PARAGRAPHS)
        yield "\n\n".join(paragraphs[:count])
        del paragraphs[:count]


def mark(texts: Sequence[str], cache: Path) -> list[Marked]:
    """Return the texts with the teacher's entities. Raises ImportError without the extra `entities`."""
    import spacy

    folder = data.pull("entity_teacher", cache)
    teacher = spacy.load(folder, exclude=["tagger", "parser", "attribute_ruler", "lemmatizer", "senter"])
    found = []
    for document in teacher.pipe(texts, batch_size=64):
        entities = [Entity(one.start_char, one.end_char, one.label_) for one in document.ents if one.label_ in TYPES]
        found.append(Marked(document.text, tuple(_trimmed(document.text, one) for one in entities)))
    return found


def _trimmed(text: str, entity: Entity) -> Entity:
    """Leave out the article and the possessive: "the BBC's" is about the BBC."""
    start, end = entity.start, entity.end
    if text[start:end].lower().startswith("the ") and entity.type in {"ORG", "GPE", "LOC", "NORP", "PERSON"}:
        start += 4
    if text[start:end].endswith(("'s", "\u2019s")):
        end -= 2
    return Entity(start, end, entity.type) if end > start else entity
