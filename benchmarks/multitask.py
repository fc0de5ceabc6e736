"""Is a model of five tasks as accurate as five models of a task each, and how much less does it cost to serve?

Sentiment, rating, topic, spam and entities are trained by recipes of `argosy train`: together on one backbone, together
with fusion, each alone (the twins), and together on the frozen backbone, with all labels, a tenth and a hundredth of
them, from several seeds. A seed decides which rows are kept, and the training's random numbers. All learn from the same
rows for the same number of epochs, at least `LEAST_STEPS` for each task: a model of all tasks takes as many steps as
its twins together. The validation part, which chooses the best of four evaluations, is the same for all shares.

The run is resumable: `--keep` writes each training's scores into the result, and a later run takes only those that it
has not. A training that was killed goes on from its checkpoint in `--work`.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import torch

from benchmarks import convention
from benchmarks.labelled import rows as labelled
from benchmarks.labelled.rows import KINDS, TaskRows
from workers import settings
from workers.batching.serving import served_models
from workers.models.interface.sample_inputs import usual_params
from workers.training.agreement import Trial, answered
from workers.training.recipes import recipe_file, training_run
from workers.training.recipes.recipe_file import RecipeFile
from workers.training.training_batches import all_of, by_size

NAME = "multitask"

SEEDS = (1, 2, 3)

#: The shares of the labels, and the epochs over them: few rows are learnt more often.
EPOCHS = {0.01: 20.0, 0.1: 6.0, 1.0: 1.5}

#: The fewest steps for each task: a twin with few rows would end before it has learnt.
LEAST_STEPS = 100

#: The settings of all trainings that differ from the defaults of `argosy train`.
TRAIN = {"max_tokens": 48, "precision": "bf16"}

#: The tasks that see each other's scores in the variant with fusion: those with an attention of their own.
FUSED = ("sentiment", "rating", "topic", "spam")

#: The trainings of a share and a seed: all tasks in three variants, and a twin of each task.
TOGETHER = ("joint", "fusion", "frozen")

#: The rows of a step, and the evaluations of a training, the best of which is kept.
ROWS, EVALUATIONS = 32, 4

#: The texts that measure the cost of serving, and the padded tokens of a batch.
SERVED, BATCH_COST, TURNS = 200, 1024, 3


@dataclass(frozen=True, slots=True)
class Training:
    """A training: a variant of all tasks, or the twin of one, with a share of the labels and a seed."""

    variant: str
    share: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.variant}-{self.share:g}-{self.seed}"

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(KINDS) if self.variant in TOGETHER else (self.variant,)


def main() -> None:
    parser = convention.parser(__doc__)
    parser.add_argument("--work", type=Path, help="folder of the trainings, so that a killed one goes on")
    parser.add_argument("--minutes", type=float, default=300, help="of the processor, after which no training begins")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="argosy-benchmark-") as folder:
        known = kept() if asked.keep else {}
        bench = Bench(asked.work or Path(folder), quick=asked.quick, known=known)
        for _ in bench.trainings(asked.minutes):
            if asked.keep:
                convention.keep_part(NAME, bench.figures())
        convention.report(NAME, bench.figures(), keep=asked.keep)


class Bench:
    """The trainings, their folders in `work`, and the figures so far. `known` are figures of an earlier run."""

    def __init__(self, work: Path, *, quick: bool, known: Mapping[str, Any]) -> None:
        self._work, self._quick = work, quick
        self._done: dict[str, dict[str, Any]] = dict(known.get("trainings", {}))
        self._serving: dict[str, float] = dict(known.get("serving", {}))
        self._rows: dict[str, TaskRows] = {}

    @property
    def wanted(self) -> list[Training]:
        """All trainings, seed by seed, so that a part of a run has whole comparisons."""
        seeds, shares = ((1,), (1.0,)) if self._quick else (SEEDS, tuple(EPOCHS))
        return [
            Training(variant, share, seed) for seed in seeds for share, variant in product(shares, (*TOGETHER, *KINDS))
        ]

    def trainings(self, minutes: float) -> Iterator[str]:
        """Run those that are not done, and yield the name of each when it is."""
        missing = [training for training in self.wanted if training.name not in self._done]
        if missing:
            convention.progress("reading the texts")
            self._rows = labelled.read(quick=self._quick)
        for training in missing:
            if sum(own["cpu_s"] for own in self._done.values()) >= 60 * minutes:
                convention.progress(f"{minutes:g} minutes are over")
                return
            self._done[training.name] = found = self._run(training)
            convention.progress(f"{training.name}: {found}")
            self._end_comparison(training)
            yield training.name

    def teacher(self) -> RecipeFile:
        """Return the recipe of the joint training with all labels, after it is trained. Its folder serves."""
        training = Training("joint", 1.0, SEEDS[0])
        self._rows = labelled.read(quick=self._quick)
        recipe = recipe_file.load(self._recipe(training))
        if not (recipe.out / training_run.CARD).is_file():
            convention.progress("training the teacher")
            training_run.run(training_run.prepare(recipe, resume=True), lambda *_: None)
        return recipe

    def _run(self, training: Training) -> dict[str, Any]:
        recipe = recipe_file.load(self._recipe(training))
        began = time.process_time()
        card = training_run.run(training_run.prepare(recipe, resume=True), lambda *_: None)
        return {
            "scores": {task: round(training_run.main(own), 4) for task, own in card.tasks.items()},
            "rows": sum(own.train_rows for own in card.tasks.values()),
            "steps": card.steps,
            "best_step": card.best_step,
            "cpu_s": round(time.process_time() - began, 1),
        }

    def _recipe(self, training: Training) -> Path:
        """Write the rows and the recipe of a training; return the recipe's path."""
        folder = self._work / "rows" / f"{training.share:g}-{training.seed}"
        files: dict[str, list[str]] = {part: [] for part in labelled.PARTS}
        steps = 0
        for task in training.tasks:
            parts = {**self._rows[task].parts, "train": self._rows[task].share(training.share, training.seed)}
            steps += 2 if self._quick else max(LEAST_STEPS, round(EPOCHS[training.share] * len(parts["train"]) / ROWS))
            for part, rows in parts.items():
                files[part].append(str(labelled.write(folder / f"{task}-{part}.jsonl", rows)))
        path = self._work / f"{training.name}.toml"
        path.write_text("\n".join(_tables(training, steps, files)) + "\n", encoding="utf-8")
        return path

    def _end_comparison(self, training: Training) -> None:
        """Once all variants of a share and a seed are trained: measure their serving, and remove their folders."""
        own = {one.variant: one for one in self.wanted if (one.share, one.seed) == (training.share, training.seed)}
        if any(one.name not in self._done for one in own.values()):
            return
        folders = {variant: self._work / one.name for variant, one in own.items()}
        texts = [row["text"] for rows in self._rows.values() for row in rows.parts["test"]]
        if not self._serving and all((folders[variant] / "fleet.toml").is_file() for variant in ("joint", *KINDS)):
            twins = [folders[task] for task in KINDS]
            self._serving = serving_cost(folders["joint"], twins, Random(0).sample(texts, min(SERVED, len(texts))))
        for variant, folder in folders.items():
            if (variant, training.share, training.seed) != ("joint", 1.0, SEEDS[0]):  # benchmarks/compress.py's teacher
                shutil.rmtree(folder, ignore_errors=True)

    def figures(self) -> dict[str, Any]:
        by_share = {f"{share:.0%}": found for share in EPOCHS if (found := self._share_figures(share))}
        return {
            "settings": _settings(),
            "trainings_done": len(self._done),
            "trainings_wanted": len(self.wanted),
            "cpu_minutes": round(sum(own["cpu_s"] for own in self._done.values()) / 60, 1),
            "labels": by_share,
            "serving": self._serving,
            "trainings": self._done,
        }

    def _share_figures(self, share: float) -> dict[str, Any]:
        """Return means over the seeds whose trainings are all done: of each task's score, and of points over the twins."""
        seeds = [scores for seed in SEEDS if (scores := self._scores(share, seed))]
        if not seeds:
            return {}
        variants = ("twins", *TOGETHER)
        points: dict[str, list[float]] = {
            variant: [100 * statistics.mean(own[variant].values()) for own in seeds] for variant in variants
        }
        over = {variant: [a - b for a, b in zip(points[variant], points["twins"], strict=True)] for variant in TOGETHER}
        return {
            "seeds": len(seeds),
            "scores": {
                variant: {task: round(statistics.mean(own[variant][task] for own in seeds), 4) for task in KINDS}
                for variant in variants
            },
            "mean_points": {variant: _spread(own) for variant, own in points.items()},
            "points_over_twins": {variant: _spread(own) for variant, own in over.items()},
        }

    def _scores(self, share: float, seed: int) -> dict[str, dict[str, float]]:
        """Return each task's score by variant, or nothing if a training is missing."""
        found = {
            variant: self._done.get(Training(variant, share, seed).name, {}).get("scores", {})
            for variant in (*TOGETHER, *KINDS)
        }
        if not all(found.values()):
            return {}
        return {"twins": {task: found[task][task] for task in KINDS}, **{name: found[name] for name in TOGETHER}}


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Return mean and standard deviation over the seeds."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": round(statistics.mean(values), 2), "deviation": round(deviation, 2)}


