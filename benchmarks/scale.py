"""How much faster are four nodes than one, and does a slow node delay a fast one?

    python -m benchmarks.scale [--stores sqlite,postgresql] [--quick | --keep]

Nodes with the text model on a scripted device of 260 texts a second (`cpu` in scripted/devices.toml: 5 ms a batch and
66 µs a token), with one store and one broker. Every stored row is verified by SQL; a wrong row ends the run.

`four_over_one` is the rate of a job of 600 texts a node on four nodes over that on one node, and `two_over_one` that of
two nodes. `slow_beside_fast` is the rate of a job of 4,800 texts on a node beside a node that is ten times slower, over
the rate of the fast node alone. They are the lower of both stores, medians of three jobs; names with a store have its
own figures. `slow_share` is the slow node's share of the rows. `others_cpu_share` is how much of the machine other
programs used: at most 0.05, or measure again.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import convention
from benchmarks.disasters.databases import postgresql
from benchmarks.scripted import cpu, models, stored, trees
from benchmarks.scripted.workload import Texts
from producers import Client
from workers import settings
from workers.device.devices import Device
from workers.fleet.local import LocalFleet
from workers.fleet.services import Service

FLEET = """
[worker]
models = ["text"]
profile = "cpu"
[models.text]
class = "benchmarks.scripted.models:ScriptedText"
backend = "torch"
batch_cost = 2048
batch_rows = 64
"""

STORES = ("sqlite", "postgresql")
FAST, SLOW = "cpu", "slow-cpu"
TIMEOUT_S = 600


class ScriptedNodes(LocalFleet):
    """A fleet with a node for each of `devices`. Each node has learned costs of its own, as on machines of their own."""

    def __init__(self, devices: Sequence[str], home: Path) -> None:
        super().__init__(settings.load(), home, flower=False, workers_per_device=len(devices))
        self._devices = devices

    def _worker(self, device: Device, number: int, environment: Mapping[str, str]) -> Service:
        cache = self.home / f"cache-{number}"
        if not cache.exists():
            trees.link_cache(cache)
        own = {models.DEVICE: self._devices[number], "ARGOSY_CACHE": str(cache), "TOKENIZERS_PARALLELISM": "false"}
        service = super()._worker(device, number, {**environment, **own})
        service.command = [*service.command, "--name", f"node-{number}@here"]
        return service


@dataclass(frozen=True, slots=True)
class Size:
    """The texts of a job for each node, of a job beside a slow node, and how many jobs are measured."""

    per_node: int
    beside: int
    jobs: int


def main() -> None:
    parser = convention.parser(__doc__)
    parser.add_argument("--stores", default=",".join(STORES), help="only these, with commas between")
    options = parser.parse_args()
    size = Size(32, 128, 1) if options.quick else Size(600, 4_800, 3)
    before, started = (cpu.machine(), cpu.own()), time.monotonic()
    figures = measured(options.stores.split(","), size)
    others_s = (cpu.machine() - before[0]) - (cpu.own() - before[1])
    figures["others_cpu_share"] = round(others_s / (time.monotonic() - started) / len(os.sched_getaffinity(0)), 3)
    convention.report("scale", figures, keep=options.keep)


def measured(stores: Sequence[str], size: Size) -> dict[str, Any]:
    work = Texts()
    inputs, expected, _ = work.made(max(4 * size.per_node, size.beside))
    figures: dict[str, Any] = {}
    for store in stores:
        with ExitStack() as stack:
            url = stack.enter_context(postgresql()).url if store == "postgresql" else ""
            found = Measured(store, url, work, inputs, expected, size).figures()
        figures |= {f"{store}_{name}": float(f"{value:.4g}") for name, value in found.items()}
    for name in ("two_over_one", "four_over_one", "slow_beside_fast"):
        figures[name] = min(figures[f"{store}_{name}"] for store in stores)
    return figures


@dataclass(frozen=True, slots=True)
class Measured:
    """The measurements of a store. Without a `url`, each fleet has an SQLite file of its own."""

    store: str
    url: str
    work: Texts
    inputs: list[str]
    expected: dict[str, list[Any]]
    size: Size

    def figures(self) -> dict[str, float]:
        per_node, beside = self.size.per_node, self.size.beside
        with self.nodes(FAST) as one:
            alone, long_alone = self.rate(one, per_node), self.rate(one, beside)
        with self.nodes(FAST, FAST) as two:
            twice = self.rate(two, 2 * per_node)
        with self.nodes(FAST, FAST, FAST, FAST) as four:
            fourfold = self.rate(four, 4 * per_node)
        with self.nodes(FAST, SLOW) as unlike:
            since = time.time()
            unlike_rate = self.rate(unlike, beside)
            slow_share = self.share_of_slow(unlike, since)
        return {
            "one_node_texts_per_s": alone,
            "two_nodes_texts_per_s": twice,
            "four_nodes_texts_per_s": fourfold,
            "two_over_one": twice / alone,
            "four_over_one": fourfold / alone,
            "fast_alone_texts_per_s": long_alone,
            "fast_and_slow_texts_per_s": unlike_rate,
            "slow_beside_fast": unlike_rate / long_alone,
            "slow_share": slow_share,
        }

    @contextmanager
    def nodes(self, *devices: str) -> Iterator[ScriptedNodes]:
        """Start nodes, and run a job until each has run some batches."""
        with tempfile.TemporaryDirectory(prefix="argosy-scale-") as folder, ExitStack() as stack:
            stack.callback(_restore, dict(os.environ))
            file = Path(folder) / "fleet.toml"
            file.write_text(FLEET, encoding="utf-8")
            os.environ["ARGOSY_FLEET"] = str(file)
            if self.url:
                os.environ["ARGOSY_STORE_URL"] = self.url
            convention.progress(f"{self.store}: starting nodes on {', '.join(devices)}")
            fleet = stack.enter_context(ScriptedNodes(devices, Path(folder) / "home"))
            self.job(fleet, min(len(self.inputs), 200 * len(devices)))
            yield fleet

    def rate(self, fleet: ScriptedNodes, texts: int) -> float:
        """Return the texts a second of a job of `texts`, from its first submission until it is done."""
        rates = [texts / self.job(fleet, texts) for _ in range(self.size.jobs)]
        convention.progress(f"{self.store}, {texts:,} texts: {', '.join(f'{rate:,.0f}' for rate in rates)} texts/s")
        return statistics.median(rates)

    def job(self, fleet: ScriptedNodes, texts: int) -> float:
        """Run a job, verify its rows, and return its seconds. Raises stored.Wrong."""
        with Client(fleet.broker_url, fleet.store_url) as client:
            started = time.monotonic()
            job = client.submit_many(self.work.tasks, self.inputs[:texts], params=self.work.params)
            job.wait(timeout_s=TIMEOUT_S)
            took_s = time.monotonic() - started
        stored.verify(fleet.store_url, job.id, {task: own[:texts] for task, own in self.expected.items()})
        return took_s

    def share_of_slow(self, fleet: ScriptedNodes, since: float) -> float:
        """Return the share of the items that the second node has computed since a time."""
        items = stored.items_by_worker(fleet.store_url, since)
        return items.get("node-1@here", 0) / sum(items.values())


def _restore(environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)


if __name__ == "__main__":
    main()
