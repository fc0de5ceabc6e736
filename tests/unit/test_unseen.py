"""Finding what is new of a growing job: every result once, in whatever order it appears."""

from __future__ import annotations

from collections import Counter
from random import Random

from producers.client.unseen_results import BLOCK, UnseenResults, items_of
from results_store.records import Result, ResultState


def row(seq: int, task: str) -> Result:
    return Result(job="job", seq=seq, task=task, envelope="e", state=ResultState.SUCCEEDED)


def test_every_result_is_taken_once_whatever_the_order() -> None:
    """Rows appear anywhere in the job, with gaps where inputs were put aside; only blocks with something new are
    read.
    """
    random = Random(1)
    rows = [row(seq, task) for seq in random.sample(range(5 * BLOCK), 600) for task in ("topic", "spam")]
    random.shuffle(rows)
    unseen, taken, there = UnseenResults(), [], []
    for start in range(0, len(rows), 100):
        there += rows[start : start + 100]
        counts = Counter(one.seq // BLOCK for one in there)
        for block in unseen.blocks(counts):
            taken += unseen.take(block, [one for one in there if one.seq in items_of(block)])
        assert unseen.blocks(counts) == []
    assert sorted((one.seq, one.task) for one in taken) == sorted((one.seq, one.task) for one in rows)


def test_what_appears_between_counting_and_reading_is_not_taken_again() -> None:
    """The count may be older than the rows."""
    unseen = UnseenResults()
    assert len(unseen.take(0, [row(0, "topic"), row(1, "topic")])) == 2
    assert unseen.blocks({0: 1}) == []
    assert unseen.blocks({0: 3}) == [0]
    assert unseen.take(0, [row(0, "topic"), row(1, "topic")]) == []
