"""The scores of classes and numbers, and the score by which evaluations are compared."""

from __future__ import annotations

from typing import Any

import pytest

from workers.training.kinds.label_kinds import ClassificationKind
from workers.training.recipes.recipe_file import TaskTable


def given(label: str) -> list[dict[str, Any]]:
    return [{"label": label, "score": 1.0}]


def test_each_label_counts_once_in_macro_f1() -> None:
    """However many others are taken for it; as scikit-learn has it, also a label that is only given."""
    kind = ClassificationKind("about", TaskTable(kind="classification"), "tasks.about")
    pairs = [(given(found), wanted) for found, wanted in ("aa", "ba", "ca", "bb", "cc")]
    assert kind.scores(pairs)["macro_f1"] == pytest.approx((1 / 2 + 2 / 3 + 2 / 3) / 3)
    assert kind.scores([*pairs, (given("d"), "a")])["macro_f1"] == pytest.approx((2 / 5 + 2 / 3 + 2 / 3 + 0) / 4)
