"""Judge the built-in text heads on their test parts: ``python -m workers.training.evaluate``.

Texts go through the serving code (prepare, collate, forward, finish), so what is judged is what is served.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from producers.catalogue import Catalogue, TextClassificationParams
from workers.models import sources
from workers.models.text import TextModel
from workers.training import data, features
from workers.training.data import Example
from workers.training.heads import SEED, without_subject

_PARAMS = TextClassificationParams(truncation=True)


@dataclass(frozen=True, slots=True)
class Score:
    """How one set of test texts went. `majority` is the accuracy of always saying the most frequent label."""

    name: str
    texts: int
    accuracy: float
    majority: float


def judge(task: str, cache: Path, model: TextModel) -> list[Score]:
    """Return a task's scores on its test part: as a whole, and in the forms or domains that differ."""
    parts = data.split(data.read(task, cache), seed=SEED)
    frequent = Counter(example.label for example in parts.train).most_common(1)[0][0]
    scores = [_score(task, parts.test, model, frequent, task)]
    if task == "spam":
        bodies = [replace(example, text=without_subject(example.text)) for example in parts.test]
        scores.append(_score("spam, body without subject", bodies, model, frequent, task))
    domains = sorted({example.domain for example in parts.test}) if task == "sentiment" else []
    for domain in domains:
        own = [example for example in parts.test if example.domain == domain]
        scores.append(_score(f"sentiment, {domain}", own, model, frequent, task))
    return scores


def _score(name: str, examples: Sequence[Example], model: TextModel, frequent: str, task: str) -> Score:
    answers = predict(task, [example.text for example in examples], model, name)
    right = sum(answer == example.label for answer, example in zip(answers, examples, strict=True))
    common = sum(example.label == frequent for example in examples)
    return Score(name, len(examples), right / len(examples), common / len(examples))


def predict(task: str, texts: Sequence[str], model: TextModel, what: str) -> list[str]:
    """Return the best label of each text."""
    found: dict[int, str] = {}
    rows = [model.prepare(text, {task: _PARAMS}) for text in texts]
    for places in track(list(features.by_length(rows)), description=what):
        arrays = model.collate([rows[place] for place in places])
        outputs = model.forward(arrays, {task: np.arange(len(places))})[task]
        for place, output in zip(places, outputs, strict=True):
            found[place] = model.finish(model.spec.tasks[task], output, _PARAMS)[0]["label"]
    return [found[place] for place in range(len(texts))]


def _rows(scores: Sequence[Score]) -> Iterator[tuple[str, ...]]:
    for score in scores:
        yield score.name, f"{score.texts:,}", f"{score.accuracy:.1%}", f"{score.majority:.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", action="append", choices=list(data.READERS), help="only this one; may be repeated")
    asked = parser.parse_args()
    console = Console()
    cache = sources.cache_folder()
    started_at = time.monotonic()
    tasks = {name: task for name, task in Catalogue.builtin().tasks.items() if name in data.READERS}
    model = features.text_model(cache, tasks)
    table = Table("test part", "texts", "accuracy", "majority label", title="Held-out accuracy of the text heads")
    for task in asked.task or list(data.READERS):
        for row in _rows(judge(task, cache, model)):
            table.add_row(*row)
    console.print(table)
    console.print(f"{model.revision}, seed {SEED}, {time.monotonic() - started_at:.0f} s")


if __name__ == "__main__":
    main()
