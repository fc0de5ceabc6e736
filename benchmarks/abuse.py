"""Does another tenant notice an attack?

    python -m benchmarks.abuse [--attacks NAME,…] [--seconds S] [--rounds N] [--store sqlite|postgresql]
        [--quick | --keep]

For each attack (`benchmarks.abusing.attacks.ATTACKS`, with its rate) three rounds, each with a fleet of its own:
broker, store, a worker, and a gateway with 1,024 descriptors. The text and the vision model are real in the worker;
the device sleeps, at a quarter of the rate that a core of the host feeds in large batches, where the host is the
fleet, its broker and its database. Small batches cost twice as much: bulk takes about half a core, the questions take
another, and a core is spare. A bulk job always waits, and a tenant asks 25 interactive questions a second through the
gateway, each on a new connection, and as many through the client. First without the attack, then under it; attackers
are processes of their own, niced to 19. Every answer is verified.

Figures, by attack and the worst of all: `p99_ratio` is the tenant's interactive p99 under attack over the quiet one,
of the door that suffers more; `bulk_share` the texts a second of the bulk job over those without the attack;
`memory_ratio` the highest PSS of the fleet's processes together over the highest one without the attack. These are
the medians of the rounds; `p99_ratios` has each round's. `stalls` counts the times of over 2 s without a result of
bulk, or without an answer through a door, in all rounds. `refused` counts questions without a right answer, `stuck`
says why the bulk job did not end after the attack. `sent_per_s` is the rate that the attacker reached, and
`others_cpu_share` the part of the machine that other programs used. `holds` compares the worst with the bounds.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from resource import RLIMIT_NOFILE, prlimit
from typing import Any
from unittest.mock import patch

import msgspec
import psutil

from benchmarks import convention, host, interactive
from benchmarks.abusing import victims
from benchmarks.abusing.attacks import ATTACKS, Target
from benchmarks.abusing.victims import Answer
from benchmarks.disasters.databases import PostgreSql, postgresql
from benchmarks.disasters.fleet import GatewayFleet, watched
from benchmarks.scripted import cpu, models, trees
from benchmarks.scripted.workload import Expected, Texts
from producers.gateway.keys import new_key
from producers.wire.messages import new_id
from results_store.export.text_export import stream
from results_store.records import NewEnvelope, NewJob, ResultState
from results_store.store import Store
from workers import settings

FLEET = """
[worker]
models = ["text", "vision"]
profile = "cpu"
[models.text]
class = "benchmarks.scripted.models:ScriptedText"
backend = "torch"
batch_cost = 4096
[models.vision]
class = "benchmarks.scripted.models:ScriptedVision"
backend = "torch"
batch_cost = 512
"""

#: The bounds of the worst figures.
P99_RATIO, BULK_SHARE, MEMORY_RATIO = 2.0, 0.7, 1.5

#: The figures of an attack that are medians of its rounds.
MEDIANS = ("p99_ratio", "bulk_share", "memory_ratio", "quiet_bulk_per_s", "quiet_memory_mib")

#: Seconds without a result that count as a stall.
STALL_S = 2.0

#: Descriptors of the gateway, as many systems have them.
DESCRIPTORS = 1024

LOOK_EVERY_S = 0.2
WARM_UP_S = 5.0

#: Texts that measure what the host feeds.
FED = 8000

#: Tokens a second of the device in a smoke run, and the part of an attack's rate.
QUICK_TOKENS_PER_S, QUICK_SHARE = 10_000, 0.1


class Window(msgspec.Struct, frozen=True):
    """A part of a run: its figures."""

    p99_s: dict[str, float]
    bulk_per_s: float
    stalls: int
    memory_mib: float
    refused: int


@dataclass(slots=True)
class Watch:
    """Looks at the bulk jobs' progress and the fleet's memory, in a thread of its own."""

    store: Store
    fleet: GatewayFleet
    done: list[tuple[float, int]] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)
    _stopping: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self._stopping.wait(LOOK_EVERY_S):
            done = sum(job.done for job in self.store.jobs(limit=1000, tenant=""))
            self.done.append((time.monotonic(), done))
            self.memory.append((time.monotonic(), pss_mib(self.fleet.pids)))

    @contextmanager
    def watching(self) -> Iterator[None]:
        thread = threading.Thread(target=self.run, name="watch of the bulk jobs")
        thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            thread.join()

    def window(self, answers: Sequence[Answer], begin: float, end: float) -> Window:
        mine = [answer for answer in answers if begin <= answer.due < end]
        doors = {name: [answer for answer in mine if answer.door == name] for name in ("client", "gateway")}
        done = [(at, count) for at, count in self.done if begin <= at < end]
        more = [at for (_, before), (at, after) in pairwise(done) if after > before]
        moments = [more, *([answer.answered for answer in own if not answer.fault] for own in doors.values())]
        return Window(
            p99_s={name: interactive.p99([answer.waited_s for answer in own]) for name, own in doors.items()},
            bulk_per_s=(done[-1][1] - done[0][1]) / (done[-1][0] - done[0][0]) / len(Texts.tasks),
            stalls=sum(stalls(own, begin, end) for own in moments),
            memory_mib=max(mib for at, mib in self.memory if begin <= at < end),
            refused=sum(bool(answer.fault) for answer in mine),
        )


def main() -> None:
    parser = convention.parser(__doc__)
    parser.add_argument("--attacks", default=",".join(ATTACKS), help="names with commas between (default: all)")
    parser.add_argument("--seconds", type=float, default=40.0, help="of each attack, and as long without (default: 40)")
    parser.add_argument("--rounds", type=int, default=3, help="of each attack (default: 3)")
    parser.add_argument("--store", choices=["sqlite", "postgresql"], default="sqlite")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stopped from outside: end every process all the same
    names = options.attacks.split(",")
    if unknown := set(names) - ATTACKS.keys():
        parser.error(f"--attacks: there is no {', '.join(sorted(unknown))}; there are {', '.join(ATTACKS)}")
    share = 1.0
    if options.quick:
        options.seconds, options.rounds, share, rate = 3.0, 1, QUICK_SHARE, QUICK_TOKENS_PER_S
    else:
        rate = int(tokens_fed(options.store) / 4)
    os.environ[models.DEVICE] = str(rate)
    texts, expected, _ = Texts().made(600 if options.quick else 3000)
    found = {}
    for together in [names] if options.quick else [[name] for name in names]:
        name = "+".join(together)
        rounds = []
        for _ in range(options.rounds):
            rounds.append(run(options, together, share, texts, expected))
            convention.progress(f"{name}: {rounds[-1]}")
        found[name] = over(rounds)
    convention.report("abuse", summary(found, options, rate), keep=options.keep, variant=options.store)


def tokens_fed(store: str) -> float:
    """Return the tokens a second that a core of the host feeds in large batches, with its database."""
    with patch.dict(os.environ), _database(store) as database:
        before = database.cpu_s() if database else 0.0
        url = database.url if database else None
        fed = host.measured(host.ROOT, "texts", "nothing", FED, store_url=url)
        database_s = database.cpu_s() - before if database else 0.0
    texts = FED + FED // 5  # with the warm-up
    return 1e6 / (fed["host_cpu_us"] + 1e6 * database_s / texts) * fed["tokens_per_text"]


@contextmanager
def _database(store: str) -> Iterator[PostgreSql | None]:
    """Run the fleets of the block on a PostgreSQL of their own, or on SQLite."""
    if store == "sqlite":
        yield None
        return
    with postgresql() as database:
        os.environ["ARGOSY_STORE_URL"] = database.url
        yield database


def over(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the figures of an attack over its rounds."""
    merged: dict[str, Any] = {"p99_ratios": [one["p99_ratio"] for one in rounds]}
    merged |= {name: statistics.median(one[name] for one in rounds) for name in MEDIANS}
    merged |= {name: sum(one[name] for one in rounds) for name in ("stalls", "refused")}
    merged["stuck"] = "; ".join(one["stuck"] for one in rounds if one["stuck"])
    merged["others_cpu_share"] = max(one["others_cpu_share"] for one in rounds)
    return merged | {name: [one[name] for one in rounds] for name in ("quiet_p99_ms", "p99_ms", "sent_per_s")}


