"""`argosy rerun` and `argosy what-if`: recorded batches run again, and simulated under other settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from producers.wire.command_line import Finite, console, say
from producers.wire.messages import Priority
from workers.commands.shared_options import FLEET_FILE

if TYPE_CHECKING:
    from workers.batching.planning.policy import Policy
    from workers.batching.planning.what_if import Forecast, Recording
    from workers.device.devices import Device
    from workers.settings import Settings

#: The policy's settings that `--set` accepts, by their names in fleet.toml (if they have one), with their checks.
TRIABLE: Mapping[str, click.ParamType[Any]] = {
    "batch_cost": click.IntRange(1),
    "batch_rows": click.IntRange(1),
    "bulk_share": Finite(0, 0.9),
    "interactive_wait_s": Finite(0),
    "standard_wait_s": Finite(0),
    "window": click.IntRange(1),
    "least_real_share": Finite(0, 1),
    "aged_after_s": Finite(0),
}


@click.command()
@FLEET_FILE
@click.argument("batch")
@click.option("--device", help="cpu, cuda:0 …  [default: the first device of the profile]")
def rerun(config: Path | None, batch: str, device: str | None) -> None:
    """Run a recorded micro-batch again, with the same items, and compare with the stored results.

    \b
    A result names its batch. The inputs must still be in the store (durable, not dropped
    or purged). Nothing is written. Differences are between numbers in the same place:
    about 1e-6 is rounding; `other` is a different answer.

    \b
        argosy rerun "$(argosy results JOB | jq -r .batch | head -1)"
    """
    from rich.table import Table

    from results_store.store import Store
    from workers import settings
    from workers.commands import rerun as again

    chosen = settings.load(config)
    with Store(chosen.connection.store_url) as store:
        found = again.rerun(store, chosen, _device(chosen, device), batch)
    before = found.batch
    say(f"batch {before.id}: {before.items:,} items of {before.model}, {before.rows:,} rows ({found.rows:,} now)")
    say(f"then {1000 * before.forward_s:,.1f} ms on {before.device}, now {1000 * found.forward_s:,.1f} ms")
    if before.model_revision != found.revision:
        say(f"revisions differ: then {before.model_revision}, now {found.revision}")
    table = Table("task", "results", "largest difference", box=None, pad_edge=False)
    for task, count in found.compared.items():
        largest = found.differences[task]
        table.add_row(task, f"{count:,}", "other" if math.isinf(largest) else f"{largest:.2g}")
    console().print(table)


@click.command(name="what-if")
@FLEET_FILE
@click.option(
    "--minutes",
    type=Finite(0, min_open=True),
    default=60,
    show_default=True,
    help="Replay the batches of the last so many minutes.",
)
@click.option(
    "--batches",
    "limit",
    type=click.IntRange(1),
    default=2000,
    show_default=True,
    help="Replay at most this many of the newest batches.",
)
@click.option("--device", help="The device whose settings really ran.  [default: the first of the profile]")
@click.option(
    "-s", "--set", "changes", multiple=True, metavar="NAME=VALUE[,…]", help="A variant to simulate; can be repeated."
)
def what_if(config: Path | None, *, minutes: float, limit: int, device: str | None, changes: tuple[str, ...]) -> None:
    """Simulate other batching settings on recorded arrivals, without a device.

    \b
    The first two lines are the recorded result and a simulation of the same settings: their
    difference is the error of the other lines. Without --set, some variants are chosen.
    Settings: batch_cost, batch_rows, bulk_share, interactive_wait_s, standard_wait_s,
    window, least_real_share, aged_after_s. Rates are items per second of device time.

    \b
        argosy what-if --minutes 15
        argosy what-if --set interactive_wait_s=0.02 --set batch_cost=512,window=1024
    """
    import time

    from results_store.store import Store
    from workers import settings
    from workers.batching.planning.what_if import recordings

    tried = {text: _parsed(text) for text in changes}
    chosen = settings.load(config)
    with Store(chosen.connection.store_url) as store:
        found = store.flight.recent(limit=limit, since=time.time() - 60 * minutes, traces=True)
    recorded = recordings(batch for batch in found if batch.model in chosen.models)
    if not recorded:
        raise click.ClickException("that time has too few recorded batches; look further back with --minutes")
    ran = _policy(chosen, {batch.model for one in recorded for batch in one.batches}, _device(chosen, device))
    tried = tried or {text: _parsed(text) for text in _suggested(ran)}
    variants = {text: _changed(ran, wanted) for text, wanted in tried.items()}
    for one in recorded:
        _show(one, ran, variants)


def _device(chosen: Settings, name: str | None) -> Device:
    from workers.device import devices

    return devices.select(chosen.worker.profile, (name,) if name else chosen.worker.devices[:1])[0]


def _policy(chosen: Settings, models: set[str], device: Device) -> Policy:
    """Return the policy of workers with these settings; nothing is measured for it."""
    import msgspec

    from workers.batching.planning.policy import Policy
    from workers.batching.serving import served_models

    quiet = msgspec.structs.replace(chosen, worker=msgspec.structs.replace(chosen.worker, tune_at_start=False))
    return Policy(
        budgets={name: served_models.serve(quiet, name, device)[1].budget for name in sorted(models)},
        guaranteed_shares=chosen.guaranteed_shares,
        promised_wait_s=chosen.promised_wait_s,
    )


def _parsed(text: str) -> dict[str, float]:
    changes: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name not in TRIABLE:
            raise click.BadParameter(
                f"{name!r} cannot be changed; choose from {', '.join(TRIABLE)}", param_hint="--set"
            )
        try:
            changes[name] = TRIABLE[name].convert(value, None, None)
        except click.BadParameter as error:
            raise click.BadParameter(f"{part!r}: {error.message}", param_hint="--set") from error
    return changes


def _changed(policy: Policy, changes: Mapping[str, float]) -> Policy:
    from workers.batching.planning.policy import Budget

    plain: dict[str, Any] = {
        name: value for name, value in changes.items() if name in ("least_real_share", "aged_after_s")
    }
    if "window" in changes:
        plain["window"] = int(changes["window"])
    shares, waits = dict(policy.guaranteed_shares), dict(policy.promised_wait_s)
    if "bulk_share" in changes:
        shares[int(Priority.BULK)] = changes["bulk_share"]
    for priority in (Priority.INTERACTIVE, Priority.STANDARD):
        if (name := f"{priority.name.lower()}_wait_s") in changes:
            waits[int(priority)] = changes[name]
    budgets = {
        model: Budget(int(changes.get("batch_cost", budget.cost)), int(changes.get("batch_rows", budget.rows)))
        for model, budget in policy.budgets.items()
    }
    return replace(policy, budgets=budgets, guaranteed_shares=shares, promised_wait_s=waits, **plain)


def _suggested(policy: Policy) -> list[str]:
    """Return some variants: half and twice each recorded setting."""
    cost = max(budget.cost for budget in policy.budgets.values())
    wait_s = policy.promised_wait_s.get(int(Priority.INTERACTIVE), 0.05)
    return [
        f"batch_cost={cost // 2}",
        f"batch_cost={cost * 2}",
        f"interactive_wait_s={wait_s / 2:g}",
        f"interactive_wait_s={wait_s * 2:g}",
        "window=256",
        "least_real_share=0.6",
        "least_real_share=0.95",
    ]


def _show(recording: Recording, ran: Policy, variants: Mapping[str, Policy]) -> None:
    from rich.table import Table

    truth, same = recording.recorded(), recording.forecast(ran)
    first = recording.batches[0]
    title = (
        f"{first.worker}: {len(recording.batches):,} batches, {sum(batch.items for batch in recording.batches):,} items"
    )
    columns = [f"{Priority(priority).name.lower()} p50 / p99" for priority in truth.latency_s]
    table = Table("settings", "items/s", "padding", "rows", *columns, title=title, title_justify="left")
    table.add_row("as recorded", *_cells(truth, truth))
    table.add_row("the same, simulated", *_cells(same, truth))
    table.add_row("… its error", *_errors(same, truth), end_section=True)
    for name, policy in variants.items():
        table.add_row(name, *_cells(recording.forecast(policy), truth))
    console().print(table)


def _cells(found: Forecast, truth: Forecast) -> list[str]:
    waits = [found.latency_s.get(priority, (math.nan, math.nan)) for priority in truth.latency_s]
    shown = [f"{1000 * middle:,.0f} / {1000 * late:,.0f} ms" for middle, late in waits]
    return [f"{found.capacity:,.1f}", f"{found.waste:.1%}", f"{found.rows:.1f}", *shown]


def _errors(found: Forecast, truth: Forecast) -> list[str]:
    waits = [
        " / ".join(
            f"{guess / real - 1:+.0%}"
            for guess, real in zip(found.latency_s[priority], truth.latency_s[priority], strict=True)
        )
        for priority in truth.latency_s
    ]
    rows = f"{found.rows / truth.rows - 1:+.0%}"
    return [f"{found.capacity / truth.capacity - 1:+.0%}", f"{found.waste - truth.waste:+.1%}", rows, *waits]


COMMANDS: list[click.Command] = [rerun, what_if]
