"""The threshold of a cascade: chosen on half of the rows, judged on the other half."""

from __future__ import annotations

import math
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers.client.request import NewItem
from producers.edge.calibrating import Row, _batches, as_toml
from producers.edge.thresholds import Judged, Unreachable, calibrate, judged_by, points
from producers.wire.catalogue import Catalogue
from producers.wire.edge.edge_settings import EdgeTask

ROWS = st.lists(
    st.builds(Judged, st.sampled_from([n / 20 for n in range(21)]), st.booleans(), st.booleans()),
    min_size=20,
    max_size=60,
)


@given(ROWS)
def test_each_point_is_true_of_its_threshold(rows: list[Judged]) -> None:
    """The running sums say the same as judging every row anew."""
    for point in points(rows):
        again = judged_by(point.threshold, rows)
        assert (again.share, again.accuracy) == pytest.approx((point.share, point.accuracy))


@given(ROWS, st.floats(0, 1))
def test_no_threshold_is_better_than_the_chosen_one(rows: list[Judged], wanted: float) -> None:
    """For a wanted share it is the most accurate, for a wanted accuracy it sends on least."""
    half = points(rows[::2])
    chosen = calibrate(rows, share=wanted).chosen
    assert chosen.share <= wanted
    assert chosen.accuracy == max(point.accuracy for point in half if point.share <= wanted)

    reaching = [point.share for point in half if point.accuracy >= wanted]
    if not reaching:
        with pytest.raises(Unreachable, match="the best is"):
            calibrate(rows, accuracy=wanted)
    else:
        assert calibrate(rows, accuracy=wanted).chosen.share == min(reaching)


def test_it_is_judged_on_rows_that_did_not_choose_it() -> None:
    """The first half has a site that is right when it is sure; in the second it is always wrong."""
    rows = [row for n in range(20) for row in (Judged(n / 20, n >= 10, True), Judged(n / 20, False, True))]
    found = calibrate(rows, accuracy=1.0)
    assert (found.chosen.accuracy, found.chosen.share) == (1.0, 0.5)
    assert (found.held_out.accuracy, found.site_alone, found.centre_alone) == (0.5, 0.0, 1.0)


def test_few_rows_are_refused() -> None:
    """A threshold from a handful of rows would be chance."""
    with pytest.raises(Unreachable, match="too few"):
        calibrate([Judged(0.5, True, True)] * 5, share=0.5)


@pytest.mark.parametrize(("rows", "size", "expected"), [(100, 10, [64, 36]), (3, 600_000, [1, 1, 1])])
def test_rows_are_sent_in_batches_of_bounded_bytes(rows: int, size: int, expected: list[int]) -> None:
    """As many as an escalation sends: the centre refuses larger bodies."""
    given = [Row(NewItem(b"x" * size), None)] * rows
    batches = _batches(given, "image-classification", EdgeTask(), Catalogue.builtin())
    assert [len(batch) for batch in batches] == expected


def test_the_lines_for_the_file_are_toml() -> None:
    """A task's name may have signs that TOML quotes."""
    assert as_toml("a.b", 0.875) == '[edge.tasks."a.b"]\nthreshold = 0.875'


@given(st.floats(0, 1))
def test_the_printed_threshold_is_the_one_that_was_judged(score: float) -> None:
    """One just over a score, which is to send on the items of this score, is no lower when it is read."""
    threshold = math.nextafter(score, 1)
    assert tomllib.loads(as_toml("spam", threshold))["edge"]["tasks"]["spam"]["threshold"] == threshold
