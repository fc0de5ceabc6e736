"""Judge the built-in text heads on their test parts: ``python -m workers.training.evaluate``.

Texts pass through the serving code (prepare, collate, forward, finish), so the scores are those of the fleet.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.progress import track
from rich.table import Table

from producers.wire.catalogue import Catalogue
from producers.wire.command_line import one_line_errors
from workers.models.built_in.text.text_model import TextModel
from workers.models.sources import model_source
from workers.training import data, head_features
from workers.training.data import SEED, Example, without_subject
from workers.training.training_batches import best_labels


@dataclass(frozen=True, slots=True)
class TextScore:
    """The score of one set of test texts. `majority` is the accuracy of always answering the set's most frequent
    label.
    """

    name: str
    texts: int
    accuracy: float
    majority: float


def judge(task: str, test: Sequence[Example], model: TextModel) -> list[TextScore]:
    """Return a task's scores on its `test` part: on all of it, and on its domains or forms."""
    answers = predict(task, [example.text for example in test], model, task)
    scores = [_score(task, test, answers)]
    if task == "sentiment":
        for domain in sorted({example.domain for example in test}):
            own = [place for place, example in enumerate(test) if example.domain == domain]
            scores.append(_score(f"{task}, {domain}", [test[n] for n in own], [answers[n] for n in own]))
    if task == "spam":
        bodies = [without_subject(example.text) for example in test]
        scores.append(_score(f"{task}, without subject", test, predict(task, bodies, model, "without subject")))
    return scores


def _score(name: str, examples: Sequence[Example], answers: Sequence[str]) -> TextScore:
    right = sum(answer == example.label for answer, example in zip(answers, examples, strict=True))
    [(_, common)] = Counter(example.label for example in examples).most_common(1)
    return TextScore(name, len(examples), right / len(examples), common / len(examples))


def predict(task: str, texts: Sequence[str], model: TextModel, what: str) -> list[str]:
    """Return the best label of each text; the progress bar shows `what`."""
    return best_labels(model, task, texts, watch=lambda batches: track(batches, description=what))


def _rows(scores: Sequence[TextScore]) -> Iterator[tuple[str, ...]]:
    for score in scores:
        yield score.name, f"{score.texts:,}", f"{score.accuracy:.1%}", f"{score.majority:.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", action="append", choices=list(data.READERS), help="only this one; may be repeated")
    asked = parser.parse_args()
    console = Console()
    cache = model_source.cache_folder()
    started_at = time.monotonic()
    chosen = asked.task or list(data.READERS)
    model = head_features.text_model(cache, {name: Catalogue.builtin().tasks[name] for name in chosen})
    table = Table("test part", "texts", "accuracy", "majority label", title="Held-out accuracy of the text heads")
    for task in chosen:
        test = data.split(data.read(task, cache), seed=SEED).test
        for row in _rows(judge(task, test, model)):
            table.add_row(*row)
    console.print(table)
    console.print(f"{model.revision}, seed {SEED}, {time.monotonic() - started_at:.0f} s")


if __name__ == "__main__":
    with one_line_errors():
        main()
