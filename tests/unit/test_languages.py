"""The n-grams that tell languages apart, and what is answered where there are none."""

from __future__ import annotations

import numpy as np
import pytest

from workers.models.built_in.text.language import BUCKETS, MOST_CHARACTERS, ngrams


def test_ngrams_stay_within_words() -> None:
    """A word's n-grams are the same wherever the word stands, up to its borders."""
    apart = np.concatenate([ngrams("one"), ngrams("two")])
    together = ngrams("one two")
    assert set(apart) == set(together)
    assert together.min() >= 0
    assert together.max() < BUCKETS


def test_case_marks_and_figures_say_nothing() -> None:
    np.testing.assert_array_equal(ngrams("Où est-elle, 2 fois ?"), ngrams("où EST elle fois"))


@pytest.mark.parametrize(
    "text", ["\U0001f600\U0001f389", "12 345.67", "?!… — \u200b\u200d", "https://example.org/page"]
)
def test_what_is_in_no_language_has_none(text: str) -> None:
    assert len(ngrams(text)) == 0


def test_only_the_beginning_of_a_long_text_is_read() -> None:
    np.testing.assert_array_equal(ngrams("a bc " * 20_000), ngrams(("a bc " * 20_000)[:MOST_CHARACTERS]))


@pytest.mark.parametrize("text", ["a", "\ud800 half", "\u202b\u05e9\u05dc\u05d5\u05dd", "\x00nul\x00"])
def test_strange_texts_are_read(text: str) -> None:
    assert len(ngrams(text)) > 0
