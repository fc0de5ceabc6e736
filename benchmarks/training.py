"""What do several processes, hidden communication and compressed gradients give the joint training of the text heads,
and how good is it?

Steps a second of one process and of two, which on one machine share its cores; a step's time on an imitated link on
which gradients take as long as a step computes, sent while the backward pass goes on and after it; bytes that a process
gives to collectives in a step, and accuracy on the validation part after the same steps, by compression; held-out
accuracy beside the heads on the frozen encoder. Then, for each split of a recipe's training (rows, layers, states,
stages): how far its weights are from those of one process after twelve steps, as a share of a tensor's largest value, a
step's time, and the share of the rows' bytes that each process decodes in an epoch. With ``--device cuda``, one process for each GPU: with one GPU, NCCL in
a group of one, and no second process to wait for.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import msgspec

from benchmarks import convention
from producers.wire.catalogue import Catalogue
from tests import training_checkpoints
from workers.models.sources import model_source
from workers.training import data, head_features
from workers.training.data import SEED, Split
from workers.training.joint import corpus, result
from workers.training.loop import processes, trainer
from workers.training.loop.processes import Process
from workers.training.loop.recipe import Compression, Recipe
from workers.training.loop.recipe import Split as Sharing
from workers.training.loop.trainer import LogLine, Work
from workers.training.recipes import recipe_file, training_run
from workers.training.recipes.folder_subject import TrainedFolder
from workers.training.recipes.recipe_file import RecipeFile

#: Steps that are not timed, if there are as many more: buckets are put in order, memory is taken.
WARM_UP = 3

#: Steps of a recipe's training: an epoch of its rows.
SPLIT_STEPS = 12

#: A bucket of all gradients: none goes out before the backward pass is over.
ONE_BUCKET_MB = 10_000.0


def main() -> None:
    parser = convention.parser(__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--processes", type=int, help="of the group (default: 2 on CPUs, 1 on a GPU)")
    parser.add_argument("--steps", type=int, default=1500, help="of the joint training; a tenth of them by compression")
    parser.add_argument("--rows", type=int, default=64, help="of a step")
    asked = parser.parse_args()
    steps = 3 if asked.quick else asked.steps
    recipe = Recipe(steps=steps, rows=4 if asked.quick else asked.rows, max_tokens=16 if asked.quick else 256)
    recipe = msgspec.structs.replace(recipe, precision=asked.precision, evaluate_every=min(100, steps))
    count = asked.processes or (2 if asked.device == "cpu" else 1)
    with tempfile.TemporaryDirectory(prefix="argosy-benchmark-") as folder:
        bench = Bench(Path(folder), recipe, asked.device, quick=asked.quick)
        figures = {"device": asked.device, "precision": asked.precision, "processes": count}
        figures |= bench.joint() | bench.together(count)
        if count > 1:
            figures |= bench.splits_of_a_recipe(count)
    convention.report("training", figures, keep=asked.keep, variant="" if asked.device == "cpu" else asked.device)


class Bench:
    """Trainings of the built-in tasks, measured; `recipe` is of the one that is judged."""

    def __init__(self, folder: Path, recipe: Recipe, device: str, *, quick: bool) -> None:
        self.folder, self.recipe, self.device = folder, recipe, device
        self.compressions: Sequence[Compression] = ("topk",) if quick else get_args(Compression)
        convention.progress("reading the texts")
        cache = model_source.cache_folder()
        tasks = ("sentiment", "topic") if quick else tuple(data.READERS)
        whole = {task: data.split(data.read(task, cache), seed=SEED) for task in tasks}
        self.splits = {task: _few(split) for task, split in whole.items()} if quick else whole
        self.texts = corpus.read(head_features.encoder(cache).folder, self.splits, recipe.max_tokens)

    def joint(self) -> dict[str, Any]:
        """Train to the end in one process, and judge on the test parts."""
        convention.progress("training all tasks")
        work = self._work("joint", self.recipe)
        processes.run(trainer.train, work, count=1, device=self.device)
        lines = list(trainer.read_log(work.out))
        result.write(work.out, self.texts, self.recipe)
        convention.progress("judging")
        joint = result.model(work.out, list(self.splits), self.recipe.max_tokens, self.device)
        tasks = {task: Catalogue.builtin().tasks[task] for task in self.splits}
        frozen = head_features.text_model(model_source.cache_folder(), tasks)
        cards = result.judge(joint, frozen, {task: split.test for task, split in self.splits.items()})
        return {
            "joint_steps": lines[-1].step,
            "joint_training_s": round(sum(line.seconds for line in lines), 1),
            "held_out": {task: _rounded(msgspec.structs.asdict(card)) for task, card in cards.items()},
            "alone_steps_per_s": round(1 / _step_s(lines), 3),
        }

    def together(self, count: int) -> dict[str, Any]:
        """Train in a group of processes: the plain way, on a slow link, and with each compression."""
        convention.progress(f"training in a group of {count}")
        steps = max(3, self.recipe.steps // 10)
        recipe = msgspec.structs.replace(self.recipe, steps=steps, evaluate_every=steps)
        compressed = {
            name: self._work(name, msgspec.structs.replace(recipe, compression=name)) for name in self.compressions
        }
        short = msgspec.structs.replace(recipe, steps=min(steps, 30), evaluate_every=min(steps, 30))
        group = Group(self._work("plain", short), compressed)
        processes.run(measure, group, count=count, device=self.device, group=True)
        found = {name: list(trainer.read_log(self.folder / name)) for name in ("plain", "hidden", "after", *compressed)}
        traffic = {name: _traffic(name, found[name], count) for name in compressed}
        return {**_hiding(found), "compared_steps": steps, **traffic}

    def splits_of_a_recipe(self, count: int) -> dict[str, Any]:
        """Train an epoch of a recipe's rows in one process, and by each split in a group."""
        convention.progress(f"splitting a recipe's training among {count}")
        training = training_run.prepare(self._recipe(min(16, self.recipe.rows)), resume=False)
        recipe = training_run.loop_recipe(training)
        alone = Work(corpus=training_run.subject_of(training), recipe=recipe, out=training.out)
        processes.run(trainer.train, alone, count=1, device=self.device)
        works = [replace(alone, split=name, out=self.folder / f"split-{name}") for name in get_args(Sharing)]
        processes.run(count_decoded, works, count=count, device=self.device)
        found = {work.split: _split_figures(alone, work, count) for work in works}
        return {"split_alone_step_s": round(_step_s(list(trainer.read_log(alone.out))), 4), "splits": found}

    def _recipe(self, rows: int) -> RecipeFile:
        folder = self.folder / "recipe"
        folder.mkdir()
        sizes = {"train": rows * SPLIT_STEPS // len(self.splits), "validation": 8, "test": 8}
        labels: dict[str, set[str]] = {}  # of the training rows: a recipe refuses others
        for part, size in sizes.items():
            lines = []
            for task, split in self.splits.items():
                examples = [own for own in getattr(split, part) if part == "train" or own.label in labels[task]]
                chosen = examples[:: max(1, len(examples) // size)][:size]
                labels.setdefault(task, {own.label for own in chosen})
                lines += [{"text": own.text, task: own.label} for own in chosen]
            (folder / f"{part}.jsonl").write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
        files = "".join(f'{part} = "{part}.jsonl"\n' for part in sizes)
        tasks = "".join(f'[tasks.{task}]\nkind = "classification"\nlabel = "{task}"\n' for task in self.splits)
        (folder / "recipe.toml").write_text(
            f"[train]\nrows = {rows}\nsteps = {SPLIT_STEPS}\nevaluate_every = {SPLIT_STEPS}\ntemperature = 1\n"
            f"max_tokens = {self.recipe.max_tokens}\ndropout = false\n[data]\n{files}{tasks}",
            encoding="utf-8",
        )
        return recipe_file.load(folder / "recipe.toml")

    def _work(self, name: str, recipe: Recipe) -> Work:
        return Work(corpus=self.texts, recipe=recipe, out=self.folder / name, checkpoint_every=0)


@dataclass(frozen=True, slots=True)
class Group:
    """What a group of processes trains, one after the other: their start takes longer than many a training here."""

    plain: Work
    compressed: Mapping[str, Work]


def measure(process: Process, group: Group) -> None:
    lines = trainer.train(process, group.plain)
    slow = replace(group.plain, link_bytes_per_s=lines[-1].given_bytes / _step_s(lines))
    trainer.train(process, replace(slow, out=slow.out.with_name("hidden")))
    trainer.train(process, replace(slow, out=slow.out.with_name("after"), bucket_mb=ONE_BUCKET_MB))
    for work in group.compressed.values():
        trainer.train(process, work)


def count_decoded(process: Process, works: Sequence[Work]) -> None:
    """Train one after the other; write the bytes of the rows that this process has decoded."""
    for work in works:
        assert isinstance(work.corpus, TrainedFolder)
        rows = work.corpus.parts["train"]
        before = rows.decoded_bytes
        trainer.train(process, work)
        (work.out / f"decoded-{process.rank}").write_text(str(rows.decoded_bytes - before), encoding="utf-8")


def _split_figures(alone: Work, work: Work, count: int) -> dict[str, Any]:
    assert isinstance(work.corpus, TrainedFolder)
    whole = work.corpus.parts["train"].bytes
    difference, _ = training_checkpoints.furthest(
        training_checkpoints.last(alone.out), training_checkpoints.last(work.out)
    )
    decoded = [int((work.out / f"decoded-{rank}").read_text(encoding="utf-8")) for rank in range(count)]
    return {
        "weights_differ_by": float(f"{difference:.1e}"),
        "step_s": round(_step_s(list(trainer.read_log(work.out))), 4),
        "decoded_share": [round(own / whole, 3) for own in decoded],
    }


def _hiding(found: Mapping[str, Sequence[LogLine]]) -> dict[str, float]:
    """Compare steps whose exchange takes as long as a plain step: done while the backward pass goes on, and after
    it.
    """
    plain_s, hidden_s, after_s = (_step_s(found[name]) for name in ("plain", "hidden", "after"))
    return {
        "together_steps_per_s": round(1 / plain_s, 3),
        "slow_link_hidden_step_s": round(hidden_s, 4),
        "slow_link_after_step_s": round(after_s, 4),
        "hidden_share_of_exchange": round((after_s - hidden_s) / plain_s, 3),
    }


def _traffic(name: str, lines: Sequence[LogLine], count: int) -> dict[str, float]:
    last = lines[-1]
    assert last.accuracies is not None, "the last step is evaluated"
    # what a process sends in a ring: an all-gather for `topk`, else an all-reduce
    sent = count - 1 if name == "topk" else 2 * (count - 1) / count
    return {
        "step_kb": round(last.given_bytes / 1000, 1),
        "wire_kb": round(last.given_bytes * sent / 1000, 1),
        "uncompressed_kb": round(last.uncompressed_bytes / 1000, 1),
        "step_s": round(_step_s(lines), 4),
        "validation_accuracy": round(statistics.mean(last.accuracies), 4),
    }


def _step_s(lines: Sequence[LogLine]) -> float:
    return statistics.median(line.seconds for line in lines[min(WARM_UP, len(lines) // 2) :])


def _rounded(card: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in card.items()}


def _few(split: Split) -> Split:
    """Parts are in the order of their labels: take from all over."""
    return Split(split.train[::40], split.validation[::100], split.test[::100])


if __name__ == "__main__":
    main()
