"""Nothing lost, nothing twice, nothing wrong, nothing stuck, whatever happens to a fleet under load.

    python -m benchmarks.chaos [--store sqlite|postgresql] [--items N] [--kills N] [--seed N] [--kinds NAME,…]

Two workers serve the scripted model, whose answers are known, and the real text model if it is pulled. Producer
processes submit under idempotency keys and are run again until they end well. Beside them two askers, one with the
Python client and one with the gateway, submit single questions and wait for the answers. Meanwhile faults of all kinds
(`benchmarks.disasters.faults.KINDS`) come at random moments: processes are killed or stand still, threads raise or are
held up, clocks are wrong, links drop packets, Redis refuses, descriptors or memory are short.

Figures: `accepted` and `terminal` count results (one per text and task). `lost` has no row, `doubled` counts rows that
nobody submitted, `wrong` rows that differ from those of an undisturbed run. `forgotten` are items that a producer was
told are accepted and its next run did not find; `miscounted` is the difference between progress and rows. `given_up`
says why a run was ended before all work was done. `workers_idle` are workers that live and take no work at the end,
`gateway_silent` says that the gateway no longer answers, `askers_stuck` counts those whose call does not return.
`recovery_*_s` is the time from a blow, or from its end if it lasts, to the first result that is stored of the work
submitted before it, `drain_*_s` to the last of these (later blows fall into that, too). Silent links count in
`silent_recovery_max_s` alone, the longest time without any result from the silence's end to the next blow: held work may
end without the link. `stall_max_s` is the longest time without any result while work was unfinished.

`--keep` writes results/chaos-STORE-SEED.json. The same command again, at the same commit, then ends at once.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from benchmarks import convention
from benchmarks.disasters import agent
from benchmarks.disasters.databases import PostgreSql, postgresql
from benchmarks.disasters.faults import KINDS, Blow, Stage, chosen, sequence, strike
from benchmarks.disasters.fleet import LinkedFleet, watched
from benchmarks.disasters.links import Link
from benchmarks.disasters.load import ACTIVE, Asker, ClientDoor, GatewayDoor, Producers, scripted_plan
from benchmarks.disasters.producer import Plan
from benchmarks.disasters.progress import Progress
from benchmarks.disasters.verdict import Verdict, drains_s, judged, percentile, recoveries_s, stalls_s, unshifted
from producers import Client
from producers.wire.errors import ArgosyError
from results_store.store import Store
from workers import settings
from workers.models.sources import model_source

LEASE_S = 3.0
WORKERS = 2
ROOT = Path(__file__).parents[1]

#: Short leases and ages, so that many blows fit into minutes. A device may be silent for longer than a thread is held.
FLEET = """
[worker]
models = [{models}]
concurrency = 16
threads = 1
grace_s = 2.0
lease_s = {lease_s}
reconcile_every_s = 0.5
publish_overdue_s = 2.0
batch_timeout_s = 10.0
[models.scripted]
class = "tests.scripted_model:ScriptedModel"
source = {{ path = "{tests}" }}
batch_cost = 2048
batch_rows = 16
[models.scripted.tasks.echo]
kind = "text-classification"
[models.scripted.tasks.say]
kind = "text-classification"
"""

#: Producer processes, and so jobs, of a run.
PRODUCERS = 25

#: Seconds between the end of a blow and the next, on average, and the part of that time in which the devices work. The
#: producers are paced by the first and the texts' lengths by the second: blows meet work from the first to the last.
BETWEEN_S = 2.0
BUSY = 0.8

#: Blows that come at once after the last, without waiting for its recovery: one in so many.
HASTE = 4

#: Results that must be unfinished when a blow falls, but for the last ones.
LEAST_WORK = 10

#: Seconds within which each living worker must take work once all blows are over, and questions of a round for that.
ROLL_CALL_S = 60.0
ROLL_CALL = 100

#: Texts for the real model, which is the expensive one: one in so many of all, at most.
REAL_SHARE = 50


@dataclass(frozen=True, slots=True)
class Options:
    store: str
    items: int
    kills: int
    seed: int
    kinds: list[str]
    scripted_only: bool
    quick: bool
    keep: bool
    home: Path | None

    @property
    def limit_s(self) -> float:
        """Seconds after which a run is given up: something does not recover."""
        return 300 + 3 * self.blows_s

    @property
    def blows_s(self) -> float:
        """Seconds that all blows take, with the times between."""
        lasts_s = [sum(KINDS[name].lasts_s) / 2 for name in self.kinds]
        return self.kills * (BETWEEN_S + statistics.mean(lasts_s))


def parse() -> Options:
    parser = convention.parser(__doc__)
    parser.add_argument("--store", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--items", type=int, default=20_000, help="texts to submit (default: 20000)")
    parser.add_argument("--kills", type=int, default=100, help="blows to deal (default: 100)")
    parser.add_argument("--seed", type=int, default=1, help="makes the choice of blows repeatable (default: 1)")
    parser.add_argument(
        "--kinds", default="", help="kinds or groups of faults, with commas between (default: all): "
        + ", ".join(sorted({kind.group for kind in KINDS.values()} | KINDS.keys())),
    )  # fmt: skip
    parser.add_argument("--scripted-only", action="store_true", help="leave out the real text model")
    parser.add_argument("--home", type=Path, help="a folder for the fleet, kept afterwards with its logs")
    found = parser.parse_args()
    if found.quick:
        found.items, found.kills, found.scripted_only = 1000, 8, True
        found.kinds = found.kinds or "kills"
    try:
        found.kinds = chosen(
            [name for name in found.kinds.split(",") if name], with_postgresql=found.store == "postgresql"
        )
    except ValueError as error:
        parser.error(str(error))
    return Options(**vars(found))


def main() -> None:
    options = parse()
    variant = f"{options.store}-{options.seed}"
    if options.keep and _kept(convention.RESULTS / f"chaos-{variant}.json", options):
        convention.progress(f"this run is kept already, as benchmarks/results/chaos-{variant}.json")
        return
    load_before = os.getloadavg()[0]
    with _home(options.home) as home, ExitStack() as stack:
        agent.install(home / "agent")
        agent.listen()
        database = stack.enter_context(postgresql() if options.store == "postgresql" else nullcontext())
        links: dict[str, Link] = {}
        if database is not None:
            links["postgresql"] = stack.enter_context(Link(lambda: database.socket))
            os.environ["ARGOSY_STORE_URL"] = f"postgresql://postgres@127.0.0.1:{links['postgresql'].port}/postgres"
        figures, verdict, clean = _run(options, home, database, links)
    figures |= {"seed": options.seed, "load_1m_before": round(load_before, 1)}
    for note in verdict.notes:
        convention.progress(note)
    convention.report("chaos", figures, keep=options.keep, variant=variant)
    if not clean:
        sys.exit("chaos: results are lost, doubled or wrong, or something is stuck")


def _kept(file: Path, options: Options) -> bool:
    """Return whether the same run at this commit ended well and is kept in this file."""
    if not file.is_file():
        return False
    result = json.loads(file.read_text(encoding="utf-8"))
    figures = result["figures"]
    wanted = {"items": options.items, "kills": options.kills, "kinds": options.kinds, "clean": True}
    same = all(figures.get(name) == value for name, value in wanted.items())
    return same and result["versions"]["commit"] == convention.versions()["commit"]


@contextmanager
def _home(wanted: Path | None) -> Iterator[Path]:
    if wanted is not None:
        wanted.mkdir(parents=True, exist_ok=True)
        yield wanted
        return
    with tempfile.TemporaryDirectory(prefix="argosy-chaos-") as folder:
        yield Path(folder)


def _run(
    options: Options, home: Path, database: PostgreSql | None, links: dict[str, Link]
) -> tuple[dict[str, Any], Verdict, bool]:
    real = not options.scripted_only and _pulled()
    models = '"scripted", "text"' if real else '"scripted"'
    file = home / "chaos.toml"
    file.write_text(FLEET.format(models=models, lease_s=LEASE_S, tests=ROOT / "tests"), encoding="utf-8")
    os.environ["ARGOSY_FLEET"] = str(file)
    convention.progress(f"starting a fleet on {options.store}, {'with' if real else 'without'} the real text model")
    fleet = LinkedFleet(settings.load(), home / "fleet", workers_per_device=WORKERS)
    with fleet.link, fleet, watched(fleet):
        fleet.start_gateway()
        os.environ |= {"ARGOSY_BROKER_URL": fleet.broker_url, "ARGOSY_STORE_URL": fleet.store_url}  # for the producers
        # the judge sees the database itself, not the link
        with Client() as client, Store(database.url if database else fleet.store_url, timeout_s=10) as store:
            texts = _real_texts(options) if real else []
            undisturbed = _undisturbed(client, texts)
            producers = Producers(_plans(options, texts), home / "producers")
            askers = [Asker(ClientDoor(client)), Asker(GatewayDoor(fleet.gateway_url), "request")]
            scene = Scene(options, producers, askers, Progress(store))
            stage = Stage(fleet, producers, database, {**links, "redis": fleet.link}, Random(options.seed))
            scene.play(stage)
            idle = _idle(store, stage)
            convention.progress("judging")
            asked = {place: text for asker in askers for place, text in asker.asked.items()}
            verdict = judged(store, producers, asked, undisturbed)
            figures = scene.figures(verdict, stage, len(texts))
            stuck = {
                "workers_idle": idle,
                "gateway_silent": not _answers(GatewayDoor(fleet.gateway_url)),
                "askers_stuck": sum(asker.stuck for asker in askers),
            }
            clean = verdict.clean and verdict.terminal == verdict.accepted and not any(stuck.values())
            clean = clean and not scene.given_up and not figures["wrong"]
            return {"clean": clean, **figures, **stuck}, verdict, clean


def _idle(store: Store, stage: Stage) -> int:
    """Return the number of workers that live and take no work, though there is enough for all for a minute."""
    convention.progress("a roll call of the workers")
    began, deadline = time.time(), time.monotonic() + ROLL_CALL_S
    with Client() as client:
        while True:
            with suppress(ArgosyError):
                for number in range(ROLL_CALL):
                    client.submit("echo", f"sleep 0.01 roll call {began} {number}", durable=False)
            time.sleep(2)
            at_work = {batch.worker for batch in store.flight.recent(limit=1000, since=began)}
            idle = max(0, len(stage.workers) - len(at_work))
            if not idle or time.monotonic() > deadline:
                return idle


def _answers(gateway: GatewayDoor) -> bool:
    """Return whether the gateway answers to ten requests in a row, within a minute or so."""
    deadline = time.monotonic() + ROLL_CALL_S
    while time.monotonic() < deadline:
        with suppress(ArgosyError):
            for _ in range(10):
                gateway.request("GET", "/api/jobs")
            return True
    return False


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
    number = min(PRODUCERS, max(2 * ACTIVE, options.kills // 4))
    pace = options.items / (ACTIVE * options.blows_s)
    scripted = options.items - len(texts)
    device_s = BUSY * WORKERS * options.blows_s / options.items
    plans = [
        scripted_plan(f"plan-{n:02}", scripted // number + (n < scripted % number), random, pace, device_s)
        for n in range(number)
    ]
    parts = 4 if texts else 0
    plans += [Plan(f"real-{n}", ["sentiment"], texts[n::parts], pace / 4) for n in range(parts)]
    random.shuffle(plans)
    return plans


@dataclass(slots=True)
class Scene:
    """The fleet under load, from the first submission to the last result."""

    options: Options
    producers: Producers
    askers: Sequence[Asker]
    progress: Progress
    blows: list[Blow] = field(default_factory=list)
    began: float = 0.0
    given_up: str = ""

    def play(self, stage: Stage) -> None:
        """Deal the blows while there is work, and wait until all is done or stuck."""
        parts = (self.progress, self.producers, *self.askers)
        self.began = time.time()
        try:
            for part in parts:
                part.start()
            self._strike(stage)
            convention.progress("no more blows; waiting for the rest")
            self.producers.allowed = len(self.producers.plans)
            self.progress.wait_for(lambda: self.producers.finished, self._left_s())
            for asker in self.askers:
                asker.stop()
            self.progress.wait_for_all(self._left_s())
        except TimeoutError as error:
            self.given_up = str(error)
            convention.progress(f"given up: {error}")
        finally:
            for part in reversed(parts):
                part.stop()

    def figures(self, verdict: Verdict, stage: Stage, real_items: int) -> dict[str, Any]:
        spans = [(unshifted(queued, self.began), unshifted(stored, self.began)) for queued, stored in verdict.spans]
        felt = recoveries_s([blow for blow in self.blows if not KINDS[blow.kind].silent], spans)
        others = [seconds for found in felt.values() for seconds in found]
        for blow, seconds in zip(self.blows, stalls_s(self.blows, spans), strict=True):
            if KINDS[blow.kind].silent:
                felt.setdefault(blow.kind, []).append(seconds)
        silent = [seconds for kind, found in felt.items() if KINDS[kind].silent for seconds in found]
        drains = drains_s([blow for blow in self.blows if not KINDS[blow.kind].silent], spans)
        waits_s = [wait_s for asker in self.askers for wait_s in asker.waits_s]
        return {
            "store": self.options.store,
            "items": self.options.items,
            "real_model_items": real_items,
            "accepted": verdict.accepted,
            "terminal": verdict.terminal,
            "lost": verdict.lost,
            "doubled": verdict.doubled,
            "wrong": verdict.wrong + sum(asker.wrong for asker in self.askers),
            "forgotten": verdict.forgotten,
            "miscounted": verdict.miscounted,
            "looked_again": verdict.looked_again,
            "given_up": self.given_up,
            "kills": len(self.blows),
            "kinds": self.options.kinds,
            "kills_by_kind": dict(sorted(Counter(blow.kind for blow in self.blows).items())),
            "threads": dict(sorted(stage.struck_threads.items())),
            "recovery_p50_s": percentile(others, 50),
            "recovery_p95_s": percentile(others, 95),
            "recovery_max_s": round(max(others, default=0.0), 3),
            "silent_recovery_max_s": round(max(silent, default=0.0), 3),
            "recovery_max_by_kind_s": {kind: round(max(found), 3) for kind, found in sorted(felt.items())},
            "drain_p50_s": percentile(drains, 50),
            "drain_p95_s": percentile(drains, 95),
            "stall_max_s": round(self.progress.longest_stall_s, 1),
            "producer_runs": self.producers.runs,
            "questions": sum(len(asker.asked) for asker in self.askers),
            "questions_refused": sum(asker.refused for asker in self.askers),
            "question_p50_s": percentile(waits_s, 50),
            "question_p95_s": percentile(waits_s, 95),
            "wall_s": round(self.progress.elapsed_s, 1),
        }

    def _strike(self, stage: Stage) -> None:
        random = Random(self.options.seed)
        for name in sequence(self.options.kinds, self.options.kills, random):
            self.progress.wait_for(self._enough_work, self._left_s())
            blow = strike(stage, name)
            self.blows.append(blow)
            convention.progress(f"{len(self.blows)}/{self.options.kills} {blow}; {self.progress}")
            self.producers.allowed = ACTIVE + len(self.producers.plans) * len(self.blows) // self.options.kills
            if KINDS[name].silent:  # held work may end without the link
                self.progress.wait_for_newer(self._left_s())
            elif random.randrange(HASTE):
                self.progress.wait_for_more(self._left_s())
                time.sleep(random.uniform(0.2, 1.5))

    def _enough_work(self) -> bool:
        """So much that it is not all done before the blow falls; at the very end, any."""
        least = 1 if self.producers.finished else LEAST_WORK
        return self.progress.unfinished >= least

    def _left_s(self) -> float:
        return self.options.limit_s - self.progress.elapsed_s


if __name__ == "__main__":
    main()
