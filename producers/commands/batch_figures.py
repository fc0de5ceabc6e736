"""`argosy batches`: the work of the devices, from the flight recorder. It needs only the store."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

import click
import msgspec

from producers.commands.operate import Duration, open_store
from producers.wire.command_line import console
from producers.wire.messages import Priority

if TYPE_CHECKING:
    from rich.console import Group, RenderableType

    from results_store.records import Batch
    from results_store.store import Store

#: The most batches that one query returns.
MOST = 20_000

#: A batch is stored this long after its end, at most. A batch that runs longer than `LONGEST_S` may be missing.
STORED_S, LONGEST_S = 10.0, 300.0

#: Seconds between two updates of the screen.
EVERY_S = 1.0

#: Upper ends of the buckets of padding.
WASTES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)

BAR_CELLS = 40


@dataclass(frozen=True, slots=True)
class Device:
    """A worker's device in a window: its busy share of the time, its batches and items."""

    name: str
    busy: float
    batches: int
    items_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The figures of a window's batches. Shares are between 0 and 1.

    `seconds` is the length of the window; if `cut_off`, only its end with the newest batches. `error` is the median
    error of the predicted times, `loads` the number of model loads (within a memory budget).
    """

    seconds: float
    cut_off: bool = False
    batches: int = 0
    items: int = 0
    rows: int = 0
    cached: float = 0.0
    waste: float = 0.0
    wait_ms: float = 0.0
    error: float | None = None
    loads: int = 0
    sizes: dict[int, int] = field(default_factory=dict)  # the largest rows of a bucket: batches
    wastes: dict[float, int] = field(default_factory=dict)  # the highest waste of a bucket: batches
    priorities: dict[int, float] = field(default_factory=dict)  # share of device time, by items
    devices: tuple[Device, ...] = ()


def figures(batches: Sequence[Batch], since: float, until: float, *, cut_off: bool = False) -> Figures:
    """Return the figures of the batches that ran between two times."""
    seconds = max(until - since, 1e-9)
    if not batches:
        return Figures(seconds=seconds, cut_off=cut_off)
    rows = sum(batch.rows for batch in batches)
    computed = sum(batch.padded_tokens for batch in batches)
    predicted = [(batch.predicted_s, batch.forward_s) for batch in batches if batch.predicted_s and batch.forward_s]
    errors = [abs(expected_s / took_s - 1) for expected_s, took_s in predicted]
    return Figures(
        seconds=seconds,
        cut_off=cut_off,
        batches=len(batches),
        items=sum(batch.items for batch in batches),
        rows=rows,
        cached=sum(batch.cached_rows for batch in batches) / max(rows, 1),
        waste=1 - sum(batch.tokens for batch in batches) / max(computed, 1),
        wait_ms=1000 * median(batch.queue_wait_s for batch in batches),
        error=median(errors) if errors else None,
        loads=sum(batch.loads for batch in batches),
        sizes=dict(sorted(Counter(_size_bucket(batch) for batch in batches).items())),
        wastes=dict(sorted(Counter(_waste_bucket(batch) for batch in batches).items())),
        priorities=_by_priority(batches),
        devices=tuple(_devices(batches, since, until)),
    )


def _size_bucket(batch: Batch) -> int:
    size: int = 1 << (batch.rows - 1).bit_length()
    return size


def _waste_bucket(batch: Batch) -> float:
    waste = 1 - batch.tokens / max(batch.padded_tokens, 1)
    return next(end for end in WASTES if waste <= end)


def _by_priority(batches: Sequence[Batch]) -> dict[int, float]:
    seconds: dict[int, float] = {}
    for batch in batches:
        for priority, items in batch.priorities.items():
            spent_s = batch.forward_s * items / max(batch.items, 1)
            seconds[int(priority)] = seconds.get(int(priority), 0.0) + spent_s
    total = sum(seconds.values())
    return {priority: spent / max(total, 1e-12) for priority, spent in sorted(seconds.items())}


def _devices(batches: Sequence[Batch], since: float, until: float) -> Iterator[Device]:
    for worker in sorted({batch.worker for batch in batches}):
        own = [batch for batch in batches if batch.worker == worker]
        # a device runs one batch at a time, so its times add up; the first batch may have begun before the window
        busy_s = sum(min(batch.started_at + batch.forward_s, until) - max(batch.started_at, since) for batch in own)
        items = sum(batch.items for batch in own)
        yield Device(f"{own[0].device} ({worker})", busy_s / (until - since), len(own), items / (until - since))


@click.command()
@click.option("--last", "last_s", type=Duration(), default="60s", show_default=True, help="Time window: 60s, 15m, 2h.")
@click.option("--model", help="Only batches of this model.")
@click.option("--once", is_flag=True, help="Print the figures once and exit, for scripts.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures once, as one JSON object.")
def batches(*, last_s: float, model: str | None, once: bool, as_json: bool) -> None:
    """Watch the micro-batches: their sizes, padding, waits, and how busy each device is.

    The figures are of the batches that ended within `--last`; if these are over 20,000, of the newest. "Busy" is the
    time in forward passes divided by wall time. "Predicted within" is the median error of the batcher's predicted
    times. Ctrl-C ends the command.

    \b
    argosy batches
    argosy batches --last 15m --once
    argosy batches --json | jq .waste
    """
    with open_store() as store:
        window = Window(last_s, model)

        def look() -> Figures:
            until = time.time()
            found = window.look(store, until)
            return figures(found, window.since, until, cut_off=window.cut_off)

        if as_json:
            click.echo(msgspec.json.encode(look()).decode())
        elif once:
            console().print(screen(look()))
        else:
            _watch(look)


class Window:
    """The batches that ended in the last `last_s` seconds. Each look reads only the new ones, and at most `MOST`.

    The batches of the last look are whole from `since` on. `cut_off` tells that this is not the whole window.
    """

    def __init__(self, last_s: float, model: str | None = None) -> None:
        self.last_s = last_s
        self.since = float("-inf")
        self.cut_off = False
        self._model = model
        self._seen: dict[str, Batch] = {}
        self._looked_at = float("-inf")
        self._whole_since = float("-inf")

    def look(self, store: Store, until: float) -> list[Batch]:
        """Return the window's batches in the order of their start."""
        begin = until - self.last_s
        # a batch is stored after its end, perhaps after a batch that ended later; a worker's clock may be ahead
        newest = min(self._looked_at, max(map(_end, self._seen.values()), default=begin))
        ended_since = max(begin, newest - STORED_S)
        found = store.flight.recent(
            limit=MOST, since=ended_since - LONGEST_S, ended_since=ended_since, model=self._model
        )
        if len(found) == MOST:  # older batches are missing
            self._whole_since = found[-1].started_at
        self.since = min(max(begin, self._whole_since), until)
        self.cut_off = self.since > begin
        self._seen |= {batch.id: batch for batch in found}
        self._seen = {id_: batch for id_, batch in self._seen.items() if _end(batch) >= self.since}
        self._looked_at = until
        return sorted(self._seen.values(), key=lambda batch: batch.started_at)


