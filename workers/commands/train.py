"""`argosy train`: train a model on labelled rows, for the fleet to serve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from producers.wire.command_line import console, one_line_errors, say
from workers.commands.shared_options import naming_bad_rows

if TYPE_CHECKING:
    from rich.progress import Progress
    from rich.table import Table

    from workers.training.loop.processes import Process
    from workers.training.loop.recipe import Split
    from workers.training.loop.trainer import LogLine
    from workers.training.recipes.recipe_file import RecipeFile
    from workers.training.recipes.training_run import RecipeTraining, TrainingCard


@dataclass(frozen=True, slots=True)
class _TrainingOptions:
    """The command's options, as its processes get them."""

    recipe: RecipeFile
    resume: bool
    compare: bool
    split: Split


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint of a training that was stopped.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Train on it.")
@click.option("--processes", type=click.IntRange(1), default=1, show_default=True, help="Train together, here.")
@click.option(
    "--split",
    type=click.Choice(["rows", "layers", "states", "stages"]),
    default="rows",
    show_default=True,
    help="Share out among processes: rows of a step (DDP), matrices of layers (tensor parallel), weights and their "
    "states (FSDP), or stages of layers (pipeline).",
)
@click.option("--compare", is_flag=True, help="Also train each task alone, and all on the frozen backbone.")
@click.option(
    "--submit", "submitted", is_flag=True, help="Let the running fleet train it, while it has nothing else to do."
)
def train(
    recipe: Path, *, resume: bool, device: str, processes: int, split: Split, compare: bool, submitted: bool
) -> None:
    """Train the tasks of RECIPE, a TOML file, on one shared backbone.

    \b
    All rows are read and checked first; bad rows are named by file, line and field. The
    result is a folder with fleet.toml, which a worker serves as it is. See docs/training.md.

    \b
        argosy train reviews.toml
        ARGOSY_FLEET=reviews/fleet.toml argosy up
        argosy train reviews.toml --submit
        argosy train reviews.toml --processes 2 --split states
        torchrun --nproc-per-node 4 --no-python argosy train reviews.toml --device cuda
    """
    from workers.training.loop import processes as training_processes
    from workers.training.recipes import recipe_file

    resume = resume or training_processes.restarted()
    asked = _TrainingOptions(recipe_file.load(recipe), resume, compare, split)
    if submitted:
        if processes > 1 or device != "cpu" or split != "rows" or training_processes.launched_by_torchrun():
            raise click.UsageError("--submit: a node trains in one process on its own device; leave the others out")
        _submit(asked)
    else:
        training_processes.run(_take_part, asked, count=processes, device=device)


def _take_part(process: Process, asked: _TrainingOptions) -> None:
    """Train as the first process, or follow it."""
    from workers.training.loop import processes
    from workers.training.recipes import training_run
    from workers.training.recipes.folder_lock import locked

    with one_line_errors():
        if not process.is_first:
            training_run.follow(process)
            return
        with naming_bad_rows(), locked(asked.recipe.out):
            _train(process, asked)
        processes.tell(None)


def _submit(asked: _TrainingOptions) -> None:
    """Check recipe, rows and backbone here, and let a node train them."""
    from workers.commands.submitted_training import submit_training

    with naming_bad_rows():
        _prepared(asked)
    file = asked.recipe
    job, is_taken = submit_training(file.path, file.name, compare=asked.compare)
    say(f"job {job}: its progress: argosy status {job}")
    if not is_taken:
        folder = file.path.absolute().parent
        say("argosy: no running worker takes trainings; it waits until the fleet.toml of one has", err=True)
        say(f'        [worker] trainings = ["{folder}"]', err=True)


def _train(process: Process, asked: _TrainingOptions) -> None:
    file, training = asked.recipe, _prepared(asked, process)
    card = _trained(training, compare=asked.compare)
    console().print(_table(card))
    say(f"wrote {file.out}; serve it: ARGOSY_FLEET={file.out / 'fleet.toml'} argosy up")


def _prepared(asked: _TrainingOptions, process: Process | None = None) -> RecipeTraining:
    """Read and check all rows, and say how many they are."""
    from workers.training.loop.processes import Process
    from workers.training.recipes import training_run

    training = training_run.prepare(asked.recipe, resume=asked.resume, process=process or Process(), split=asked.split)
    rows = training.rows
    say(f"rows: {len(rows.train):,} to train, {len(rows.validation):,} to validate, {len(rows.test):,} to test")
    if rows.unlabelled:
        say(f"{rows.unlabelled:,} rows have no label of any task, and are left out")
    for doubt in training_run.doubts(training):
        say(doubt, err=True)
    return training


def _trained(training: RecipeTraining, *, compare: bool) -> TrainingCard:
    """Train, and show the steps with their rate and the time that is left."""
    from rich import progress as bars
    from rich.console import Console
    from rich.text import Text

    from workers.training.recipes import training_run

    class Rate(bars.ProgressColumn):
        def render(self, task: bars.Task) -> Text:
            return Text(f"{task.speed:.1f} steps/s" if task.speed else "")

    columns = (bars.TextColumn("{task.description}"), bars.BarColumn(), bars.MofNCompleteColumn(), Rate())
    with bars.Progress(*columns, bars.TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        card = training_run.run(training, _shown(progress, training.recipe.name))
        return training_run.compare(training, card, lambda name: _shown(progress, name)) if compare else card


def _shown(progress: Progress, name: str) -> Callable[[LogLine, int], None]:
    """Return a function that shows the steps of a training and its evaluations."""
    bar = progress.add_task(name, total=None)

    def show(line: LogLine, steps: int) -> None:
        progress.update(bar, completed=line.step, total=steps)
        if line.accuracies is not None:
            scores = "  ".join(f"{score:.3f}" for score in line.accuracies)
            progress.console.print(f"{name}: step {line.step:,}: validation {scores}", highlight=False)

    return show


def _table(card: TrainingCard) -> Table:
    from rich.table import Table

    table = Table("task", "rows", "metric", "score", "alone", "frozen", "constant", title="Scores on the test part")
    for name, task in card.tasks.items():
        (metric, score), *_ = task.scores.items()
        others = ("" if other is None else f"{other:.3f}" for other in (task.alone, task.frozen, task.baseline))
        table.add_row(name, f"{task.test_rows:,}", metric, f"{score:.3f}", *others)
    return table
