"""The arithmetic of benchmarks/multitask.py: which rows a share has, and which trainings are compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import convention, multitask
from benchmarks.labelled.rows import KINDS, TaskRows
from benchmarks.multitask import TOGETHER, Bench, Training


def _done(variant: str, share: float, seed: int, score: float) -> dict[str, Any]:
    training = Training(variant, share, seed)
    own = {"scores": dict.fromkeys(training.tasks, score), "rows": 1, "steps": 1, "best_step": 1, "cpu_s": 30.0}
    return {training.name: own}


def test_a_share_has_every_label_and_is_a_part_of_a_larger_share() -> None:
    """A recipe refuses test rows with a label that no training row has, and shares must differ in number alone."""
    train = [{"text": str(n), "topic": "rare" if n == 7 else "often"} for n in range(400)]
    rows = TaskRows("topic", {"train": train})
    small, large = rows.share(0.01, 5), rows.share(0.1, 5)
    assert (len(small), len(large)) == (4, 40)
    assert {row["topic"] for row in small} == {"rare", "often"}
    assert [row for row in small if row not in large] == []
    assert small != rows.share(0.01, 6)


def test_a_seed_counts_when_all_its_trainings_are__done(tmp_path: Path) -> None:
    """A run that was stopped must not compare a joint model with the twins of another seed."""

    trainings: dict[str, Any] = {}
    for seed, gain in ((1, 0.02), (2, 0.04)):
        for variant in (*TOGETHER, *KINDS):
            trainings |= _done(variant, 0.1, seed, 0.9 + gain if variant == "joint" else 0.9)
    trainings |= _done("joint", 0.1, 3, 0.5)
    figures = Bench(tmp_path, quick=False, known={"trainings": trainings}).figures()
    assert list(figures["labels"]) == ["10%"]
    tenth = figures["labels"]["10%"]
    assert tenth["seeds"] == 2
    assert tenth["points_over_twins"]["joint"] == {"mean": 3.0, "deviation": 1.41}
    assert tenth["points_over_twins"]["fusion"] == {"mean": 0.0, "deviation": 0.0}
    assert (figures["trainings_done"], figures["trainings_wanted"], figures["cpu_minutes"]) == (17, 72, 8.5)


def test_a_later_run_takes_no_training_again_unless_the_settings_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kept result is all that a later session has of an earlier one."""
    monkeypatch.setattr(convention, "RESULTS", tmp_path)
    trainings: dict[str, Any] = {}
    for training in Bench(tmp_path, quick=False, known={}).wanted:
        trainings |= _done(training.variant, training.share, training.seed, 0.9)
    convention.keep_part(multitask.NAME, Bench(tmp_path, quick=False, known={"trainings": trainings}).figures())
    again = Bench(tmp_path, quick=False, known=multitask.kept())
    assert list(again.trainings(300)) == []
    assert again.figures()["trainings"] == trainings
    file = tmp_path / "multitask.json"
    result = json.loads(file.read_text(encoding="utf-8"))
    result["figures"]["settings"]["rows"] += 1
    file.write_text(json.dumps(result), encoding="utf-8")
    assert multitask.kept() == {}
