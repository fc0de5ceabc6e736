"""The scores of classes and numbers, and the score by which evaluations are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from producers.wire.errors import InvalidInput
from workers.models.built_in.tables.series import SeriesModel
from workers.models.interface.model import ModelSpec
from workers.training import train_series
from workers.training.kinds.label_kinds import ClassificationKind, RegressionKind
from workers.training.kinds.labelled_kind import deviation
from workers.training.kinds.pair_kinds import SimilarityKind
from workers.training.recipes import table_columns
from workers.training.recipes.recipe_file import TaskTable


def given(label: str) -> list[dict[str, Any]]:
    return [{"label": label, "score": 1.0}]


def test_each_label_counts_once_in_macro_f1() -> None:
    """However many others are taken for it; as scikit-learn has it, also a label that is only given."""
    kind = ClassificationKind("about", TaskTable(kind="classification"), "tasks.about")
    pairs = [(given(found), wanted) for found, wanted in ("aa", "ba", "ca", "bb", "cc")]
    assert kind.scores(pairs)["macro_f1"] == pytest.approx((1 / 2 + 2 / 3 + 2 / 3) / 3)
    assert kind.scores([*pairs, (given("d"), "a")])["macro_f1"] == pytest.approx((2 / 5 + 2 / 3 + 2 / 3 + 0) / 4)


def number(labels: list[float]) -> RegressionKind:
    kind = RegressionKind("price", TaskTable(kind="regression"), "tasks.price")
    kind.learn(labels)
    return kind


def test_equal_numbers_are_not_learnt() -> None:
    """The deviation of three equal numbers is 1e-17."""
    with pytest.raises(InvalidInput, match=r"all training rows have 0\.1; there must be several values"):
        number([0.1, 0.1, 0.1])


@pytest.mark.parametrize("wanted", [0.1, 0.5])
def test_evaluations_on_equal_numbers_are_compared_by_their_error(wanted: float) -> None:
    """R² knows no difference between them, or only rounding."""
    kind = number([0.0, 2.0])
    near, far = ([([{"label": "price", "score": wanted + off}], wanted)] * 3 for off in (0.5, 2.0))
    assert kind.scores(near)["r2"] == kind.scores(far)["r2"] == 0
    assert kind.progress(near) == pytest.approx(0.75)
    assert kind.progress(far) == pytest.approx(-3)


def test_equal_numbers_have_no_correlation() -> None:
    kind = SimilarityKind("alike", TaskTable(kind="similarity"), "tasks.alike")
    assert kind.scores([([0.1], 0.1), ([0.2], 0.1), ([0.4], 0.1)]) == {"spearman": 0, "pearson": 0}


def test_equal_numbers_have_the_deviation_1() -> None:
    """Their own is 1e-17 or 0, and numbers are divided by it."""
    assert deviation([0.1, 0.1, 0.1]) == deviation([3.0]) == deviation([]) == 1
    assert deviation([1.0, 3.0]) == 1
    assert deviation([1.0, 5.0]) == 2
    assert table_columns.column("rate", ["0.1"] * 3, "").scale == 1


def test_equal_values_of_a_channel_stay_small(tmp_path: Path) -> None:
    series = [(np.column_stack([np.arange(9.0), np.full(9, 0.1)]), label) for label in "ab"]
    recordings = train_series.Recordings("own", ("rise", "level"), series, series)
    train_series.train(recordings, tmp_path, epochs=1)
    described = SeriesModel(ModelSpec("own", tmp_path, "", {}, {})).described
    assert [channel.scale for channel in described.channels] == [pytest.approx(2.582, abs=1e-3), 1]
