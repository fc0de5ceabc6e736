"""Does a fleet stay as quick and as small as it is over an hour of steady work?

    python -m benchmarks.soak [--minutes 60] [--rate TEXTS_PER_S] [--quick | --keep]

A fleet with a gateway, on PostgreSQL, computes two tasks a text at half of the rate that `benchmarks.bulk` measures
(measured first, unless `--rate` gives it). A producer submits jobs of half a window each; a reader reads whole jobs,
progress and lists; jobs that finished two windows ago are purged; an asker puts interactive questions, one at a time. A
transaction stays open and idle for the fourth window. A window is a sixth of the run: ten minutes of the hour.

Figures: `memory_ratio` is by process the median resident memory of the last window over that of the second.
`p99_ratio` is the interactive p99 of the last window over that of the first. `dead_over_living` is by table with over
10,000 living rows the dead rows over them, half a window after the idle transaction's end; `holds` says which bounds are
kept. `points` are those of half windows, and the plot's.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil
import psycopg

from benchmarks import bulk, convention
from benchmarks.disasters.databases import postgresql
from benchmarks.disasters.fleet import GatewayFleet, watched
from benchmarks.disasters.verdict import percentile
from benchmarks.workload import mixed_texts
from producers import Client
from producers.wire.errors import ArgosyError
from results_store.export.text_export import stream
from results_store.store import Store
from workers import settings

WINDOWS = 6
#: The window in which the idle transaction is open, counted from 0.
IDLE_WINDOW = 3

#: The bounds: memory, interactive p99, and dead rows over living ones.
MEMORY_RATIO, P99_RATIO, DEAD_RATIO = 1.05, 1.3, 2.0
#: Tables with fewer living rows are not judged: PostgreSQL vacuums them late.
LIVING_ROWS = 10_000

TEXTS = 2000
ASK_EVERY_S = 0.5
ROWS = "SELECT relname, n_live_tup, n_dead_tup FROM pg_stat_user_tables"


@dataclass(slots=True)
class Samples:
    """The samples, each with its seconds since the start."""

    window_s: float
    began: float = field(default_factory=time.monotonic)
    memory: list[tuple[float, str, float]] = field(default_factory=list)
    waits: list[tuple[float, float]] = field(default_factory=list)
    rows: list[tuple[float, str, int, int]] = field(default_factory=list)
    done: list[tuple[float, int]] = field(default_factory=list)
    purged: int = 0
    refused: int = 0

    @property
    def now(self) -> float:
        return time.monotonic() - self.began

    def memory_mib(self, first: float, last: float) -> dict[str, float]:
        """Return each process's median resident memory between two times, in windows."""
        found: dict[str, list[float]] = defaultdict(list)
        for _, name, mib in self._between(self.memory, first, last):
            found[name].append(mib)
        return {name: round(statistics.median(values), 2) for name, values in sorted(found.items())}

    def wait_ms(self, percent: int, first: float, last: float) -> float | None:
        return percentile([1000 * wait_s for _, wait_s in self._between(self.waits, first, last)], percent)

    def living_and_dead(self, first: float, last: float) -> dict[str, tuple[int, int]]:
        """Return each table's living and dead rows, as they were last seen between two times."""
        return {name: (living, dead) for _, name, living, dead in self._between(self.rows, first, last)}

    def point(self, first: float, last: float) -> dict[str, Any]:
        done = self._between(self.done, first, last)
        took_s = done[-1][0] - done[0][0] if done else 0.0
        return {
            "minute": round(last * self.window_s / 60, 2),
            "results_per_s": round((done[-1][1] - done[0][1]) / took_s, 1) if took_s else None,
            "memory_mib": self.memory_mib(first, last),
            "p50_ms": self.wait_ms(50, first, last),
            "p99_ms": self.wait_ms(99, first, last),
            "living_and_dead_rows": {
                name: rows for name, rows in self.living_and_dead(first, last).items() if sum(rows) > LIVING_ROWS
            },
        }

    def figures(self) -> dict[str, Any]:
        early, late = self.memory_mib(1, 2), self.memory_mib(WINDOWS - 1, WINDOWS)
        memory = {name: round(late[name] / early[name], 3) for name in early if name in late}
        first, last = self.wait_ms(99, 0, 1), self.wait_ms(99, WINDOWS - 1, WINDOWS)
        p99 = round(last / first, 2) if first and last else None
        # from half a window after the idle transaction's end: a look that came a little later
        after = self.living_and_dead(IDLE_WINDOW + 1, IDLE_WINDOW + 1.5)
        dead = {name: round(dead / living, 2) for name, (living, dead) in after.items() if living > LIVING_ROWS}
        return {
            "memory_ratio": memory,
            "p99_first_ms": first,
            "p99_last_ms": last,
            "p99_ratio": p99,
            "dead_over_living": dead,
            "holds": {
                "memory": max(memory.values(), default=0.0) <= MEMORY_RATIO,
                "p99": p99 is not None and p99 <= P99_RATIO,
                "dead_rows": max(dead.values(), default=0.0) < DEAD_RATIO,
            },
            "purged_results": self.purged,
            "questions": len(self.waits),
            "questions_refused": self.refused,
            "points": [self.point(half / 2, (half + 1) / 2) for half in range(2 * WINDOWS)],
        }

    def _between(self, samples: Sequence[Any], first: float, last: float) -> list[Any]:
        return [each for each in samples if first * self.window_s <= each[0] < last * self.window_s]


