"""What saturates first as a fleet grows? A simulation from measured constants: nodes, a store, a producer.

    python -m benchmarks.growth [--nodes N] [--producers N] [--items N] [--node-items-per-s R] [--store STORE] [--lane LANE]

Nothing is started. The constants are the kept results of `benchmarks.store`, `benchmarks.submit` and
`benchmarks.scale`, and so of one machine of two cores, on which store and clients shared the processor. Producers
submit one job as fast as they may; what that costs the store is in their rate alone. Each node takes the next envelope
when it has computed the one before; an envelope holds half a second of a node's work, and at most 1,024 items. The
store takes one transaction after the other: transactions of one job lock the job's row, so this is what a single job
sees, also on PostgreSQL. The lane is `rows`, a row for each result, or `chunks`, for plain texts of bulk.

Figures: `seconds` to the last result, `items_per_s`, and the busy shares of the devices, the store and the producers; the
largest is `first`. `nodes_that_fill_the_store` is the number of nodes from which more bring nothing. `predicted`
holds the simulated times of jobs on 1, 2 and 4 nodes against those of `benchmarks.scale`.
"""

from __future__ import annotations

import heapq
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks import convention

Lane = Literal["rows", "chunks"]
StoreName = Literal["sqlite", "postgresql"]

#: The rule for the size of an envelope: so many seconds of a node's work, and at most so many items.
ENVELOPE_S, MOST_ITEMS = 0.5, 1024

#: The texts a node of `benchmarks.scale`, and the rate of its device alone (5 ms a batch and 66 µs a token).
SCALE_TEXTS, SCALE_RATE = 600, 260.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """A fleet and a job. `delay_s` is the time before the first envelope is computed and after the last, together."""

    nodes: int
    node_items_per_s: float
    items: int
    submitted_per_s: float
    stored_per_s: float
    delay_s: float = 0.0

    @property
    def envelope_items(self) -> int:
        return max(1, min(MOST_ITEMS, math.floor(ENVELOPE_S * self.node_items_per_s)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The time of a job, and the busy shares of all that may saturate."""

    seconds: float
    busy: dict[str, float]

    @property
    def first(self) -> str:
        return max(self.busy, key=lambda name: self.busy[name])


def simulate(fleet: Fleet) -> Outcome:
    """Compute a job, envelope by envelope."""
    free_at = [0.0] * fleet.nodes
    store_free_at = submitted_at = 0.0
    left = fleet.items
    while left:
        items = min(left, fleet.envelope_items)
        left -= items
        submitted_at += items / fleet.submitted_per_s
        began_at = max(heapq.heappop(free_at), submitted_at)
        computed_at = began_at + items / fleet.node_items_per_s
        heapq.heappush(free_at, computed_at)
        store_free_at = max(store_free_at, computed_at) + items / fleet.stored_per_s
    seconds = store_free_at + fleet.delay_s
    busy = {
        "devices": fleet.items / fleet.node_items_per_s / fleet.nodes / seconds,
        "store": fleet.items / fleet.stored_per_s / seconds,
        "producers": fleet.items / fleet.submitted_per_s / seconds,
    }
    return Outcome(seconds=seconds, busy=busy)


def constants(store: StoreName, lane: Lane) -> tuple[float, float]:
    """Return items submitted a second and results stored a second, as they were measured and kept."""
    stored = kept("store")
    rate = stored[f"rows_per_s_{store}"] if lane == "rows" else stored[f"chunk_results_per_s_{store}_1024"]
    return kept("submit")[f"sync_{store}_items_per_s"], rate


def predicted(store: StoreName) -> dict[str, float]:
    """Return the simulated seconds over the measured ones of `benchmarks.scale`, by nodes. One node gives the delay."""
    found = kept("scale")
    submitted_per_s, stored_per_s = constants(store, "rows")
    ratios, delay_s = {}, 0.0
    for nodes, word in ((1, "one_node"), (2, "two_nodes"), (4, "four_nodes")):
        measured_s = nodes * SCALE_TEXTS / found[f"{store}_{word}_texts_per_s"]
        fleet = Fleet(
            nodes=nodes,
            node_items_per_s=SCALE_RATE,
            items=nodes * SCALE_TEXTS,
            submitted_per_s=submitted_per_s,
            stored_per_s=stored_per_s,
            delay_s=delay_s,
        )
        seconds = simulate(fleet).seconds
        if nodes == 1:
            delay_s, seconds = measured_s - seconds, measured_s
        ratios[str(nodes)] = round(seconds / measured_s, 3)
    return ratios


def kept(name: str) -> dict[str, Any]:
    """Return the figures of a kept result."""
    file = Path(__file__).with_name("results") / f"{name}.json"
    figures: dict[str, Any] = json.loads(file.read_text("utf-8"))["figures"]
    return figures


def main() -> None:
    parser = convention.parser(__doc__)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--producers", type=int, default=1)
    parser.add_argument("--items", type=int, default=100_000_000)
    parser.add_argument("--node-items-per-s", type=float, default=7_000.0, help="what a node's host feeds its device")
    parser.add_argument("--store", choices=("sqlite", "postgresql"), default="postgresql")
    parser.add_argument("--lane", choices=("rows", "chunks"), default="chunks")
    options = parser.parse_args()
    items = 1_000_000 if options.quick else options.items
    one_per_s, stored_per_s = constants(options.store, options.lane)
    submitted_per_s = options.producers * one_per_s
    fleet = Fleet(
        nodes=options.nodes,
        node_items_per_s=options.node_items_per_s,
        items=items,
        submitted_per_s=submitted_per_s,
        stored_per_s=stored_per_s,
    )
    outcome = simulate(fleet)
    figures = {
        "seconds": round(outcome.seconds),
        "items_per_s": round(items / outcome.seconds),
        "first": outcome.first,
        "busy": {name: round(share, 3) for name, share in outcome.busy.items()},
        "nodes_that_fill_the_store": round(stored_per_s / options.node_items_per_s, 1),
        "nodes_that_the_producers_fill": round(submitted_per_s / options.node_items_per_s, 1),
        "predicted": predicted(options.store),
    }
    convention.report("growth", figures, keep=options.keep)


if __name__ == "__main__":
    main()