def serving_cost(joint: Path, twins: Sequence[Path], texts: Sequence[str]) -> dict[str, float]:
    """Return the processor's time for all tasks of a text, by one model and by its twins, in turns, on one thread."""
    convention.progress("serving")
    groups = {"joint": [_Served(joint, texts)], "twins": [_Served(folder, texts) for folder in twins]}
    seconds: dict[str, list[float]] = {name: [] for name in groups}
    for number in range(1 + TURNS):
        for name, models in groups.items():
            began = time.process_time()
            for model in models:
                model.turn()
            if number:
                seconds[name].append(time.process_time() - began)
    cpu_ms = {name: 1000 * statistics.median(own) / len(texts) for name, own in seconds.items()}
    return {
        "texts": len(texts),
        "joint_passes_per_text": len(groups["joint"]),
        "twins_passes_per_text": len(groups["twins"]),
        "joint_cpu_ms_per_text": round(cpu_ms["joint"], 3),
        "twins_cpu_ms_per_text": round(cpu_ms["twins"], 3),
        "joint_share_of_twins": round(cpu_ms["joint"] / cpu_ms["twins"], 3),
    }


class _Served:
    """A trained folder, loaded as in a worker, with texts that all its tasks read."""

    def __init__(self, folder: Path, texts: Sequence[str]) -> None:
        self._model = served_models.model_to_load(settings.load(folder / "fleet.toml"), folder.name).build()
        self._model.load("cpu")
        tasks = self._model.spec.tasks
        params = {name: usual_params(task) for name, task in tasks.items()}
        rows = all_of(self._model.prepare_many(texts, [params] * len(texts)))
        trials = [Trial((text, params), row) for text, row in zip(texts, rows, strict=True)]
        self._batches = [[trials[n] for n in own] for own in by_size([row.size for row in rows], BATCH_COST)]

    def turn(self) -> None:
        answered(self._model, self._batches)