def main() -> None:
    parser = convention.parser(__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="length of the run (default: 60)")
    parser.add_argument("--rate", type=float, help="texts a second (default: half of what the fleet does)")
    options = parser.parse_args()
    if options.quick:
        options.minutes, options.rate = 0.4, 20.0
    with tempfile.TemporaryDirectory(prefix="argosy-soak-") as home, postgresql() as database:
        os.environ["ARGOSY_STORE_URL"] = database.url
        fleet = GatewayFleet(settings.load(), Path(home) / "fleet")
        with fleet, watched(fleet):
            fleet.start_gateway()
            rate = options.rate or half_of_bulk(fleet)
            samples = Samples(options.minutes * 60 / WINDOWS)
            run(fleet, database.url, rate, samples)
    figures = {"minutes": options.minutes, "texts_per_s": round(rate, 1), **samples.figures()}
    convention.report("soak", figures, keep=options.keep)


def half_of_bulk(fleet: GatewayFleet) -> float:
    """Measure the fleet's rate on the texts of `benchmarks.bulk`, and return half of it."""
    texts = mixed_texts(1200)
    with Client(fleet.broker_url, fleet.store_url) as client:
        bulk.fleet_pass(client, texts[:300])
        rate = bulk.fleet_pass(client, texts)
    convention.progress(f"the fleet does {rate:.0f} texts/s")
    return rate / 2


def run(fleet: GatewayFleet, url: str, rate: float, samples: Samples) -> None:
    """Let everybody work for all windows, and fill the samples."""
    spawning = multiprocessing.get_context("spawn")
    urls = (fleet.broker_url, fleet.store_url)
    others = {
        "producer": spawning.Process(target=produce, args=(*urls, rate, samples.window_s / 2), daemon=True),
        "reader": spawning.Process(
            target=read, args=(fleet.store_url, fleet.gateway_url, samples.window_s / 20), daemon=True
        ),
    }
    for process in others.values():
        process.start()
    stopping = threading.Event()
    with Client(*urls) as client, Store(url, timeout_s=30) as store:
        look_every_s = max(0.5, samples.window_s / 60)
        pids = {name: process.pid for name, process in others.items()}
        duties = {
            "memory": (look_every_s, lambda: look_at_memory(fleet, pids, samples)),
            "rows": (look_every_s, lambda: look_at_rows(url, store, samples)),
            "purge": (samples.window_s / 10, lambda: purge(store, samples)),
            "asker": (ASK_EVERY_S, lambda: ask(client, samples)),
        }
        threads = [threading.Thread(target=repeat, args=(stopping, *duty), name=name) for name, duty in duties.items()]
        for thread in threads:
            thread.start()
        try:
            with ExitStack() as idle:
                for half in range(2 * WINDOWS):
                    if half == 2 * IDLE_WINDOW:
                        idle.enter_context(idle_transaction(url))
                    if half == 2 * IDLE_WINDOW + 2:
                        idle.close()
                    time.sleep(max(0.0, (half + 1) / 2 * samples.window_s - samples.now))
                    convention.progress(str(samples.point(half / 2, (half + 1) / 2)))
        finally:
            stopping.set()
            for thread in threads:
                thread.join()
            for process in others.values():
                process.terminate()
                process.join()


