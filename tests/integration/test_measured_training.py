"""Recipes over table rows and sensor series: trained, served in one pass, split, stopped, and refused by name."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from producers.wire.errors import ConfigurationError, InvalidInput
from tests.integration.test_recipe_training import answers, assert_close, served, trained
from tests.training_checkpoints import TOLERANCE, furthest, last
from workers.training.loop import processes, trainer, training_checkpoint
from workers.training.loop.processes import Process
from workers.training.loop.recipe import Split
from workers.training.loop.trainer import TrainingStopped, Work
from workers.training.recipes import recipe_file, training_run
from workers.training.recipes.labelled_rows import BadRows
from workers.training.recipes.training_run import TrainingCard

TABLE = """
drop = ["id"]
[tasks.size]
kind = "tabular-classification"
label = "size"
[tasks.flags]
kind = "tabular-multi-label"
label = "flags"
[tasks.price]
kind = "tabular-regression"
label = "price"
"""
SERIES = """
[tasks.pace]
kind = "time-series-classification"
label = "pace"
[tasks.form]
kind = "time-series-classification"
label = "form"
"""


def table(count: int) -> list[dict[str, Any]]:
    """Return rows with numbers, words and gaps, and labels that follow from them; some lack labels."""
    random = Random(1)
    rows = []
    for number in range(count):
        one, other, color = random.gauss(50, 10), random.gauss(0, 1), random.choice(("red", "blue", None))
        flags = [name for name, given in (("hot", color == "red"), ("up", other > 0)) if given]
        row = {"id": number, "one": one, "other": other if number % 9 else None, "color": color, "flags": flags}
        rows.append(row | {"size": ("small", "big")[one > 50] if number % 5 else None, "price": 3 * one + 9 * other})
    return rows


def series(count: int) -> list[dict[str, Any]]:
    """Return waves of one of two paces and of one of two forms, of different lengths."""
    random = Random(2)
    rows = []
    for number in range(count):
        pace, form = (0.2, 0.8)[number % 2], random.choice(("flat", "steep"))
        wave = [math.sin(step * pace) + random.gauss(0, 0.1) for step in range(random.randint(20, 30))]
        rise = [(form == "steep") * step * 0.2 for step in range(len(wave))]
        labels = {"pace": ("slow", "fast")[number % 2], "form": form if number % 4 else None}
        rows.append({"series": {"height": wave, "rise": rise}, **labels})
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("measured")
    write(path / "table.jsonl", table(200))
    write(path / "series.jsonl", series(80))
    return path


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def recipe(out: Path, rows: Path, data: str, train: str = "") -> Path:
    path = out.with_suffix(".toml")
    path.write_text(f'[train]\nout = "{out}"\nrows = 12\n{train}\n[data]\ntrain = "{rows}"\n{data}', encoding="utf-8")
    return path


FORMS = {
    "table": (TABLE, "hidden = [8]"),
    "linear": (TABLE, ""),
    "series": (SERIES, "hidden = [8]"),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_served_answers_are_those_of_the_training(folder: Path, tmp_path: Path, form: str) -> None:
    """Of all tasks, in one pass, by the folder's own settings."""
    data, train = FORMS[form]
    rows = folder / f"{form.replace('linear', 'table')}.jsonl"
    training, card = trained(recipe(tmp_path / form, rows, data, f"steps = 4\nevaluate_every = 2\n{train}"))
    subject = training_run.subject_of(training)
    network = subject.build(card.recipe)
    training_checkpoint.load_best(training.out, network)
    subject.calibrate(network)
    expected: dict[int, list[Any]] = {}
    for number, answer, _ in (one for part in training_run.answers(subject, network) for one in part):
        expected.setdefault(number, []).append(answer)
    model = served(training)
    for number, name in enumerate(training.rows.tasks):
        found = answers(model, training, name)
        assert len(found) == len(expected[number]) == card.tasks[name].test_rows
        assert_close(sorted(found, key=repr), sorted(expected[number], key=repr))
    task = next(iter(training.rows.tasks.values()))
    content = task.content(training.rows.test[0].columns, "")
    params = {name: kind.params for name, kind in training.rows.tasks.items()}
    prepared = model.prepare(content, params)
    outputs = model.forward(model.collate([prepared]), {name: np.arange(1) for name in params})
    assert set(outputs) == set(params)


def test_a_linear_model_explains_its_answers(folder: Path, tmp_path: Path) -> None:
    """A layer in between is refused by name, since its decisions do not split into columns."""
    for name, train in (("plain", ""), ("deep", "hidden = [4]")):
        training, _ = trained(recipe(tmp_path / name, folder / "table.jsonl", TABLE, f"steps = 2\n{train}"))
        model = served(training)
        content = training.rows.tasks["flags"].content(training.rows.test[0].columns, "")
        params = {name: model.spec.tasks[name].kind.params() for name in ("size", "flags")}
        params = {name: type(own)(top_k=None, explain=True) for name, own in params.items()}  # type: ignore[call-arg]
        prepared = model.prepare(content, params)
        if name == "deep":
            assert "hidden layers" in str(prepared.refused["size"])
            continue
        outputs = model.forward(model.collate([prepared]), {task: np.arange(1) for task in params})
        for task, own in params.items():
            for label in model.finish(model.spec.tasks[task], outputs[task][0], own, prepared):
                why, score = label["explanation"], label["score"]
                assert why.base + sum(part.contribution for part in why.columns) == pytest.approx(why.value, abs=1e-5)
                assert why.value == pytest.approx(math.log(score / (1 - score)), abs=1e-3)


