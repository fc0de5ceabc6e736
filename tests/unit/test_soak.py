"""The soak benchmark compares the windows that it says, and judges by its bounds."""

from __future__ import annotations

from benchmarks.soak import Samples


def filled(*, late_mib: float = 100.0, late_wait_s: float = 0.01, dead: int = 0) -> Samples:
    """Samples of six windows of 60 s, a sample every six seconds. Before the second window everything differs."""
    samples = Samples(60.0)
    for second in range(0, 360, 6):
        late = second >= 300
        samples.memory.append((second, "worker", late_mib if late else 50.0 if second < 60 else 100.0))
        samples.waits.append((second, late_wait_s if late else 0.01))
        samples.rows.append((second, "results", 20_000, dead if second < 330 else 0))
        samples.rows.append((second, "jobs", 10, 10_000))
        samples.done.append((second, 100 * second))
    return samples


def test_a_fleet_that_stays_as_it_is_holds():
    found = filled().figures()
    assert found["memory_ratio"] == {"worker": 1.0}
    assert found["p99_ratio"] == 1.0
    assert found["dead_over_living"] == {"results": 0.0}  # and of few jobs there may be many dead rows
    assert all(found["holds"].values())


def test_growth_slowness_and_dead_rows_are_seen():
    found = filled(late_mib=106.0, late_wait_s=0.014, dead=40_000).figures()
    assert found["memory_ratio"] == {"worker": 1.06}
    assert found["p99_ratio"] == 1.4
    assert found["dead_over_living"] == {"results": 2.0}
    assert not any(found["holds"].values())


def test_a_point_is_of_half_a_window():
    points = filled().figures()["points"]
    assert [point["minute"] for point in points] == [0.5 * n for n in range(1, 13)]
    assert points[0]["memory_mib"] == {"worker": 50.0}
    assert points[0]["results_per_s"] == 100.0
