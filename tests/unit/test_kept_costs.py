"""Learned costs from one run to the next."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from workers.batching.planning.cost_model import BatchShape, CostModel
from workers.batching.saved_costs import SavedCosts

SHAPE = BatchShape(100, 4, 4)


def taught(seconds: float = 0.2) -> CostModel:
    costs = CostModel()
    for _ in range(10):
        costs.observe("text", SHAPE, seconds)
    return costs


def kept(folder: Path, revision: str = "r1", circumstances: str = "2 threads") -> SavedCosts:
    return SavedCosts(folder / "costs" / "cpu.json", {"text": revision}, circumstances)


def test_a_run_begins_with_what_the_last_one_knew(tmp_path: Path) -> None:
    """The folder is made; nothing but the file stays in it."""
    kept(tmp_path).write(taught())
    assert kept(tmp_path).read().seconds("text", SHAPE) == taught().seconds("text", SHAPE)
    assert [path.name for path in (tmp_path / "costs").iterdir()] == ["cpu.json"]


def test_other_circumstances_are_learned_anew(tmp_path: Path) -> None:
    """Another revision, backend or number of threads takes another time, and does not overwrite what is known."""
    kept(tmp_path).write(taught())
    assert kept(tmp_path, revision="r2").read().seconds("text", SHAPE) is None
    kept(tmp_path, circumstances="1 threads").write(taught(9.0))
    assert kept(tmp_path).read().seconds("text", SHAPE) == pytest.approx(0.2)


@pytest.mark.parametrize(
    "content", ["", "{", "[1]", '{"text@r1 on 2 threads": 3}', '{"text@r1 on 2 threads": {"n": 9}}']
)
def test_garbage_is_as_if_nothing_was_learned(tmp_path: Path, content: str) -> None:
    """A worker must not fail to start for a cache; and the next write mends it."""
    (tmp_path / "costs").mkdir()
    (tmp_path / "costs" / "cpu.json").write_text(content, encoding="utf-8")
    assert kept(tmp_path).read().seconds("text", SHAPE) is None
    kept(tmp_path).write(taught())
    assert kept(tmp_path).read().seconds("text", SHAPE) == pytest.approx(0.2)


def test_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    """Python writes NaN into JSON; a prediction of NaN would stop every batch."""
    kept(tmp_path).write(taught())
    file = tmp_path / "costs" / "cpu.json"
    broken = json.loads(file.read_text(encoding="utf-8"))
    broken["text@r1 on 2 threads"]["targets"][0] = float("nan")
    file.write_text(json.dumps(broken), encoding="utf-8")
    assert kept(tmp_path).read().seconds("text", SHAPE) is None


def test_a_folder_that_cannot_be_written_is_only_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Stopping a worker must not fail for it either."""
    (tmp_path / "costs").write_text("a file where the folder should be", encoding="utf-8")
    kept(tmp_path).write(taught())
    assert "not kept" in caplog.text
