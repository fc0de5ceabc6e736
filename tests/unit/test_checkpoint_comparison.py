"""A choice of a network may differ from the reference's only where the reference itself nearly chose it."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.checkpoint_folders.comparison import Boxes, Ranking, difference

MARGIN = 0.05


def span(start: int, score: float) -> dict[str, Any]:
    return {"start": start, "end": start + 3, "score": score, "answer": "abc"}


def token(label: str, score: float) -> dict[str, Any]:
    return {"entity": label, "score": score, "index": 1}


@pytest.mark.parametrize(("second", "problem"), [(0.55, ""), (0.35, "not")])
def test_a_span_that_was_nearly_chosen(second: float, problem: str) -> None:
    ranking = Ranking([span(0, 0.6), span(5, second), span(9, 0.01)], 1)
    assert problem in difference("question-answering", [span(5, second + 0.01)], ranking, MARGIN)
    assert difference("question-answering", [span(9, 0.6)], ranking, MARGIN)
    assert "not" in difference("question-answering", [span(0, 0.4)], ranking, MARGIN)  # its score is off


def test_a_label_of_a_token() -> None:
    expected = [Ranking([token("B-PER", 0.4), token("O", 0.35), token("I-LOC", 0.2)], 1)]
    assert not difference("token-classification", [token("O", 0.36)], expected, MARGIN)
    assert difference("token-classification", [token("I-LOC", 0.22)], expected, MARGIN)
    assert "0 tokens, not 1" in difference("token-classification", [], expected, MARGIN)


def test_a_box_near_the_threshold() -> None:
    def box(score: float, left: int) -> dict[str, Any]:
        return {"label": "cat", "score": score, "box": {"xmin": left, "ymin": 0, "xmax": left + 9, "ymax": 9}}

    boxes = Boxes([box(0.9, 0), box(0.52, 40), box(0.1, 80)], threshold=0.5)
    for found in ([box(0.9, 0), box(0.52, 40)], [box(0.88, 1)]):
        assert not difference("object-detection", found, boxes, MARGIN)
    assert "there is no box" in difference("object-detection", [box(0.52, 40)], boxes, MARGIN)
    assert "there is a box" in difference("object-detection", [box(0.9, 0), box(0.55, 80)], boxes, MARGIN)