def _end(batch: Batch) -> float:
    return batch.started_at + batch.forward_s


def _watch(look: Callable[[], Figures]) -> None:
    from rich.live import Live

    with Live(screen(look()), console=console(), auto_refresh=False) as live:
        while True:
            time.sleep(EVERY_S)
            live.update(screen(look()), refresh=True)


def screen(found: Figures) -> Group:
    """Return the figures as tables and bars."""
    from rich.console import Group
    from rich.text import Text

    if not found.batches:
        return Group(Text(f"no batches ended in the last {found.seconds:,.0f} s; look further back with --last"))
    parts: list[RenderableType] = [Text(_summary(found)), Text("")]
    parts.append(_bars("rows", {f"<= {size:,}": count for size, count in found.sizes.items()}))
    parts.append(_bars("padding", {f"<= {waste:.0%}": count for waste, count in found.wastes.items()}))
    shares = {_priority(priority): share for priority, share in found.priorities.items()}
    parts.append(_bars("device time", shares, "{:.0%}"))
    busy = {device.name: min(device.busy, 1.0) for device in found.devices}
    parts.append(_bars("device busy", busy, "{:.0%}", longest=1.0))
    return Group(*parts)


def _summary(found: Figures) -> str:
    facts = [
        f"{found.batches:,} batches of {found.items:,} items in {found.seconds:,.0f} s",
        f"{found.items / found.seconds:,.1f} items/s",
        f"padding {found.waste:.1%}",
        f"waited {found.wait_ms:,.0f} ms in the median",
    ]
    if found.error is not None:
        facts.append(f"predicted within {found.error:.0%}")
    if found.loads:
        facts.append(f"{found.loads:,} model loads")
    if found.cut_off:
        facts.append(f"cut off, since a look reads at most {MOST:,} batches: choose a shorter --last")
    if found.cached:
        facts.append(f"{found.cached:.0%} of rows from the feature cache")
    return ", ".join(facts)


def _bars(title: str, values: Mapping[str, float], form: str = "{:,}", longest: float | None = None) -> RenderableType:
    from rich.table import Table

    most = longest or max(values.values(), default=1) or 1
    table = Table(title, "", "", box=None, pad_edge=False, header_style="bold")
    table.columns[0].min_width = 14
    table.columns[1].justify = "right"
    for name, value in values.items():
        table.add_row(name, form.format(value), "█" * max(1 if value else 0, round(BAR_CELLS * value / most)))
    return table


def _priority(value: int) -> str:
    try:
        return Priority(value).name.lower()
    except ValueError:  # the envelope of another program
        return str(value)
