"""Nothing lost, nothing twice, nothing wrong, whatever dies: a real fleet under load, its parts killed one after
another.

    python -m benchmarks.chaos [--store sqlite|postgresql] [--items N] [--kills N] [--seed N] [--quick | --keep]

Two workers serve the scripted model, whose answers are known, and the real text model if it is pulled. Producer
processes submit under idempotency keys and are run again until they end well; beside them someone asks single questions
and waits. Meanwhile are killed at random: device processes, workers, producers, Valkey with and without its data, all
of it at once, PostgreSQL and its sessions; and a worker is stopped until others have its work, and goes on.

Figures: `accepted` and `terminal` count results (one per text and task). `lost` has no row, `doubled` counts rows that
nobody submitted, `wrong` rows that are not what an undisturbed run gives. `forgotten` are items that a producer was
told are accepted and its next run did not find; `miscounted`, how far progress is off the rows. `recovery_*_s` is the
time from a blow to the first result that is stored of what producers had submitted before it, `drain_*_s` to the last
of these (later blows fall into that, too), `stall_max_s` the longest time without any result while work was unfinished.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from benchmarks import convention
from benchmarks.disasters.databases import PostgreSql, postgresql
from benchmarks.disasters.faults import Blow, Faults
from benchmarks.disasters.load import ACTIVE, DEVICE_S, Asker, Producers, scripted_plan
from benchmarks.disasters.producer import Plan
from benchmarks.disasters.progress import Progress
from benchmarks.disasters.verdict import Verdict, drains_s, judged, percentile, recoveries_s
from producers import Client
from results_store.store import Store
from workers import settings
from workers.fleet.local import LocalFleet
from workers.models.sources import model_source

LEASE_S = 3.0
ROOT = Path(__file__).parents[1]

#: Short leases and ages, so that many blows fit into minutes. An attempt counts for every envelope that a killed worker
#: held: with a worker killed every ten seconds, innocent ones would soon reach the usual limit of five.
FLEET = """
[worker]
models = [{models}]
concurrency = 16
threads = 1
grace_s = 2.0
lease_s = {lease_s}
reconcile_every_s = 0.5
publish_overdue_s = 2.0
max_attempts = 50
[models.scripted]
class = "tests.scripted_model:ScriptedModel"
source = {{ path = "{tests}" }}
batch_cost = 2048
batch_rows = 32
[models.scripted.tasks.echo]
kind = "text-classification"
[models.scripted.tasks.shout]
kind = "text-classification"
"""

#: Producer processes, and so jobs, of a run.
PRODUCERS = 25

#: Seconds that a blow and its recovery take on average: what the producers are paced by.
SECONDS_A_KILL = 1.0

#: Blows that come at once after the last, without waiting for its recovery: one in so many.
HASTE = 4

#: Results that must be unfinished when a blow falls, but for the last ones.
LEAST_WORK = 100

#: Texts for the real model, which is the expensive one: one in so many of all, at most.
REAL_SHARE = 50


@dataclass(frozen=True, slots=True)
class Options:
    store: str
    items: int
    kills: int
    seed: int
    scripted_only: bool
    quick: bool
    keep: bool
    home: Path | None

    @property
    def limit_s(self) -> float:
        """Seconds after which a run is given up: something does not recover."""
        return 120 + 15 * self.kills + self.items * sum(DEVICE_S)


def parse() -> Options:
    parser = convention.parser(__doc__)
    parser.add_argument("--store", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--items", type=int, default=20_000, help="texts to submit (default: 20000)")
    parser.add_argument("--kills", type=int, default=100, help="blows to deal (default: 100)")
    parser.add_argument("--seed", type=int, default=1, help="makes the choice of blows repeatable (default: 1)")
    parser.add_argument("--scripted-only", action="store_true", help="leave out the real text model")
    parser.add_argument("--home", type=Path, help="a folder for the fleet, kept afterwards with its logs")
    found = parser.parse_args()
    if found.quick:
        found.items, found.kills, found.scripted_only = 1000, 8, True
    return Options(**vars(found))


def main() -> None:
    options = parse()
    load_before = os.getloadavg()[0]
    with _home(options.home) as home, ExitStack() as stack:
        database = stack.enter_context(postgresql() if options.store == "postgresql" else nullcontext())
        if database is not None:
            os.environ["ARGOSY_STORE_URL"] = database.url
        figures, verdict = _run(options, home, database)
    figures |= {"seed": options.seed, "load_1m_before": round(load_before, 1)}
    for note in verdict.notes:
        convention.progress(note)
    convention.report("chaos", figures, keep=options.keep, variant=options.store)
    if not verdict.clean or verdict.terminal < verdict.accepted:
        sys.exit("chaos: results are lost, doubled or wrong")


@contextmanager
def _home(wanted: Path | None) -> Iterator[Path]:
    if wanted is not None:
        wanted.mkdir(parents=True, exist_ok=True)
        yield wanted
        return
    with tempfile.TemporaryDirectory(prefix="argosy-chaos-") as folder:
        yield Path(folder)


def _run(options: Options, home: Path, database: PostgreSql | None) -> tuple[dict[str, Any], Verdict]:
    real = not options.scripted_only and _pulled()
    models = '"scripted", "text"' if real else '"scripted"'
    file = home / "chaos.toml"
    file.write_text(FLEET.format(models=models, lease_s=LEASE_S, tests=ROOT / "tests"), encoding="utf-8")
    os.environ["ARGOSY_FLEET"] = str(file)
    convention.progress(f"starting a fleet on {options.store}, {'with' if real else 'without'} the real text model")
    with LocalFleet(settings.load(), home / "fleet", flower=False, workers_per_device=2) as fleet, watched(fleet):
        os.environ |= {"ARGOSY_BROKER_URL": fleet.broker_url, "ARGOSY_STORE_URL": fleet.store_url}  # for the producers
        with Client() as client, Store(fleet.store_url, timeout_s=10) as store:
            texts = _real_texts(options) if real else []
            undisturbed = _undisturbed(client, texts)
            producers = Producers(_plans(options, texts), home / "producers")
            scene = Scene(options, fleet, producers, Asker(client), Progress(store))
            blows = scene.play(Faults(fleet, producers, database, Random(options.seed), lease_s=LEASE_S))
            convention.progress("judging")
            verdict = judged(store, producers, scene.asker.asked, undisturbed)
            return scene.figures(blows, verdict, len(texts)), verdict


@contextmanager
def watched(fleet: LocalFleet) -> Iterator[None]:
    """Have the fleet start again whatever ends, as `argosy up` does."""
    thread = threading.Thread(target=fleet.watch, name="watch")
    thread.start()
    try:
        yield
    finally:
        fleet.request_stop()
        thread.join()


def _pulled() -> bool:
    found = settings.load()
    wanted = [found.models["text"].source, found.data["bbc"]["source"], found.data["ratings"]["source"]]
    return all(model_source.locate(model_source.parse(s, where="source"), model_source.cache_folder()) for s in wanted)


def _real_texts(options: Options) -> list[str]:
    from benchmarks.workload import mixed_texts

    return mixed_texts(options.items // REAL_SHARE, seed=options.seed)


def _undisturbed(client: Client, texts: list[str]) -> dict[str, Any]:
    """The real model's answers while nobody is killed."""
    if not texts:
        return {}
    convention.progress(f"an undisturbed run of {len(texts)} texts through the real model")
    job = client.submit_many("sentiment", texts, name="undisturbed")
    job.wait(timeout_s=600)
    return {texts[row.seq]: row.output for row in job.results()}


