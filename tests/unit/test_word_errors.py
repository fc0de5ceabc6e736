"""The word error rate, by hand."""

from __future__ import annotations

import pytest

from workers.training.word_errors import distance, rate, words


def test_words_are_as_they_are_spoken() -> None:
    assert words(" Mr. Dashwood's cold-hearted, at 7!") == ["mister", "dashwood's", "cold", "hearted", "at", "7"]


@pytest.mark.parametrize(
    ("said", "written", "expected"),
    [("a b c", "a b c", 0), ("a b c", "a x c", 1), ("a b c", "a c", 1), ("a b c", "a b b c", 1), ("a b", "", 2), ("", "a", 1)],
)  # fmt: skip
def test_changed_lost_and_made_up_words_are_errors(said: str, written: str, expected: int) -> None:
    assert distance(said.split(), written.split()) == expected


def test_the_rate_is_over_all_words_that_were_said() -> None:
    assert rate([("one two three four", "One, two; three."), ("five", "five")]) == pytest.approx(1 / 5)
