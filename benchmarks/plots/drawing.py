"""How each result is drawn. A picture says what was measured, where and when; the same result gives the same file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Figures = Mapping[str, Any]

OURS, OTHERS, LIMIT = "#1f5fa8", "#9aa5b1", "#c0392b"

#: Text stays text, ids are made from the content, and nothing says when it was drawn.
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "argosy", "axes.spines.top": False, "axes.spines.right": False}


def draw_all(results: Path, plots: Path) -> Iterator[Path]:
    """Draw every kept result that has a picture; yield the files."""
    plots.mkdir(parents=True, exist_ok=True)
    for name, draw in DRAWINGS.items():
        file = results / f"{name}.json"
        if file.is_file():
            yield _drawn(json.loads(file.read_text(encoding="utf-8")), draw, plots / f"{name}.svg")


def _drawn(result: Mapping[str, Any], draw: Callable[[Axes, Figures], str], path: Path) -> Path:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7, 3.2), layout="constrained")
        axes = figure.subplots()
        axes.set_title(draw(axes, result["figures"]), loc="left", fontsize=11)
        machine, versions = result["machine"], result["versions"]
        where = f"{machine['cpu']}, {machine['cores']} cores; argosy {versions['commit']}; {result['date'][:10]}"
        figure.supxlabel(where, fontsize=7, color=OTHERS, x=0.01, ha="left")
        figure.savefig(path, format="svg", metadata={"Date": None})
    return path


def _bars(axes: Axes, values: Mapping[str, float], ours: str, unit: str) -> None:
    """Horizontal bars, the first on top, each with its number."""
    names = list(values)[::-1]
    bars = axes.barh(
        names, [values[name] for name in names], color=[OURS if name == ours else OTHERS for name in names]
    )
    axes.bar_label(bars, fmt="{:,.4g}", padding=3)
    axes.margins(x=0.12)
    axes.set_xlabel(unit)


def bulk(axes: Axes, found: Figures) -> str:
    ours = "the fleet, submit to SQL"
    values = {
        ours: found["fleet_items_per_s"],
        "a bare loop, sorted": found["offline_items_per_s"],
        "Celery, one item a task": found["naive_items_per_s"],
    }
    _bars(axes, values, ours, "texts a second")
    return f"Bulk: {found['fleet_over_offline']:.2f} of a bare loop, {found['fleet_over_naive']:.1f} times naive Celery"


def heads(axes: Axes, found: Figures) -> str:
    ours = "four tasks a text"
    _bars(
        axes,
        {"one task a text": found["one_task_items_per_s"], ours: found["four_tasks_items_per_s"]},
        ours,
        "texts a second",
    )
    return f"Heads: four tasks take {found['four_over_one']:.2f} times as long as one"


def interactive(axes: Axes, found: Figures) -> str:
    ours = {f"{which}, {load}": found[f"{load}_{which}_ms"] for which in ("p50", "p99") for load in ("idle", "loaded")}
    _bars(axes, ours, "p99, loaded", "milliseconds for a lone interactive text")
    return f"Interactive under saturating bulk: p99 {found['p99_ratio']:.1f} times that of an idle fleet"


def padding(axes: Axes, found: Figures) -> str:
    ours = "the fleet"
    values = {
        "in order of arrival": 100 * found["waste_in_order_of_arrival"],
        ours: 100 * found["waste"],
        "everything sorted first": 100 * found["waste_sorted_offline"],
    }
    _bars(axes, values, ours, "per cent of the computed tokens that are padding")
    return f"Padding: {found['waste']:.1%} on texts of mixed lengths"


def overhead(axes: Axes, found: Figures) -> str:
    ours = "the fleet, durable"
    values = {ours: found["items_per_s"], "Celery, no results": found["celery_tasks_per_s"]}
    _bars(axes, values, ours, "items a second through a model that does nothing")
    return f"Overhead: {found['over_celery']:.0f} times plain Celery's no-op tasks"


def backends(axes: Axes, found: Figures) -> str:
    ordered = dict(sorted(found["items_per_s"].items(), key=lambda each: -each[1]))
    _bars(axes, ordered, found["best"], "texts a second, offline loop")
    return f"Backends: {found['best']} is {found['best_over_eager']:.1f} times torch eager"


def fairness(axes: Axes, found: Figures) -> str:
    shares = [100 * share for share in found["share_by_tenth"]]
    axes.bar(range(1, len(shares) + 1), shares, color=OURS)
    axes.axhline(100 * found["guaranteed"], color=LIMIT, linewidth=1, label="guaranteed")
    axes.legend(frameon=False)
    axes.set_xlabel("tenths of the batches while interactive work saturates")
    axes.set_ylabel("bulk's per cent of device time")
    return f"Fairness: bulk has {found['bulk_share']:.0%}, guaranteed are {found['guaranteed']:.0%}"


def soak(axes: Axes, found: Figures) -> str:
    """Each process's memory and the interactive p99, over those of the points that the bounds compare with."""
    points = found["points"]
    minutes = [point["minute"] for point in points]
    for name in found["memory_ratio"]:
        series = [point["memory_mib"].get(name) for point in points]
        start = next((mib for mib in series[2:] if mib), None)
        axes.plot(minutes, [mib / start if mib and start else None for mib in series], linewidth=1, label=name)
    waits_ms = [point["p99_ms"] for point in points]
    if first := found["p99_first_ms"]:
        axes.plot(minutes, [ms / first if ms else None for ms in waits_ms], "o-", color=LIMIT, label="interactive p99")
    axes.legend(frameon=False, fontsize=7, ncols=2)
    axes.set_xlabel("minutes")
    axes.set_ylabel("times the start")
    return f"Soak: memory at most {max(found['memory_ratio'].values()):.2f} times, p99 {found['p99_ratio']} times the start"


DRAWINGS: Mapping[str, Callable[[Axes, Figures], str]] = {
    draw.__name__: draw for draw in (bulk, heads, interactive, padding, overhead, backends, fairness, soak)
}
