"""How much of a fast device does the host feed, and what does it cost?

    python -m benchmarks.host [--tree PATH | --against PATH [--turns N]] [--quick | --keep]

The text model is real in the worker's parent process; the device process sleeps as long as a device would take
(scripted/devices.toml) and answers with a checksum of each row. Every stored row is verified by SQL: a pass that stored
anything wrong ends the run, and gives no figure. SQLite, one worker, two tasks, texts of 50 tokens.

With `--against`, another tree of this project (a worktree of another commit) and this one are measured in turns, with
the device that does nothing. `…_ratio` is the median of each turn's figure of this tree over the other's.

Figures of a device have its name; `scripted` says that the device was. CPU is user and system time by /proc: `host_cpu`
is `node_cpu` (the worker's processes, the device process among them), broker and producer together. `overhead` is
`node_cpu` less tokenising alone. `largest_process` is the CPU of the largest process of the worker; less tokenising,
which lets the interpreter's lock go, it is `largest_gil`, about the time that the process needs the lock. `fed_share` is
the share of the device's roof (no launches, no padding) that was used. `queued_seconds_over_real` is the prediction of `queued_work` for a backlog, over the time that a worker then took
from its first batch on; `redis_bytes_per_text` is Redis' memory for that backlog. `wake_p99_ms` is how late a thread of
the worker wakes that slept 5 ms. `sleep_error` is by how much batches took longer than the device should, and
`others_cpu_share` how much of the machine other programs used: at most 0.05, or measure again. `predicted` figures are
computed: the texts that 16 cores do, or one interpreter's lock allows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import convention
from benchmarks.scripted import trees

ROOT = Path(__file__).parents[1]

#: What is compared in turns.
COMPARED = (
    "host_cpu_us", "node_cpu_us", "broker_cpu_us", "producer_cpu_us", "largest_process_us", "items_per_s", "submitted_per_s",
)  # fmt: skip


def main() -> None:
    parser = convention.parser(__doc__)
    parser.add_argument("--against", type=Path, metavar="PATH", help="another tree of this project")
    parser.add_argument("--tree", type=Path, default=ROOT, metavar="PATH", help="measure this tree instead of our own")
    parser.add_argument("--turns", type=int, default=3, help="runs of each tree with --against")
    options = parser.parse_args()
    if options.against:
        figures = in_turns(options.against, 1 if options.quick else options.turns, 600 if options.quick else 12_000)
    else:
        figures = alone(options)
    convention.report("host", figures, keep=options.keep, variant="against" if options.against else "")


def alone(options: argparse.Namespace) -> dict[str, Any]:
    few = options.quick
    texts = 600 if few else 10_000
    found = {
        "nothing": measured(
            options.tree, "texts", "nothing", texts, passes=1 if few else 3, backlog=600 if few else 30_000
        ),
        "tenth": measured(options.tree, "texts", "tenth", texts, wakes=True),
        "slow": measured(options.tree, "texts", "slow", 64 if few else 1_000, backlog=64 if few else 1_500),
        "images": measured(options.tree, "images", "nothing", 64 if few else 1_000),
    }
    if not few:
        found |= {device: measured(options.tree, "texts", device, texts) for device in ("eager", "compiled")}
    return summary(found)


def summary(found: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The figures, by the names of benchmarks/README.md."""
    nothing, tenth, images = found["nothing"], found["tenth"], found["images"]
    gil_us = max(1.0, nothing["largest_process_us"] - nothing["tokenising_us"])
    beyond_us = images["host_cpu_us"] - images["decoding_us"]
    figures = {
        "node_cpu_us_per_text": nothing["node_cpu_us"],
        "host_cpu_us_per_text": nothing["host_cpu_us"],
        "broker_cpu_us_per_text": nothing["broker_cpu_us"],
        "producer_cpu_us_per_text": nothing["producer_cpu_us"],
        "tokenising_us_per_text": nothing["tokenising_us"],
        "overhead_us_per_text": nothing["overhead_us_per_text"],
        "largest_gil_us_per_text": gil_us,
        "redis_bytes_per_text": nothing["redis_bytes_per_text"],
        "wake_p99_ms": tenth["wake_p99_ms"],
        **{f"scripted_{name}_texts_per_s": own["items_per_s"] for name, own in found.items() if name != "images"},
        **{f"scripted_{name}_fed_share": own["fed_share"] for name, own in found.items() if own.get("fed_share")},
        **{f"scripted_{name}_queued_seconds_over_real": found[name]["queued_seconds_over_real"] for name in ("nothing", "slow")},
        **{f"scripted_{name}_sleep_error_p99_us": own["sleep_error_p99_us"] for name, own in found.items() if name != "images"},
        "scripted_images_per_s": images["items_per_s"],
        "images_over_decode": images["items_per_s"] / images["decoded_per_s"],
        "image_cpu_us_beyond_decode": beyond_us,
        "predicted_16_cores_texts_per_s": min(1e6 / gil_us, 16e6 / nothing["host_cpu_us"]),
        "tokens_per_text": nothing["tokens_per_text"],
        "others_cpu_share": max(own["others_cpu_share"] for own in found.values()),
    }  # fmt: skip
    return {name: rounded(value) for name, value in figures.items()}