@pytest.mark.parametrize(
    ("data", "train", "problem"),
    [
        (TABLE, 'backbone = "vision"', "train.backbone: is of other kinds than these tasks; take it out"),
        (TABLE, 'sharing = "lora"', "train.sharing: is of other kinds"),
        (TABLE, "max_tokens = 5", "train.max_tokens: is of other kinds"),
        (TABLE, "hidden = [0]", "train.hidden"),
        (SERIES, "hidden = [8, 8]", "train.hidden: a series has one layer, not 2"),
        (TABLE.replace('"id"', '"key"'), "", "data.drop: no training row has a column 'key'"),
        (TABLE.replace('label = "size"', 'label = "size"\nhead = "attention"'), "", "it can be linear"),
        (TABLE.replace('label = "size"', 'label = "size"\ninput = "age"'), "", "tasks.size has its input columns by name"),
        ('[tasks.a]\nkind = "tabular-regression"\nlabel = "price"\ninput = ["age"]', "", "no training row has a column 'age'"),
        (
            TABLE.replace('drop = ["id"]', "").replace('label = "size"', 'label = "size"\ninput = ["one"]'),
            "",
            "tasks.flags.input: flags and size read different columns, such as 'color'; name the same, or make two",
        ),
        ('[tasks.a]\nkind = "classification"\nlabel = "size"', "hidden = [8]", "train.hidden: is of other kinds"),
        (f'{TABLE}[tasks.text]\nkind = "regression"', "", "cannot share a backbone"),
    ],
)  # fmt: skip
def test_a_wrong_recipe_is_named(folder: Path, tmp_path: Path, data: str, train: str, problem: str) -> None:
    with pytest.raises((ConfigurationError, InvalidInput), match=problem.replace("[", r"\[")):
        training_run.prepare(
            recipe_file.load(recipe(tmp_path / "a", folder / "table.jsonl", data, train)), resume=False
        )


@pytest.mark.parametrize("split", ["layers", "stages"])
@pytest.mark.parametrize("form", ["table", "series"])
def test_a_split_that_torch_does_not_make_is_refused(folder: Path, tmp_path: Path, split: Split, form: str) -> None:
    """Before the rows are read."""
    path = recipe_file.load(recipe(tmp_path / "a", folder / "no rows", FORMS[form][0]))
    with pytest.raises(ConfigurationError, match=f"split: {split} of .* cannot be cut, .*; use rows or states"):
        training_run.prepare(path, resume=False, process=Process(0, 2), split=split)