def summary(found: dict[str, dict[str, Any]], options: argparse.Namespace, rate: int) -> dict[str, Any]:
    """Return the worst figures, whether they hold, and those of each attack."""
    worst = {
        "p99_ratio_worst": max(own["p99_ratio"] for own in found.values()),
        "bulk_share_worst": min(own["bulk_share"] for own in found.values()),
        "stalls": sum(own["stalls"] for own in found.values()),
        "memory_ratio_worst": max(own["memory_ratio"] for own in found.values()),
        "refused": sum(own["refused"] for own in found.values()),
    }
    holds = {
        "p99": worst["p99_ratio_worst"] <= P99_RATIO,
        "bulk": worst["bulk_share_worst"] >= BULK_SHARE,
        "stalls": worst["stalls"] == 0,
        "memory": worst["memory_ratio_worst"] <= MEMORY_RATIO,
        "refused": worst["refused"] == 0,
        "work_ends": not any(own["stuck"] for own in found.values()),
    }
    common = {
        "store": options.store,
        "seconds": options.seconds,
        "rounds": options.rounds,
        "scripted_device_tokens_per_s": rate,
    }
    return {**worst, "holds": holds, **common, "by_attack": found}


def run(
    options: argparse.Namespace, names: Sequence[str], share: float, texts: list[str], expected: Expected
) -> dict[str, Any]:
    """Return the figures of attacks that come together. Raises SystemExit for a wrong answer."""
    with tempfile.TemporaryDirectory(prefix="argosy-abuse-") as folder, ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ))
        home = Path(folder)
        trees.link_cache(home / "cache")
        (home / "fleet.toml").write_text(FLEET, encoding="utf-8")
        os.environ |= {"ARGOSY_CACHE": str(home / "cache"), "ARGOSY_FLEET": str(home / "fleet.toml")}
        database = stack.enter_context(_database(options.store))
        fleet = stack.enter_context(GatewayFleet(settings.load(), home / "fleet", gateway=()))
        stack.enter_context(watched(fleet))
        fleet.start_gateway()
        assert fleet.gateway.process
        prlimit(fleet.gateway.process.pid, RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
        store = stack.enter_context(Store(fleet.store_url, timeout_s=30))
        target = home / "target.json"
        target.write_bytes(msgspec.json.encode(target_of(fleet, store, share)))
        urls = victims.Urls(fleet.broker_url, fleet.store_url, fleet.gateway_url, key_of(store, victims.TENANT))
        watch, stuck = Watch(store, fleet), ""
        try:
            with (
                interactive.load(fleet.broker_url, fleet.store_url, texts),
                victims.asking(urls, texts, expected["sentiment"]) as answers,
                watch.watching(),
            ):
                time.sleep(1.0 if options.quick else WARM_UP_S)
                quiet = _passed(options.seconds, database)
                with ExitStack() as attacks:
                    sent = [attacks.enter_context(attacking(name, target)) for name in names]
                    attacked = _passed(options.seconds, database)
        except interactive.Unfinished as error:
            stuck = str(error)
        faults = [answer.fault for answer in answers if answer.fault]
        for fault in sorted(set(faults))[:5]:
            convention.progress(f"{faults.count(fault)} of the tenant's questions: {fault}"[:300])
        check(store, [fault for fault in faults if fault.startswith("wrong")], expected)
        figures = compared(watch.window(answers, *quiet[:2]), watch.window(answers, *attacked[:2]))
        return figures | {
            "stuck": stuck,
            "sent_per_s": [round(own[0] / options.seconds, 1) for own in sent],
            "others_cpu_share": host.rounded(max(quiet[2], attacked[2])),
        }


def _passed(seconds: float, database: PostgreSql | None) -> tuple[float, float, float]:
    """Let some seconds pass; return their begin, their end, and the part of the machine's CPU that others used."""

    def others_s() -> float:
        return cpu.machine() - cpu.own() - (database.cpu_s() if database else 0.0)

    begin, others = time.monotonic(), others_s()
    time.sleep(seconds)
    end, others = time.monotonic(), others_s() - others
    return begin, end, max(0.0, others / (end - begin) / len(os.sched_getaffinity(0)))


def target_of(fleet: GatewayFleet, store: Store, share: float) -> Target:
    """Make the attacker's key, and a job of the attacker's that no worker serves."""
    key, job, now = key_of(store, "attacker"), new_id(), time.time()
    row = NewEnvelope(
        id=new_id(), job=job, model="absent", priority=9, items=1, results=1, payload=b"{}",
        content_type="application/json", created_at=now,
    )  # fmt: skip
    store.add_envelopes([row], jobs=[NewJob(id=job, priority=9, created_at=now, tenant="attacker")])
    address, _, port = fleet.gateway_url.removeprefix("http://").partition(":")
    return Target(address, int(port), key, job, fleet.broker_url, share)


def key_of(store: Store, tenant: str) -> str:
    text, key = new_key(tenant, tenant, created_at=time.time())
    assert store.keys.add(key)
    return text


@contextmanager
def attacking(name: str, target: Path) -> Iterator[list[int]]:
    """Have an attacker at work until left; the number of what it sent is in the list then."""
    command = [sys.executable, "-m", "benchmarks.abusing.attacks", name, str(target)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    sent: list[int] = []
    try:
        convention.progress(f"under attack: {process.stdout.readline().strip()}")
        yield sent
    finally:
        process.terminate()
        said, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{name}: the attacker failed, see above")
    sent.append(int(said))


def check(store: Store, wrong: list[str], expected: Expected) -> None:
    """Compare every row of the bulk jobs with its expected output. Raises SystemExit if any is wrong.

    The last jobs are cancelled at the end of the attack.
    """
    for job in store.jobs(limit=1000, tenant=""):
        for row in stream(store, job.id):
            right = row.state is ResultState.SUCCEEDED and row.output[:1] == expected[row.task][row.seq]
            if not right and row.state is not ResultState.CANCELLED:
                wrong.append(f"item {row.seq} of {job.id}, {row.task}: {row.state} {row.output} {row.error}")
    if wrong:
        raise SystemExit(f"{len(wrong)} answers are wrong: {wrong[0]}")


def compared(quiet: Window, attacked: Window) -> dict[str, Any]:
    ratios = {door: attacked.p99_s[door] / quiet.p99_s[door] for door in quiet.p99_s}
    return {
        "p99_ratio": host.rounded(max(ratios.values())),
        "bulk_share": host.rounded(attacked.bulk_per_s / quiet.bulk_per_s),
        "stalls": attacked.stalls,
        "memory_ratio": host.rounded(attacked.memory_mib / quiet.memory_mib),
        "refused": attacked.refused,
        "quiet_p99_ms": {door: round(1000 * own, 1) for door, own in quiet.p99_s.items()},
        "p99_ms": {door: round(1000 * own, 1) for door, own in attacked.p99_s.items()},
        "quiet_bulk_per_s": round(quiet.bulk_per_s),
        "quiet_memory_mib": round(quiet.memory_mib),
    }


def stalls(moments: list[float], begin: float, end: float) -> int:
    """Return the number of times of over `STALL_S` without a moment."""
    inside = [begin, *sorted(moment for moment in moments if begin <= moment < end), end]
    return sum(later - earlier > STALL_S for earlier, later in pairwise(inside))


def pss_mib(pids: Sequence[int]) -> float:
    """Return the memory of processes and their children together; a shared page counts once."""
    total = 0
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            parent = psutil.Process(pid)
            for process in (parent, *parent.children(recursive=True)):
                total += _pss_kb(process.pid)
    return total / 1024


def _pss_kb(pid: int) -> int:
    with suppress(OSError):  # it has ended
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0


if __name__ == "__main__":
    main()
