"""`argosy compress`: make a served model smaller and faster, step by step, with each step measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from producers.wire.command_line import Finite, console, say
from workers.commands import named_models
from workers.commands.shared_options import FLEET_FILE, naming_bad_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.table import Table

    from workers.device.device_process import ModelToLoad
    from workers.settings import Settings
    from workers.training.compressing.compress_recipe import CompressRecipe
    from workers.training.compressing.compress_rows import CompressRows
    from workers.training.compressing.measured_variants import Figures


@click.command()
@FLEET_FILE
@click.argument("model")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="A new folder to serve from."
)
@click.option(
    "--rows", type=click.Path(path_type=Path, dir_okay=False), help="CSV or JSONL: a text, and labels by task."
)
@click.option("--job", help="A stored job: its inputs, with the fleet's own answers as labels.")
@click.option(
    "--steps", default="distill,int8", show_default=True, help="prune, distill, qat, int8, export, in any order."
)
@click.option("--recipe", type=click.Path(path_type=Path, dir_okay=False), help="Steps with their settings, in TOML.")
@click.option("--layers", type=click.IntRange(1), help="Layers to keep.  [default: half of them]")
@click.option("--inner", type=click.IntRange(1), help="Inner features of a layer to keep.")
@click.option("--heads", type=click.IntRange(1), help="Attention heads to keep, with --width.")
@click.option("--width", type=click.IntRange(1), help="Width to keep.")
@click.option("--epochs", type=Finite(0), help="Passes over the rows in each training.  [default: the step's]")
@click.option(
    "--training-precision", type=click.Choice(["fp32", "bf16"]), help="Of the trainings' passes.  [default: fp32]"
)
@click.option("--mode", type=click.Choice(["dynamic", "static"]), help="Of int8: ranges as they come, or measured.")
@click.option("--backend", type=click.Choice(["onnxruntime", "openvino"]), help="Of int8 and export.")
@click.option("--most-lost", type=Finite(0), help="Points that a task may lose.  [default: 1]")
@click.option("--accept-loss", is_flag=True, help="Keep the last step's model, however much it lost.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: all cores]")
def compress(
    config: Path | None,
    model: str,
    out: Path,
    rows: Path | None,
    job: str | None,
    steps: str,
    recipe: Path | None,
    accept_loss: bool,
    threads: int | None,
    **settings: Any,
) -> None:
    """Make MODEL smaller and faster: prune, distil and quantise it, and measure it after each step.

    \b
    MODEL is a folder that `argosy train` wrote, a folder of transformers, or the name of a
    model of the fleet's file. Every fifth row judges, the others teach. A table after each
    step compares all models so far on the same rows: score by task, size on disk, memory,
    items/s. A step that loses more than a point of a task is left out. The new folder is
    served by its fleet.toml.

    \b
        argosy compress support/ --rows rows.csv --steps prune,distill,int8 --out small/
        argosy compress support/ --job 01JD --steps distill --layers 3 --out small/
    """
    from producers.wire.errors import ConfigurationError
    from workers.batching.serving import served_models
    from workers.device import devices
    from workers.training.compressing import compress_recipe

    given = {name: value for name, value in settings.items() if value is not None}
    if recipe and given:
        raise ConfigurationError(f"--{next(iter(given)).replace('_', '-')}: is for --steps; write it into {recipe}")
    chosen = compress_recipe.from_file(recipe) if recipe else compress_recipe.from_names(steps.split(","), given)
    whole, name = named_models.found(config, model)
    wanted = served_models.model_to_load(whole, name)
    with naming_bad_rows():
        own = _rows(whole, wanted, rows, job, chosen.held_out)
    _run(wanted, chosen, own, out, accept_loss, threads or devices.available_cores())


def _run(
    wanted: ModelToLoad,
    recipe: CompressRecipe,
    rows: CompressRows,
    out: Path,
    accept_loss: bool,
    threads: int,
) -> None:
    from rich import progress as rich
    from rich.console import Console

    from workers.training.compressing import compression_run

    columns = (*rich.Progress.get_default_columns(), rich.TextColumn("loss {task.fields[loss]:.3f}"))
    with rich.Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task("training", visible=False, loss=0.0)

        def watch(step: int, steps: int, loss: float) -> None:
            bars.update(bar, completed=step, total=steps, loss=loss, visible=step < steps)

        def show(figures: Sequence[Figures], refused: Mapping[str, str]) -> None:
            console().print(_table(wanted, figures, refused))

        reports = compression_run.Reports(say=lambda text: say(text, err=True), watch=watch, show=show)
        card = compression_run.compress(wanted, recipe, rows, out, reports, accept_loss=accept_loss, threads=threads)
    for step, reason in card.refused.items():
        say(f"{step}: left out, because {reason}; --accept-loss keeps such a step")
    say(f"{card.chosen} is in {out}; serve it: argosy up --config {out / compression_run.SETTINGS}")


def _table(wanted: ModelToLoad, figures: Sequence[Figures], refused: Mapping[str, str]) -> Table:
    from rich.table import Table

    table = Table(
        "step", "backend", *wanted.tasks, "MB on disk", "MB of memory", "items/s", "of the original", "size", ""
    )
    for own in figures:
        table.add_row(
            own.step,
            own.backend,
            *(f"{own.metrics[task]:.1%}" for task in wanted.tasks),
            f"{own.disk_mb:,.1f}",
            f"{own.memory_mb:,.0f}",
            f"{own.items_per_s:,.0f}",
            f"{own.items_per_s / figures[0].items_per_s:.2f}",
            own.size,
            refused.get(own.step, ""),
        )
    return table


def _rows(whole: Settings, wanted: ModelToLoad, rows: Path | None, job: str | None, held_out: float) -> CompressRows:
    from producers.wire.errors import ConfigurationError
    from results_store.store import Store
    from workers.training.compressing import compress_rows, task_networks

    if (rows is None) == (job is None):
        raise ConfigurationError("--rows: name a file of rows, or a stored job by --job")
    model = task_networks.served(wanted)
    if rows is not None:
        return compress_rows.from_file(rows, model, held_out)
    with Store(whole.connection.store_url) as store:
        return compress_rows.of_job(store, str(job), model, held_out)
