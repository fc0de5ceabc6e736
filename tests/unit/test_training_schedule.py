"""Which examples a training learns from, and who takes them."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.training.loop import schedule
from workers.training.loop.schedule import Schedule


def test_every_example_comes_once_before_any_comes_again() -> None:
    """What is drawn twice while another waits would weigh more than the data say."""
    drawn = Schedule((40, 7, 13), rows=16, temperature=2.0, seed=1)
    seen = Counter(chain.from_iterable(drawn.steps(0, 200)))
    assert sum(seen.values()) == 200 * 16
    for task, size in enumerate(drawn.sizes):
        times = [seen[task, number] for number in range(size)]
        assert max(times) - min(times) <= 1
        assert min(times) > 0


def test_a_later_beginning_draws_what_would_have_come() -> None:
    """A training that goes on from a checkpoint sees what it would have seen."""
    drawn = Schedule((40, 7, 13), rows=16, temperature=2.0, seed=1)
    assert list(drawn.steps(30, 50)) == list(drawn.steps(0, 50))[30:]


def test_temperature_raises_small_tasks() -> None:
    """At 1 tasks come by their sizes; the higher, the more alike."""
    shares = [Schedule((900, 100), 1, temperature, 0).chances()[1] for temperature in (1.0, 2.0, 100.0)]
    assert abs(shares[0] - 0.1) < 1e-9
    assert abs(shares[1] - 0.25) < 1e-9
    assert 0.49 < shares[2] < 0.5


@given(
    lengths=st.lists(st.integers(2, 64), min_size=1, max_size=60),
    processes=st.integers(1, 5),
    accumulate=st.integers(1, 4),
)
def test_shares_make_up_the_step(lengths: list[int], processes: int, accumulate: int) -> None:
    """No row is lost, none is taken by two, and nobody has two rows more than another in the same micro-batch."""
    shares = [
        schedule.share(lengths, rank=rank, processes=processes, accumulate=accumulate) for rank in range(processes)
    ]
    assert sorted(chain.from_iterable(chain.from_iterable(shares))) == list(range(len(lengths)))
    for parts in zip(*shares, strict=True):
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1


def test_streams_of_several_tasks_keep_their_share() -> None:
    """Rows in which labels are missing by chance must not come more often because such rows are rare."""
    by_chance = Schedule((80, 8, 8), rows=16, temperature=2.0, seed=1, tasks=((0, 1), (0,), (1,)))
    assert by_chance.chances() == pytest.approx([80 / 96, 8 / 96, 8 / 96])
    apart = Schedule((81, 9), rows=16, temperature=2.0, seed=1)
    assert apart.chances() == pytest.approx([9 / 12, 3 / 12])
