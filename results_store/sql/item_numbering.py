"""How the results of one input of a pipeline are numbered: a range of `seq` of its own, and in it a place for each item.

The place follows from what the item is made of, so that whoever makes it due a second time makes the same one. A tree of an
input below 2**28 has numbers that JSON readers with 53 bits can hold. Knows neither database nor plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from results_store.records import Result

_STEP_BITS: Final = 5
_PART_BITS: Final = 10

#: How many steps a pipeline can have, parts an output, and lists within lists an item.
MAX_STEPS: Final = 2**_STEP_BITS - 1
MAX_PARTS: Final = 2**_PART_BITS
MAX_DEPTH: Final = 2

#: So many numbers belong to one input.
TREE_SPAN: Final[int] = 2 ** (_STEP_BITS + MAX_DEPTH * _PART_BITS)


def tree_number(root: int, parts: Sequence[int], step: int) -> int:
    """Return the `seq` of the item of step `step` that was made of these parts, in the tree of input `root`."""
    number = root  # digit by digit
    for level in range(MAX_DEPTH):
        number = number * MAX_PARTS + (parts[level] if level < len(parts) else 0)
    return number * 2**_STEP_BITS + step


def root_of(seq: int) -> int:
    """Return the place of the input whose tree an item is in."""
    return seq // TREE_SPAN


@dataclass(frozen=True, slots=True, kw_only=True)
class Carrier:
    """What an envelope has that those which follow from it have as well."""

    priority: int
    lane: int
    deadline_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a transaction has just added to a job that is a pipeline.

    `rows` are all results there are now of the inputs concerned, without vectors; `fresh` those that are new, as
    (seq, task) with the envelope that they came by, one of `carriers`.
    """

    job: str
    tenant: str
    pipeline: dict[str, Any]
    rows: Sequence[Result]
    fresh: Mapping[tuple[int, str], str]
    carriers: Mapping[str, Carrier]
    at: float
