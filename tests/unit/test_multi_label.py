"""Labels of which any number applies: the threshold of an answer, and the scores with which a head begins."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import pytest

from workers.training.kinds.label_kinds import MultiLabelKind
from workers.training.recipes.recipe_file import TaskTable

NAMES = ("rare", "often", "never")


def kind() -> MultiLabelKind:
    found = MultiLabelKind("about", TaskTable(kind="multi-label"), "tasks.about")
    found.learn([("often",)] * 60 + [("rare", "often")] * 5 + [()] * 34 + [("never",)])
    return found


def answer(**scores: float) -> list[dict[str, Any]]:
    return [{"label": label, "score": score} for label, score in scores.items()]


def test_a_head_begins_with_the_shares_of_the_labels() -> None:
    shares = {name: 1 / (1 + math.exp(-score)) for name, score in zip(kind().labels, kind().first_scores, strict=True)}
    assert shares == pytest.approx({"rare": 0.05, "often": 0.65, "never": 0.01})


def test_the_best_threshold_becomes_one_half() -> None:
    """Labels that are right have scores from 0.2, others up to 0.1."""
    random, own = Random(1), kind()
    pairs = []
    for _ in range(200):
        wanted = tuple(name for name in NAMES if random.random() < 0.2)
        scores = {name: 0.2 + 0.2 * random.random() if name in wanted else 0.1 * random.random() for name in NAMES}
        pairs.append((answer(**scores), wanted))
    assert own.scores(pairs)["micro_f1"] == 0
    assert own.progress(pairs) == 1  # of a training that learns, though no score is over 0.5
    own.settle(pairs)
    scale, shift = own.units
    assert scale == 1
    moved = [
        (
            [
                one | {"score": 1 / (1 + math.exp(-math.log(one["score"] / (1 - one["score"])) - shift))}
                for one in given
            ],
            wanted,
        )
        for given, wanted in pairs
    ]
    assert {*own.scores(moved).values()} == {1.0}


def test_few_labels_choose_no_threshold() -> None:
    """Evaluations are compared by the threshold of the answers, which is one half then."""
    own = kind()
    pairs = [(answer(rare=0.3, often=0.1, never=0.1), ("rare",))] * 20
    own.settle(pairs[1:])
    assert own.units == (1.0, 0.0)
    assert [own.progress(pairs[1:]), own.progress(pairs)] == [0, 1]
    own.settle([(answer(rare=0.3, often=0.1, never=0.1), ())] * 200)
    assert own.units == (1.0, 0.0)


def test_equal_scores_are_not_parted() -> None:
    """A threshold between them would be theirs, which none is over."""
    pairs = [(answer(rare=0.4), ("rare",)), (answer(rare=0.4), ()), (answer(rare=0.2), ())]
    assert kind().progress(pairs * 20) == pytest.approx(2 / 3)