def _plans(options: Options, texts: list[str]) -> list[Plan]:
    random = Random(options.seed)
    number = min(PRODUCERS, max(2, options.kills // 4))
    pace = options.items / (ACTIVE * options.kills * SECONDS_A_KILL)
    scripted = options.items - len(texts)
    plans = [
        scripted_plan(f"plan-{n:02}", scripted // number + (n < scripted % number), random, pace) for n in range(number)
    ]
    parts = 4 if texts else 0
    plans += [Plan(f"real-{n}", ["sentiment"], texts[n::parts], pace / 4) for n in range(parts)]
    random.shuffle(plans)
    return plans


@dataclass(slots=True)
class Scene:
    """The fleet under load, from the first submission to the last result."""

    options: Options
    fleet: LocalFleet
    producers: Producers
    asker: Asker
    progress: Progress

    def play(self, faults: Faults) -> list[Blow]:
        """Deal the blows while there is work, wait until all is done, and return the blows."""
        parts = (self.progress, self.producers, self.asker)
        try:
            for part in parts:
                part.start()
            blows = self._strike(faults)
            convention.progress("no more blows; waiting for the rest")
            self.producers.allowed = len(self.producers.plans)
            self.progress.wait_for(lambda: self.producers.finished, self._left_s())
            self.asker.stop()
            self.progress.wait_for(lambda: self.progress.unfinished == 0, self._left_s())
        finally:
            for part in reversed(parts):
                part.stop()
        return blows

    def figures(self, blows: list[Blow], verdict: Verdict, real_items: int) -> dict[str, Any]:
        felt = recoveries_s(blows, verdict.spans)
        drains = drains_s(blows, verdict.spans)
        all_felt = [seconds for found in felt.values() for seconds in found]
        waits_s = self.asker.waits_s
        return {
            "store": self.options.store,
            "items": self.options.items,
            "real_model_items": real_items,
            "accepted": verdict.accepted,
            "terminal": verdict.terminal,
            "lost": verdict.lost,
            "doubled": verdict.doubled,
            "wrong": verdict.wrong + self.asker.wrong,
            "forgotten": verdict.forgotten,
            "miscounted": verdict.miscounted,
            "kills": len(blows),
            "kills_by_kind": dict(sorted(Counter(blow.kind for blow in blows).items())),
            "recovery_p50_s": percentile(all_felt, 50),
            "recovery_p95_s": percentile(all_felt, 95),
            "recovery_max_s": round(max(all_felt, default=0.0), 3),
            "recovery_max_by_kind_s": {kind: round(max(found), 3) for kind, found in sorted(felt.items())},
            "drain_p50_s": percentile(drains, 50),
            "drain_p95_s": percentile(drains, 95),
            "stall_max_s": round(self.progress.longest_stall_s, 1),
            "producer_runs": self.producers.runs,
            "questions": len(self.asker.asked),
            "questions_refused": self.asker.refused,
            "question_p50_s": percentile(waits_s, 50),
            "question_p95_s": percentile(waits_s, 95),
            "wall_s": round(self.progress.elapsed_s, 1),
        }

    def _strike(self, faults: Faults) -> list[Blow]:
        random = Random(self.options.seed)
        blows: list[Blow] = []
        for kind in faults.sequence(self.options.kills):
            self.progress.wait_for(self._enough_work, self._left_s())
            blows.append(faults.strike(kind))
            convention.progress(f"{len(blows)}/{self.options.kills} {blows[-1].kind}; {self.progress}")
            self.producers.allowed = ACTIVE + len(self.producers.plans) * len(blows) // self.options.kills
            if random.randrange(HASTE):
                self.progress.wait_for_more(self._left_s())
                time.sleep(random.uniform(0.2, 1.5))
        return blows

    def _enough_work(self) -> bool:
        """So much that it is not all done before the blow falls; at the very end, any."""
        least = 1 if self.producers.finished else LEAST_WORK
        return self.progress.unfinished >= least

    def _left_s(self) -> float:
        return self.options.limit_s - self.progress.elapsed_s


if __name__ == "__main__":
    main()