def repeat(stopping: threading.Event, every_s: float, duty: Callable[[], object]) -> None:
    while not stopping.wait(every_s):
        duty()


# --- processes of their own ---


def produce(broker_url: str, store_url: str, rate: float, job_s: float) -> None:
    """Submit one job after another, each for `job_s` seconds, at a steady rate. No two texts are alike."""
    texts = mixed_texts(TEXTS)
    number = 0
    began = time.monotonic()

    def paced(until: float) -> Iterator[str]:
        nonlocal number
        while (now := time.monotonic()) < until:
            due = int((now - began) * rate)
            while number < due:
                yield f"{number} {texts[number % len(texts)]}"
                number += 1
            time.sleep(0.01)

    params = {task: {"truncation": True} for task in bulk.TASKS}
    with Client(broker_url, store_url) as client:
        while True:
            client.submit_many(bulk.TASKS, paced(time.monotonic() + job_s), params=params)


def read(store_url: str, gateway_url: str, every_s: float) -> None:
    """Read lists, progress, and all rows of the newest finished job; the lists by the gateway, too."""
    with Store(store_url, timeout_s=30) as store:
        while True:
            time.sleep(every_s)
            with suppress(httpx.HTTPError):  # the gateway is not up yet
                httpx.get(f"{gateway_url}/api/jobs", timeout=30)
            with suppress(ArgosyError):  # the job has just been purged
                jobs = store.jobs(limit=100)
                for job in jobs[:3]:
                    store.job(job.id)
                for job in [job for job in jobs if job.finished and job.total > 1][:1]:
                    for _ in stream(store, job.id):
                        pass


# --- duties ---


def look_at_memory(fleet: GatewayFleet, others: dict[str, int | None], samples: Samples) -> None:
    pids = {"launcher": os.getpid(), **others}
    pids |= {service.name: service.process.pid for service in fleet.services if service.process}
    by_pid = {pid: name for name, pid in pids.items()}
    for name, pid in list(pids.items()):
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            samples.memory.append((samples.now, name, process.memory_info().rss / 2**20))
            for child in process.children():
                role = _role(child, name, by_pid)
                if role:
                    samples.memory.append((samples.now, role, child.memory_info().rss / 2**20))


def _role(child: psutil.Process, parent: str, by_pid: Mapping[int | None, str]) -> str:
    """Return whose process a child is, and what it runs; nothing for those of other parents than the fleet's."""
    if child.name().startswith("device "):  # forked by the fork server for a worker
        return f"{by_pid.get(int(child.name().split()[1]), parent)}'s device_process"
    if not parent.startswith("worker"):
        return ""
    return f"{parent}'s {child.cmdline()[2].rpartition('.')[2]}"  # python -m workers.models.decoding.decoder_process


def look_at_rows(url: str, store: Store, samples: Samples) -> None:
    with psycopg.connect(url) as connection:
        samples.rows += [(samples.now, *row) for row in connection.execute(ROWS)]
    # purged results were done, too
    samples.done.append((samples.now, samples.purged + sum(job.done for job in store.jobs(limit=100_000))))


def purge(store: Store, samples: Samples) -> None:
    gone = store.retention.purge(finished_before=time.time() - 2 * samples.window_s)
    samples.purged += gone.results


def ask(client: Client, samples: Samples) -> None:
    began = time.monotonic()
    try:
        client.submit("sentiment", f"A fine film, number {samples.now}", priority="interactive").result(timeout_s=60)
    except ArgosyError:
        samples.refused += 1
        return
    samples.waits.append((samples.now, time.monotonic() - began))


@contextmanager
def idle_transaction(url: str) -> Iterator[None]:
    """Keep a transaction open, whose snapshot keeps every dead row from being vacuumed."""
    with psycopg.connect(url) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.execute("SELECT count(*) FROM jobs")
        yield


if __name__ == "__main__":
    main()
