"""The arithmetic of benchmarks/multitask.py: which rows a share has, and which trainings are compared."""

from __future__ import annotations

from pathlib import Path

from benchmarks.labelled.rows import KINDS, TaskRows
from benchmarks.multitask import TOGETHER, Bench, Training


def test_a_share_has_every_label_and_is_a_part_of_a_larger_share() -> None:
    """A recipe refuses test rows with a label that no training row has, and shares must differ in number alone."""
    train = [{"text": str(n), "topic": "rare" if n == 7 else "often"} for n in range(400)]
    rows = TaskRows("topic", {"train": train})
    small, large = rows.share(0.01, 5), rows.share(0.1, 5)
    assert (len(small), len(large)) == (4, 40)
    assert {row["topic"] for row in small} == {"rare", "often"}
    assert [row for row in small if row not in large] == []
    assert small != rows.share(0.01, 6)


def test_a_seed_counts_when_all_its_trainings_are_done(tmp_path: Path) -> None:
    """A run that was stopped must not compare a joint model with the twins of another seed."""

    def done(variant: str, share: float, seed: int, score: float) -> dict[str, object]:
        training = Training(variant, share, seed)
        own = {"scores": dict.fromkeys(training.tasks, score), "rows": 1, "steps": 1, "best_step": 1, "cpu_s": 30.0}
        return {training.name: own}

    trainings: dict[str, object] = {}
    for seed, gain in ((1, 0.02), (2, 0.04)):
        for variant in (*TOGETHER, *KINDS):
            trainings |= done(variant, 0.1, seed, 0.9 + gain if variant == "joint" else 0.9)
    trainings |= done("joint", 0.1, 3, 0.5)
    figures = Bench(tmp_path, quick=False, known={"trainings": trainings}).figures()
    assert list(figures["labels"]) == ["10%"]
    tenth = figures["labels"]["10%"]
    assert tenth["seeds"] == 2
    assert tenth["points_over_twins"]["joint"] == {"mean": 3.0, "deviation": 1.41}
    assert tenth["points_over_twins"]["fusion"] == {"mean": 0.0, "deviation": 0.0}
    assert (figures["trainings_done"], figures["trainings_wanted"], figures["cpu_minutes"]) == (17, 72, 8.5)