def _tables(training: Training, steps: int, files: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a recipe."""
    yield "[train]"
    yield from _lines({**TRAIN, "seed": training.seed, "rows": ROWS, "steps": steps})
    part = max(1, steps // EVALUATIONS)
    yield from _lines({"evaluate_every": part, "checkpoint_every": part})
    yield from _lines({"sharing": "frozen" if training.variant == "frozen" else "full"})
    yield "[data]"
    yield from _lines(files)
    for task in training.tasks:
        others = [other for other in FUSED if other != task]
        fusion = others if training.variant == "fusion" and task in FUSED else []
        yield f"[tasks.{task}]"
        yield from _lines({"kind": KINDS[task], "label": task, "fusion": fusion})


def _lines(table: Mapping[str, Any]) -> list[str]:
    return [f"{name} = {json.dumps(value)}" for name, value in table.items()]


def _settings() -> dict[str, Any]:
    """Return all that the scores depend on, apart from the code."""
    epochs = {f"{share:.0%}": epochs for share, epochs in EPOCHS.items()}
    counts = {task: list(own) for task, own in labelled.COUNTS.items()}
    return {
        **TRAIN,
        "chars": labelled.CHARS,
        "rows": ROWS,
        "least_steps": LEAST_STEPS,
        "evaluations": EVALUATIONS,
        "epochs": epochs,
        "counts": counts,
    }


def kept() -> Mapping[str, Any]:
    """Return the figures of the kept result, unless its trainings had other settings."""
    path = convention.RESULTS / f"{NAME}.json"
    figures: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))["figures"] if path.is_file() else {}
    if figures and figures["settings"] != _settings():
        convention.progress(f"{path.name} has other settings; all trainings begin again")
        return {}
    return figures


if __name__ == "__main__":
    main()
