"""`argosy tune`: measure how models are served best on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from producers.wire.command_line import Finite, console, say
from workers.commands import named_models
from workers.commands.shared_options import DEVICE, FLEET_FILE, naming_bad_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from workers.device.device_process import ModelToLoad
    from workers.device.devices import Device
    from workers.settings import ModelSettings, Settings


class _Threads(click.ParamType[tuple[int, ...]]):
    """Numbers of threads, as 1,2,4."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        if not all(part.strip().isdigit() and int(part) for part in value.split(",")):
            self.fail(f"{value!r} must be numbers over 0, as 1,2", param, ctx)
        return tuple(dict.fromkeys(int(part) for part in value.split(",")))


@click.command()
@FLEET_FILE
@click.argument("names", nargs=-1)
@DEVICE
@click.option("--quick", is_flag=True, help="Compare outputs on unlabelled texts only, like a worker's first start.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Measure batches, threads, memory and variants too, for one model, and write the front into this folder.",
)
@click.option("--variant", "variants", multiple=True, help="With --out: a folder of `argosy compress`, or a model.")
@click.option(
    "--rows", type=click.Path(path_type=Path, dir_okay=False, exists=True), help="With --out: your labelled rows."
)
@click.option("--threads", type=_Threads(), help="With --out: the numbers of CPU threads.  [default: worker.threads]")
@click.option("--within", type=Finite(0), metavar="MINUTES", help="With --out: stop after this time; repeat to go on.")
@click.option("--most-lost", type=Finite(0), help="With --out: points that a task may lose.  [default: 0.5]")
@click.option(
    "--prefer", type=click.Choice(["items", "latency", "memory"]), help="With --out: choose by this.  [default: items]"
)
def tune(config: Path | None, names: tuple[str, ...], device: str | None, quick: bool, **front: Any) -> None:
    """Measure the backends of the fleet's models (or NAMES) on this machine, and choose one for each.

    \b
    The choice is the fastest backend that loses at most half a point of accuracy to torch
    in fp32 on held-out texts, which are pulled if needed. Workers use it from their next
    start on, unless the settings name a `backend`.

    \b
    With --out, all of backend, precision, batch cost, threads and compressed variants of one
    model are measured: accuracy on your rows (without rows: equal answers), time of a pass,
    memory, items/s. The folder gets tuned.json, tuned.png with the Pareto front, and a
    fleet.toml that serves the choice. The same command goes on where it stopped.

    \b
        argosy tune support/ --rows rows.csv --variant small/ --threads 1,2 --out tuned/
    """
    from producers.wire.errors import ConfigurationError
    from workers import settings
    from workers.device import devices

    given = {name: value for name, value in front.items() if name != "out" and value not in (None, ())}
    if front["out"] is None and given:
        raise ConfigurationError(f"--{next(iter(given)).replace('_', '-').rstrip('s')}: is for --out FOLDER; name it")
    if front["out"] is not None and (len(names) != 1 or quick):
        raise ConfigurationError("--out: measures one model, and without --quick; name the model")
    chosen, name = named_models.found(config, names[0]) if front["out"] else (settings.load(config), "")
    wanted_device = (device,) if device else chosen.worker.devices[:1]
    where = devices.select(chosen.worker.profile, wanted_device)[0]
    if front["out"]:
        _front(config, chosen, name, where, front["out"], **given)
    else:
        _backends(chosen, names or chosen.served, where, labelled=not quick)


def _backends(chosen: Settings, names: Sequence[str], where: Device, *, labelled: bool) -> None:
    from rich.console import Console

    from workers.batching.serving import served_models, tuned_backend
    from workers.commands.tables import decision_table

    for name in names:
        wanted = served_models.model_to_load(chosen, name)
        if not served_models.build(wanted).tunable:
            say(f"{name}: has only one backend")
            continue
        with Console(stderr=True).status(f"measuring {name} on {where.name} …"):
            decision = tuned_backend.decide(wanted, where, labelled=labelled, threads=chosen.worker.threads)
        console().print(decision_table(decision))


def _front(
    config: Path | None,
    chosen: Settings,
    name: str,
    where: Device,
    out: Path,
    *,
    variants: Sequence[str] = (),
    rows: Path | None = None,
    threads: Sequence[int] = (),
    within: float | None = None,
    most_lost: float = 0.5,
    prefer: Any = "items",
) -> None:
    from workers.commands.tables import front_table
    from workers.training.pareto import front_plot, tuned_settings, tuning_run
    from workers.training.pareto.tuned_point import ORIGINAL

    models = {ORIGINAL: _model(chosen, name)}
    models |= {variant: _variant(config, variant, name, models[ORIGINAL][1]) for variant in variants}
    if rows:
        _check_rows(models[ORIGINAL][1], rows)
    run = tuning_run.TuningRun(
        variants={variant: wanted for variant, (_, wanted) in models.items()},
        device=where,
        threads=threads or (chosen.worker.threads,),
        rows=rows,
        most_lost=most_lost / 100,
        prefer=prefer,
        within_s=None if within is None else 60 * within,
        say=lambda text: say(text, err=True),
    )
    found = run.measure(out)
    best = found.chosen
    assert best is not None, "it was just chosen"
    points = [point for own in found.runs.values() for point in own]
    tuned_settings.write(out, name, models[best.variant][0], best)
    front_plot.draw(out, points, found.front, best, model=name)
    console().print(front_table(found))
    for left in found.left:
        say(f"left for the next time: {left}; the same command goes on")
    say(f"{out / tuned_settings.FILE} serves {best.variant} on {best.backend}: argosy up --config {out / 'fleet.toml'}")


def _model(whole: Settings, name: str) -> tuple[ModelSettings, ModelToLoad]:
    """Return a model of the settings, with the backend that they name.

    Raises ConfigurationError unless there is a choice.
    """
    import msgspec

    from producers.wire.errors import ConfigurationError
    from workers.batching.serving import served_models
    from workers.models.backends.choice import Backend

    wanted = served_models.model_to_load(whole, name)
    if not served_models.build(wanted).tunable:
        raise ConfigurationError(f"models.{name}: has only one backend, so there is nothing to choose")
    own = whole.models[name]
    if own.backend != "auto":
        wanted = msgspec.structs.replace(wanted, backend=Backend(own.backend, own.precision, own.compile))
    return own, wanted


def _variant(config: Path | None, variant: str, name: str, original: ModelToLoad) -> tuple[ModelSettings, ModelToLoad]:
    """Return a variant under the name of the original. Raises ConfigurationError if it has other tasks."""
    import msgspec

    from producers.wire.errors import ConfigurationError

    own, wanted = _model(*named_models.found(config, variant))
    kinds = [{task: kind for task, (kind, _) in one.tasks.items()} for one in (wanted, original)]
    if kinds[0] != kinds[1]:
        told = [", ".join(f"{task} ({kind})" for task, kind in one.items()) for one in kinds]
        problem = f"has the tasks {told[0]}, and {name} {told[1]}"
        raise ConfigurationError(f"--variant {variant}: {problem}; only variants of one model are compared")
    return own, msgspec.structs.replace(wanted, name=original.name)


def _check_rows(original: ModelToLoad, rows: Path) -> None:
    """Name bad rows before an hour is spent."""
    from workers.training.compressing import compress_rows, task_networks

    with naming_bad_rows():
        compress_rows.from_file(rows, task_networks.judged(original, "judged by rows"), 0.5)
