"""The arithmetic of benchmarks/edge.py: the threshold, what counts as right, and the worse of two tasks."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from benchmarks import edge
from benchmarks.sites.edge_tasks import Question


def rows(*labels: str, scores: list[float] | None = None) -> list[dict[str, Any]]:
    return [{"label": label, "score": 0.9} for label in labels] if scores is None else [
        {"label": label, "score": score} for label, score in zip(labels, scores, strict=True)
    ]  # fmt: skip


def test_the_threshold_sends_on_as_little_as_keeps_the_accuracy() -> None:
    """The site is wrong where it is least sure; without such a threshold, the best within the share is taken."""
    questions = [Question(n, "a") for n in range(10)]
    centre = rows(*["a"] * 10)
    site = rows("b", "b", *["a"] * 8, scores=[0.1, 0.2, *(0.5 + n / 100 for n in range(8))])
    assert edge._threshold(questions, site, centre) == (0.5, True)
    worse = rows(*["b"] * 5, *["a"] * 5, scores=[n / 10 for n in range(10)])
    threshold, reached = edge._threshold(questions, worse, centre)
    assert (threshold, reached) == (0.4, False)


def test_an_item_without_an_answer_is_wrong() -> None:
    """And counts as not sent on."""
    answered = {"label": "a", "seconds": 0.1, "cascade": {"by": "centre"}}
    asked = {"rows": [answered, {"error": "ResultTimeout", "seconds": 9.0}], "bytes": 7, "seconds": 9.1}
    found = edge._judged(asked, ["a", "a"])
    assert (found["accuracy"], found["share"], found["unanswered"], found["bytes"]) == (0.5, 0.5, 1, 7)


@pytest.mark.parametrize("missing", ["", "image-variants", "image-cut"])
def test_the_figures_are_those_of_the_worse_task(missing: str, tmp_path: Path) -> None:
    """Lost and doubled items are summed; a part that is missing leaves the others as they are."""

    def variants(accuracy: float, sent: int) -> dict[str, Any]:
        cascade = {"accuracy": accuracy, "bytes": sent, "share": sent / 100}
        return {"centre": {"accuracy": 0.9, "bytes": 100}, "cascade": cascade, "start_s": 5.0, "memory_mib": 400.0}

    done = {
        "text-variants": variants(0.899, 30),
        "image-variants": variants(0.88, 20),
        "text-cut": {"lost": 0, "doubled": 1},
        "image-cut": {"lost": 2, "doubled": 0},
    }
    asked = argparse.Namespace(quick=True, minutes=1.0, student="student")
    found = edge.Bench(asked, tmp_path, {name: own for name, own in done.items() if name != missing}).figures()
    assert found["points_lost"] == (0.1 if missing == "image-variants" else 2.0)
    assert found["share_escalated"] == 0.3
    assert found["bytes_over_centre"] == 0.3
    assert (found["lost"], found["doubled"]) == ((0, 1) if missing == "image-cut" else (2, 1))
    assert found["edge_memory_mib"] == 400.0
