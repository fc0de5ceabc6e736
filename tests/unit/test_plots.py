"""Pictures of kept results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.plots.drawing import DRAWINGS, draw_all

ROOT = Path(__file__).parents[2]

FIGURES: dict[str, dict[str, Any]] = {
    "bulk": {
        "fleet_over_offline": 0.95,
        "fleet_over_naive": 4.2,
        "fleet_items_per_s": 131.0,
        "offline_items_per_s": 138.0,
        "naive_items_per_s": 31.0,
    },
    "heads": {"four_over_one": 1.07, "one_task_items_per_s": 150.0, "four_tasks_items_per_s": 140.0},
    "interactive": {
        "p99_ratio": 2.0,
        "idle_p50_ms": 10.0,
        "idle_p99_ms": 40.0,
        "loaded_p50_ms": 20.0,
        "loaded_p99_ms": 80.0,
    },
    "padding": {"waste": 0.03, "waste_in_order_of_arrival": 0.45, "waste_sorted_offline": 0.01},
    "overhead": {"items_per_s": 15000, "celery_tasks_per_s": 850, "over_celery": 17.6},
    "backends": {"best": "fast", "best_over_eager": 1.6, "items_per_s": {"torch-fp32": 100.0, "fast": 160.0}},
    "soak": {
        "memory_ratio": {"worker-cpu": 1.02},
        "p99_first_ms": 40.0,
        "p99_ratio": 1.1,
        "points": [{"minute": 5.0 * n, "memory_mib": {"worker-cpu": 100.0 + n}, "p99_ms": 40.0} for n in range(1, 13)],
    },
    "fairness": {"bulk_share": 0.22, "guaranteed": 0.2, "share_by_tenth": [0.2] * 10},
}


def keep(folder: Path, name: str) -> None:
    result = {
        "benchmark": name,
        "figures": FIGURES[name],
        "machine": {"cpu": "a processor", "cores": 2},
        "versions": {"commit": "0123456789ab"},
        "date": "2026-11-22T04:00:00+00:00",
    }
    (folder / f"{name}.json").write_text(json.dumps(result), encoding="utf-8")


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_kept_result_becomes_a_picture(name: str, tmp_path: Path) -> None:
    """Its numbers are text in it, with where they come from; drawn again, it is the same file."""
    keep(tmp_path, name)
    (drawn,) = draw_all(tmp_path, tmp_path / "plots")
    first = drawn.read_bytes()
    assert drawn.name == f"{name}.svg"
    for said in ("a processor, 2 cores", "0123456789ab", "2026-11-22"):
        assert said in first.decode()
    assert list(draw_all(tmp_path, tmp_path / "plots")) == [drawn]
    assert drawn.read_bytes() == first


def test_what_was_not_measured_is_not_drawn(tmp_path: Path) -> None:
    """An empty picture would look like a result."""
    keep(tmp_path, "heads")
    assert [path.name for path in draw_all(tmp_path, tmp_path)] == ["heads.svg"]


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "plots").glob("*.svg")), ids=lambda path: path.stem)
def test_a_picture_is_of_the_result_that_is_kept(path: Path) -> None:
    """`make plots` after `--keep`: a picture of older figures would contradict the text beside it."""
    result = json.loads((ROOT / "benchmarks" / "results" / f"{path.stem}.json").read_text(encoding="utf-8"))
    drawn = path.read_text(encoding="utf-8")
    assert result["versions"]["commit"] in drawn
    assert result["date"][:10] in drawn
