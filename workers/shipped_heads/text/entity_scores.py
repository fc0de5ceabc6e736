"""Scores of the head `entities`: compared with its teacher on held-out news, and with a person's marks in a few
sentences.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console
from rich.table import Table

from producers.wire.catalogue import Task
from producers.wire.kinds import KINDS
from producers.wire.kinds.text import TokenClassificationParams
from workers.models.built_in.text.text_model import TextModel
from workers.shipped_heads.text import teacher
from workers.shipped_heads.text.teacher import Entity, Marked
from workers.training import head_features, training_batches

TASK = "entities"

_STRATEGIES: tuple[Literal["simple", "first", "average", "max"], ...] = ("simple", "first", "average", "max")
_BATCH_TOKENS = 2_048

_MARK = re.compile(r"\[([^|\]]+)\|([A-Z]+)\]")
_CAPITALISED = re.compile(r"\b[A-Z][\w&'-]*(?: [A-Z][\w&'-]*)*")


def gold() -> list[Marked]:
    """Return sentences written for this purpose, with the entities marked by a person."""
    lines = resources.files("workers.shipped_heads.text").joinpath("gold_entities.txt").read_text("utf-8").splitlines()
    return [_unmarked(line) for line in lines]


def _unmarked(line: str) -> Marked:
    text, entities = "", []
    rest = 0
    for found in _MARK.finditer(line):
        text += line[rest : found.start()]
        entities.append(Entity(len(text), len(text) + len(found[1]), found[2]))
        text, rest = text + found[1], found.end()
    return Marked(text + line[rest:], tuple(entities))


def found_by(
    model: TextModel, texts: Sequence[str], strategies: Sequence[TokenClassificationParams]
) -> list[list[list[Entity]]]:
    """Return, by strategy, the model's entities of each text, by prepare, collate, forward and finish, in a single
    pass.
    """
    task = model.spec.tasks[TASK]
    rows = [model.prepare(text, {TASK: strategies[0]}) for text in texts]
    answers: list[list[list[Entity]]] = [[[] for _ in texts] for _ in strategies]
    for places in training_batches.by_size([row.size for row in rows], _BATCH_TOKENS):
        wanted = {TASK: np.arange(len(places))}
        outputs = model.forward(model.collate([rows[place] for place in places]), wanted)[TASK]
        for place, output in zip(places, outputs, strict=True):
            for own, params in zip(answers, strategies, strict=True):
                entities = model.finish(task, output, params, rows[place])
                own[place] = [Entity(one["start"], one["end"], one["entity_group"]) for one in entities]
    return answers


def capitalised(texts: Sequence[str]) -> list[list[Entity]]:
    """The baseline: every run of capitalised words that does not begin a sentence is a name, of the commonest type."""
    return [
        [
            Entity(one.start(), one.end(), "ORG")
            for one in _CAPITALISED.finditer(text)
            if text[: one.start()].rstrip()[-1:] not in {"", ".", "!", "?"}
        ]
        for text in texts
    ]


def f1(found: Sequence[Sequence[Entity]], wanted: Sequence[Marked], *, typed: bool = True) -> float:
    """Return the harmonic mean of precision and recall: an entity is right if both its ends are, and its type if
    `typed`.
    """
    ours = _all(found, typed)
    theirs = _all([one.entities for one in wanted], typed)
    return 2 * len(ours & theirs) / max(len(ours) + len(theirs), 1)


def _all(entities: Sequence[Sequence[Entity]], typed: bool) -> set[tuple[int, int, int, str]]:
    return {(place, one.start, one.end, one.type if typed else "") for place, own in enumerate(entities) for one in own}


def show(articles: Sequence[Marked], cache: Path, console: Console, heads: Path | None = None) -> None:
    """Print the scores. `articles` are held-out news with the teacher's marks."""
    model = head_features.text_model(cache, {TASK: Task(TASK, KINDS["token-classification"], "text", "")}, heads)
    table = Table("judged on", "texts", "entities", "by", "F1", "F1 without types")
    for name, marked in (("news, as the teacher marked it", articles), ("sentences, as a person marked them", gold())):
        texts = [one.text for one in marked]
        count = sum(len(one.entities) for one in marked)
        by_strategy = found_by(model, texts, [TokenClassificationParams(strategy) for strategy in _STRATEGIES])
        answers: dict[str, list[list[Entity]]] = {**dict(zip(_STRATEGIES, by_strategy, strict=True))}
        answers["capitalised words"] = capitalised(texts)
        if name.startswith("sentences"):
            answers["the teacher"] = [list(one.entities) for one in teacher.mark(texts, cache)]
        for by, found in answers.items():
            scores = (f"{f1(found, marked, typed=typed):.1%}" for typed in (True, False))
            table.add_row(name, f"{len(texts)}", f"{count}", by, *scores)
    console.print(table)