def in_turns(other: Path, turns: int, texts: int) -> dict[str, Any]:
    found: dict[str, list[dict[str, float]]] = {"other": [], "this": []}
    for turn in range(turns):
        for name in sorted(found, reverse=turn % 2 == 1):  # neither is always the first
            tree = ROOT if name == "this" else other
            found[name].append(measured(tree, "texts", "nothing", texts))
    figures: dict[str, Any] = {}
    for figure in COMPARED:
        pairs = [(this[figure], other[figure]) for this, other in zip(found["this"], found["other"], strict=True)]
        if not all(other for _, other in pairs):
            continue  # less than a tick of the clock, in a smoke run
        ratios = [this / other for this, other in pairs]  # of a turn, so that a machine that slows down is in both
        figures[f"{figure}_ratio"] = rounded(statistics.median(ratios))
        figures[figure], figures[f"{figure}_other"] = (
            rounded(statistics.median(own)) for own in zip(*pairs, strict=True)
        )
        if figure == "host_cpu_us":
            figures["host_cpu_us_ratio_by_turn"] = [rounded(ratio) for ratio in ratios]
    figures["others_cpu_share"] = rounded(max(run["others_cpu_share"] for runs in found.values() for run in runs))
    return figures


def measured(
    tree: Path,
    work: str,
    device: str,
    items: int,
    *,
    passes: int = 1,
    backlog: int = 0,
    wakes: bool = False,
    store_url: str | None = None,
) -> dict[str, float]:
    """Run the measuring part in a tree, by default on SQLite. Raises SystemExit if a pass stored anything wrong."""
    command = [sys.executable, "-m", f"{trees.NAME}.measure", work, device, f"--items={items}", f"--passes={passes}"]
    command += [f"--backlog={backlog}"] * bool(backlog) + ["--wakes"] * wakes
    with tempfile.TemporaryDirectory(prefix="argosy-host-") as folder:
        environment = trees.environment(tree, Path(folder))
        if store_url:
            environment["ARGOSY_STORE_URL"] = store_url
        ran = subprocess.run(command, env=environment, cwd=folder, stdout=subprocess.PIPE, text=True, check=False)
    if ran.returncode:
        raise SystemExit(f"{device}, {work}: the pass failed, see above")
    figures: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    brief = ", ".join(f"{name} {figures[name]:,.0f}" for name in ("items_per_s", "host_cpu_us", "node_cpu_us"))
    convention.progress(f"{tree.resolve().name}, {work} on {device}: {brief}")
    return figures


def rounded(value: float) -> float:
    """Round to four significant digits."""
    return float(f"{value:.4g}")


if __name__ == "__main__":
    main()
