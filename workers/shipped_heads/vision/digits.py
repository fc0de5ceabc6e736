"""Handwritten digits with words for them: the data of the built-in picture model."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray

from workers.training import data
from workers.training.data import SEED

#: Height and width of a picture: the digits' 28, and a margin.
SIDE = 32

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

#: The adjectives of a digit: of each two, at most one is true.
ADJECTIVES = ("thin", "thick", "upright", "slanted")

#: The names of a digit. `{a}` is the place of adjectives, if any.
_FORMS = (
    "a {a}handwritten {n}",
    "a {a}{n}",
    "a {a}digit {n}",
    "the {a}digit {n}",
    "the {a}number {n}",
    "{a}{n}",
    "a picture of a {a}{n}",
    "a {a}{n} written by hand",
)


@dataclass(frozen=True, slots=True)
class Digits:
    """Images `(digits, 32, 32)` of 0 to 1, white on black; the digit of each; its true adjectives."""

    images: NDArray[np.float32]
    numbers: NDArray[np.int64]
    adjectives: Sequence[tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.numbers)

    def part(self, places: NDArray[np.int64]) -> Digits:
        return Digits(self.images[places], self.numbers[places], [self.adjectives[place] for place in places])


def read(cache: Path) -> tuple[Digits, Digits]:
    """Return the digits to train on, and those held out, after pulling them into `cache` if needed."""
    with gzip.open(data.pull("digits", cache) / "mnist_5k.csv.gz", "rt") as file:
        rows = np.loadtxt(file, delimiter=",", dtype=np.float32)
    margin = (SIDE - 28) // 2
    images: NDArray[np.float32] = np.pad(
        rows[:, :-1].reshape(-1, 28, 28) / 255, ((0, 0), (margin, margin), (margin, margin))
    ).astype(np.float32)
    numbers = rows[:, -1].astype(np.int64)
    digits = Digits(images, numbers, _adjectives(images, numbers))
    held_out = np.zeros(len(numbers), dtype=np.bool_)
    for number in range(10):
        places = np.flatnonzero(numbers == number)
        held_out[np.random.default_rng(SEED + number).permutation(places)[: len(places) // 5]] = True
    return digits.part(np.flatnonzero(~held_out)), digits.part(np.flatnonzero(held_out))


def ink(images: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the share of ink in each image, of 1."""
    return np.asarray(images.mean(axis=(1, 2), dtype=np.float64))


def slant(images: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the lean of each image's ink to the right, as the tangent of the angle."""
    heights, widths = np.mgrid[0 : images.shape[1], 0 : images.shape[2]].astype(np.float64)
    total = images.sum(axis=(1, 2)) + 1e-6
    down = heights - ((images * heights).sum(axis=(1, 2)) / total)[:, None, None]
    right = widths - ((images * widths).sum(axis=(1, 2)) / total)[:, None, None]
    leaning = (images * down * right).sum(axis=(1, 2)) / ((images * down * down).sum(axis=(1, 2)) + 1e-6)
    return np.asarray(-leaning)


def _adjectives(images: NDArray[np.float32], numbers: NDArray[np.int64]) -> list[tuple[str, ...]]:
    """Call a digit thin or thick, upright or slanted, if it is in the outer thirds of its kind."""
    found: list[list[str]] = [[] for _ in numbers]
    for measured, (low, high) in ((ink(images), ("thin", "thick")), (slant(images), ("upright", "slanted"))):
        for number in range(10):
            places = np.flatnonzero(numbers == number)
            lower, upper = np.quantile(measured[places], (1 / 3, 2 / 3))
            for place in places:
                if measured[place] < lower:
                    found[place].append(low)
                elif measured[place] > upper:
                    found[place].append(high)
    return [tuple(words) for words in found]


def prompt(number: int, adjectives: Sequence[str], random: Random) -> str:
    """Return a prompt for such a digit; each of its adjectives is used every other time."""
    said = [adjective for adjective in adjectives if random.random() < 0.5]
    random.shuffle(said)
    name = WORDS[number] if random.random() < 0.6 else str(number)
    return random.choice(_FORMS).format(a="".join(f"{adjective} " for adjective in said), n=name)


def words() -> list[str]:
    """Return every word of the prompts."""
    forms = " ".join(form.format(a="", n="") for form in _FORMS).split()
    return sorted({*forms, *WORDS, *map(str, range(10)), *ADJECTIVES})