@pytest.mark.parametrize(
    ("form", "change", "problem"),
    [
        ("table", {"one": "many"}, "rows.jsonl:5: one: is 'many', in a column of numbers"),
        ("table", {"one": [1.0]}, r"rows.jsonl:5: one: is '\[1.0\]', in a column of numbers"),
        ("table", {"color": ["red"]}, r"rows.jsonl:5: color: is \['red'\], in a column of words"),
        ("table", {"price": "dear"}, "rows.jsonl:5: price: is 'dear', not a number"),
        ("series", {"series": {"height": [1.0, 2.0]}}, "rows.jsonl:5: input.rise: is missing"),
        ("series", {"series": {"height": [1.0], "rise": [1.0, 2.0]}}, "rows.jsonl:5: series.rise: has 2 values"),
        ("series", {"series": {"height": [None] * 9 + [1.0] * 9, "rise": [1.0] * 18}}, "rows.jsonl:5: .* lacks 9 of 18"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named(tmp_path: Path, form: str, change: dict[str, Any], problem: str) -> None:
    """By file, line and field, before the training."""
    rows = {"table": table, "series": series}[form](80)
    rows[4].update(change)
    write(tmp_path / "rows.jsonl", rows)
    training = training_run.prepare
    with pytest.raises((BadRows, ConfigurationError, InvalidInput), match=problem):
        training_run.subject_of(
            training(recipe_file.load(recipe(tmp_path / "a", tmp_path / "rows.jsonl", FORMS[form][0])), resume=False)
        )


def test_cells_of_a_csv_are_numbers_and_words(tmp_path: Path) -> None:
    """As `argosy submit` reads them, with gaps; words of a single part are unknown there."""
    lines = ["age;plan;churn", *(f"{'NA' if n % 7 == 0 else n % 9};{'abc'[n % 3]};{'yn'[n % 2]}" for n in range(60))]
    (tmp_path / "rows.csv").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "test.csv").write_text("age;plan;churn\n1;new;y\n2;a;n\n", encoding="utf-8")
    data = f'test = "{tmp_path}/test.csv"\n[tasks.churn]\nkind = "tabular-classification"\nlabel = "churn"'
    training, card = trained(recipe(tmp_path / "a", tmp_path / "rows.csv", data, "steps = 2"))
    columns = {"age": {"type": ["number", "null"]}, "plan": {"enum": ["a", "b", "c", None]}}
    assert served(training).declared_schemas()["input"]["properties"] == columns
    assert card.tasks["churn"].test_rows == 2


def _work(folder: Path, out: Path, form: str) -> Work:
    data, train = FORMS[form]
    path = recipe(out, folder / f"{form}.jsonl", data, f"steps = 12\nevaluate_every = 6\ndropout = false\n{train}")
    training = training_run.prepare(recipe_file.load(path), resume=False)
    corpus = training_run.subject_of(training)
    return Work(corpus=corpus, recipe=training_run.loop_recipe(training), out=out, checkpoint_every=6)


def _all(process: Process, works: Sequence[Work]) -> None:
    for work in works:
        trainer.train(process, work)


@pytest.mark.training
def test_two_processes_come_to_what_one_comes_to(folder: Path, tmp_path: Path) -> None:
    """By rows and by states, and after a stop."""
    alone = {form: _work(folder, tmp_path / form, form) for form in ("table", "series")}
    for work in alone.values():
        trainer.train(Process(), work)
    splits: tuple[Split, ...] = ("rows", "states")
    together = [
        replace(work, out=tmp_path / f"{form}-{split}", split=split) for form, work in alone.items() for split in splits
    ]
    halfway = [replace(work, out=tmp_path / f"{form}-halfway") for form, work in alone.items()]
    for work in halfway:
        _ = next(line for line in trainer.steps(Process(), work) if line.step == 6)
    processes.run(_all, [*together, *halfway], count=2, device="cpu")
    for work in (*together, *halfway):
        one = alone[work.out.name.partition("-")[0]]
        assert furthest(last(one.out), last(work.out))[0] < TOLERANCE, work.out.name


@pytest.mark.training
@pytest.mark.parametrize("form", FORMS)
def test_every_kind_learns(folder: Path, tmp_path: Path, form: str) -> None:
    data, train = FORMS[form]
    rows = folder / f"{form.replace('linear', 'table')}.jsonl"
    _, card = trained(recipe(tmp_path / form, rows, data, f"steps = 250\nevaluate_every = 50\n{train}"))
    assert min(training_run.main(task) for task in card.tasks.values()) > 0.8, card.tasks


@pytest.mark.parametrize("step", [4, 6])
def test_a_training_that_stops_before_an_evaluation_makes_it_when_it_goes_on(
    folder: Path, tmp_path: Path, step: int
) -> None:
    """Between two steps and after the last one: all evaluations and scores are those of a training in one piece."""
    wanted = "steps = 6\nevaluate_every = 2\nhidden = [8]"
    whole, card = trained(recipe(tmp_path / "whole", folder / "table.jsonl", TABLE, wanted))
    path = recipe(tmp_path / "stopped", folder / "table.jsonl", TABLE, wanted)
    shown: list[int] = []

    def run(stopping: Callable[[], bool]) -> TrainingCard:
        training = training_run.prepare(recipe_file.load(path), resume=True)
        return training_run.run(training, lambda line, _: shown.append(line.step), stopping)

    with pytest.raises(TrainingStopped):
        run(lambda: shown[-1:] == [step - 1])
    out = path.with_suffix("")
    *_, stopped = trainer.read_log(out)
    saved = training_checkpoint.read(out)
    assert saved
    assert saved.progress.owes_evaluation
    assert (saved.progress.step, stopped.step, stopped.accuracies) == (step, step, None)
    assert run(lambda: False).tasks == card.tasks
    assert shown == [*range(1, 7)]
    evaluations = [[line.accuracies for line in trainer.read_log(one)] for one in (out, whole.out)]
    assert evaluations[0] == evaluations[1]
    saved = training_checkpoint.read(out)
    assert saved
    assert not saved.progress.owes_evaluation


def test_the_first_evaluation_is_the_best_so_far(folder: Path, tmp_path: Path) -> None:
    """However bad it is: its weights are there when the training ends."""
    rows = [{"x": n % 7, "far": 1e-3 * (n % 3) if n < 60 else 1e3} for n in range(80)]
    write(tmp_path / "train.jsonl", rows[:60])
    write(tmp_path / "other.jsonl", rows[60:])
    parts = f'validation = "{tmp_path}/other.jsonl"\ntest = "{tmp_path}/other.jsonl"'
    data = f'{parts}\n[tasks.far]\nkind = "tabular-regression"\nlabel = "far"'
    training, card = trained(recipe(tmp_path / "a", tmp_path / "train.jsonl", data, "steps = 2\nevaluate_every = 1"))
    [first, _] = [line.accuracies for line in trainer.read_log(training.out)]
    assert first is not None
    assert first[0] < -1e9
    assert card.best_step
