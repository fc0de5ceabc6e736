"""Statements about a digit, true or false: the data of the fused head.

Each fact has several phrasings, some of which are never trained on. Every fact has its opposite, and a statement is
true as often as false, of every digit: the statement alone, or the picture alone, allows only a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workers.shipped_heads.vision.digits import WORDS

DIGITS = range(10)

#: By fact: phrasings to train on, and held-out phrasings. `{a}` and `{b}` are words or figures.
PHRASINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "is": (
        ("this is a {a}", "the digit is {a}", "it shows the number {a}", "a handwritten {a}", "one can see a {a} here"),
        ("somebody wrote {a}", "the figure reads {a}"),
    ),
    "is not": (
        ("this is not a {a}", "the digit is not {a}", "it does not show the number {a}", "anything but a {a}"),
        ("nobody wrote {a} here", "the figure is other than {a}"),
    ),
    "even": (
        ("the number is even", "this is an even digit", "it can be divided by two", "the digit is a multiple of 2"),
        ("an even figure", "two divides it"),
    ),
    "odd": (
        ("the number is odd", "this is an odd digit", "it cannot be divided by two", "the digit is no multiple of 2"),
        ("an odd figure", "two does not divide it"),
    ),
    "over": (
        ("the number is greater than {a}", "this is more than {a}", "the digit is over {a}", "it is larger than {a}"),
        ("the figure exceeds {a}", "it is above {a}"),
    ),
    "not over": (
        ("the number is at most {a}", "this is {a} or less", "the digit is not over {a}", "it is not larger than {a}"),
        ("the figure does not exceed {a}", "it is not above {a}"),
    ),
    "under": (
        ("the number is less than {a}", "this is fewer than {a}", "the digit is under {a}", "it is smaller than {a}"),
        ("the figure falls short of {a}", "it is below {a}"),
    ),
    "not under": (
        (
            "the number is at least {a}",
            "this is {a} or more",
            "the digit is not under {a}",
            "it is not smaller than {a}",
        ),
        ("the figure does not fall short of {a}", "it is not below {a}"),
    ),
    "within": (
        ("the number lies between {a} and {b}", "it is one of {a} to {b}", "the digit is from {a} to {b}"),
        ("somewhere from {a} up to {b}",),
    ),
    "not within": (
        ("the number does not lie between {a} and {b}", "it is none of {a} to {b}", "the digit is not from {a} to {b}"),
        ("nowhere from {a} up to {b}",),
    ),
}  # fmt: skip

_TRUE: dict[str, Callable[[int, int, int], bool]] = {
    "is": lambda digit, a, b: digit == a,
    "even": lambda digit, a, b: digit % 2 == 0,
    "over": lambda digit, a, b: digit > a,
    "under": lambda digit, a, b: digit < a,
    "within": lambda digit, a, b: a <= digit <= b,
}
_OPPOSITES = {"is not": "is", "odd": "even", "not over": "over", "not under": "under", "not within": "within"}


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement, and the digits of which it is true."""

    text: str
    fact: str
    true_of: tuple[bool, ...]


def statements(*, held_out: bool) -> list[Statement]:
    """Return all statements in the phrasings to train on, or in the held-out ones."""
    return [
        Statement(text, fact, tuple(_holds(fact, digit, a, b) for digit in DIGITS))
        for fact, phrasings in PHRASINGS.items()
        for a, b in _numbers(fact)
        for phrasing in phrasings[held_out]
        for text in dict.fromkeys(_written(phrasing, a, b))
    ]


def chances(of: list[Statement]) -> NDArray[np.float64]:
    """Return the frequency of each statement with each digit `(10, statements)`, so that neither alone tells whether
    it is true.
    """
    by_fact = {fact: sum(one.fact == fact for one in of) for fact in PHRASINGS}
    weights = np.array(
        [[1 / (one.true_of.count(one.true_of[digit]) * by_fact[one.fact]) for one in of] for digit in DIGITS]
    )
    return np.asarray(weights / weights.sum())


def _holds(fact: str, digit: int, a: int, b: int) -> bool:
    if fact in _OPPOSITES:
        return not _TRUE[_OPPOSITES[fact]](digit, a, b)
    return _TRUE[fact](digit, a, b)


def _numbers(fact: str) -> Iterator[tuple[int, int]]:
    """Yield the numbers for a fact that make it true of some digits and false of others."""
    match fact.removeprefix("not "):
        case "is" | "is not":
            yield from ((a, 0) for a in DIGITS)
        case "over":
            yield from ((a, 0) for a in range(9))
        case "under":
            yield from ((a, 0) for a in range(1, 10))
        case "within":
            yield from ((a, b) for a in DIGITS for b in range(a + 1, 10) if b - a < 6)
        case _:
            yield 0, 0


def _written(phrasing: str, a: int, b: int) -> Iterator[str]:
    yield phrasing.format(a=WORDS[a], b=WORDS[b])
    yield phrasing.format(a=a, b=b)
