"""The numbers of a pipeline's results: each input has its own range of `seq`, and each item a place in that range.

The place follows from the sources of the item, so a second transaction that makes it due makes the same item. The
numbers of an input below 2**28 fit into the 53 bits of JSON readers. This module knows neither database nor plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from results_store.records import Result

_STEP_BITS: Final = 5
_PART_BITS: Final = 10

#: The most steps of a pipeline, parts of an output, and nested lists above an item.
MAX_STEPS: Final = 2**_STEP_BITS - 1
MAX_PARTS: Final = 2**_PART_BITS
MAX_DEPTH: Final = 2

#: The number of `seq` values for each input.
TREE_SPAN: Final[int] = 2 ** (_STEP_BITS + MAX_DEPTH * _PART_BITS)


def tree_number(root: int, parts: Sequence[int], step: int) -> int:
    """Return the `seq` of the item of step `step` that is made from these parts, in the tree of input `root`."""
    number = root  # then digit by digit
    for level in range(MAX_DEPTH):
        number = number * MAX_PARTS + (parts[level] if level < len(parts) else 0)
    return number * 2**_STEP_BITS + step


def root_of(seq: int) -> int:
    """Return the number of the input whose tree contains an item."""
    return seq // TREE_SPAN


def numbers_of(seq: int) -> tuple[tuple[int, ...], int]:
    """Return the parts of an item, 0 for the missing ones, and the number of its step: see `tree_number`."""
    rest, step = divmod(seq, 2**_STEP_BITS)
    parts = []
    for _ in range(MAX_DEPTH):
        rest, part = divmod(rest, MAX_PARTS)
        parts.append(part)
    return tuple(reversed(parts)), step


@dataclass(frozen=True, slots=True, kw_only=True)
class Carrier:
    """The attributes that envelopes inherit from the envelope whose results they follow."""

    priority: int
    lane: int
    deadline_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The change that a transaction makes to the job of a pipeline.

    `rows` are all current results of the affected inputs, without vectors. `fresh` are the new ones, as (seq, task)
    with their envelope, which is among `carriers`. `at` is the store's time.
    """

    job: str
    tenant: str
    pipeline: dict[str, Any]
    rows: Sequence[Result]
    fresh: Mapping[tuple[int, str], str]
    carriers: Mapping[str, Carrier]
    at: float
