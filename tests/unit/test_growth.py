"""The simulation of larger fleets: held against what was measured, and right where the answer is known."""

from __future__ import annotations

import pytest

from benchmarks.growth import Fleet, predicted, simulate


@pytest.mark.parametrize("store", ["sqlite", "postgresql"])
def test_it_predicts_two_and_four_nodes(store: str) -> None:
    """The kept result of `benchmarks.scale`; one node gives the delay at the start and the end."""
    assert predicted(store) == pytest.approx({"1": 1.0, "2": 1.0, "4": 1.0}, abs=0.05)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "first", "seconds"),
    [
        ({}, "devices", 1000.0),
        ({"nodes": 10}, "devices", 100.0),
        ({"nodes": 100}, "store", 20.0),
        ({"nodes": 100, "submitted_per_s": 2_000.0}, "producers", 50.0),
    ],
)
def test_the_slowest_part_sets_the_time(changes: dict[str, float], first: str, seconds: float) -> None:
    known = {"nodes": 1, "node_items_per_s": 100.0, "items": 100_000, "submitted_per_s": 1e6, "stored_per_s": 5_000.0}
    outcome = simulate(Fleet(**{**known, **changes}))  # type: ignore[arg-type]
    assert outcome.first == first
    assert outcome.seconds == pytest.approx(seconds, rel=0.05)
    assert outcome.busy[first] == pytest.approx(1.0, abs=0.05)
