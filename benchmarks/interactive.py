"""What does a saturating bulk load do to interactive items, and to whom does the padding go?

    python -m benchmarks.interactive [--fast] [--quick | --keep]

One interactive text at a time, awaited, first on an idle fleet, then while another process, as a pipeline would, keeps
bulk texts queued; in turns, medians of three. The padding is that of all text batches of the loaded parts;
`bulk_items_per_s` says that the load was one.

With `--fast`, the device does nothing, so that bulk is at the host's limit, and 500 questions are asked a round, on
SQLite and on PostgreSQL. `p99_ratio_fast_STORE` is the median of three loaded p99 over the median of three idle ones.

`parts` are a question's, in ms (p50 and p99), from its stored row: `accept` is the call of `submit`, `wait` lasts until
its batch begins (delivery, claim, preparation and the batcher's queue), `compute` until the batch's outputs are there,
`store` until the transaction that stores it asks for the time, and `tell` until the caller has it.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing.synchronize import Event
from typing import Any
from unittest.mock import patch

from benchmarks import convention
from benchmarks.disasters.databases import postgresql
from benchmarks.scripted import models
from benchmarks.workload import mixed_texts
from producers import Client, Job
from results_store.records import Result
from results_store.store import Store
from workers.fleet.local import LocalFleet

#: The fleet of `--fast`.
FAST_FLEET = """
[worker]
models = ["text"]
profile = "cpu"
[models.text]
class = "benchmarks.scripted.models:ScriptedText"
backend = "torch"
batch_cost = 32768
batch_rows = 512
"""

PARTS = ("accept", "wait", "compute", "store", "tell")


@dataclass(slots=True)
class Asked:
    """The questions of a round: the seconds of each as a whole, and of its parts."""

    waited_s: list[float] = field(default_factory=list)
    parts_s: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in PARTS})

    def add(self, begun: float, accepted: float, row: Result, answered: float) -> None:
        assert row.batched_at is not None
        assert row.computed_at is not None
        assert row.stored_at is not None
        times = (begun, accepted, row.batched_at, row.computed_at, row.stored_at, answered)
        for name, (earlier, later) in zip(PARTS, pairwise(times), strict=True):
            self.parts_s[name].append(later - earlier)
        self.waited_s.append(answered - begun)


def main() -> None:
    parser = convention.parser(__doc__)
    parser.add_argument("--fast", action="store_true", help="with a device that does nothing, on both databases")
    options = parser.parse_args()
    if options.fast:
        figures: dict[str, Any] = {}
        for store in ("sqlite", "postgresql"):
            figures |= fast(store, quick=options.quick)
        convention.report("interactive", figures, keep=options.keep, variant="fast")
    else:
        convention.report("interactive", real(quick=options.quick), keep=options.keep)


def fast(store: str, *, quick: bool) -> dict[str, Any]:
    """Return the figures of a device that does nothing."""
    rounds, asked, bulk = (1, 20, 500) if quick else (3, 500, 10_000)
    texts = mixed_texts(bulk)
    idle, loaded = [], []
    with fast_fleet(store) as fleet, Client(fleet.broker_url, fleet.store_url) as client:
        ask(client, texts[:asked])
        for _ in range(rounds):
            idle.append(ask(client, texts[:asked]))
            with load(fleet.broker_url, fleet.store_url, texts):
                ask(client, texts[: asked // 10])
                loaded.append(ask(client, itertools.islice(itertools.cycle(texts), asked)))
            alone, beside = (
                f"p50 {ms(p50(own.waited_s))}, p99 {ms(p99(own.waited_s))} ms" for own in (idle[-1], loaded[-1])
            )
            convention.progress(f"{store}, idle: {alone}; at the host's limit: {beside}")
    idle_p99_s, loaded_p99_s = (statistics.median(p99(own.waited_s) for own in found) for found in (idle, loaded))
    return {
        f"p99_ratio_fast_{store}": round(loaded_p99_s / idle_p99_s, 2),
        f"{store}_idle_p99_ms": ms(idle_p99_s),
        f"{store}_loaded_p50_ms": ms(statistics.median(p50(own.waited_s) for own in loaded)),
        f"{store}_loaded_p99_ms": ms(loaded_p99_s),
        f"{store}_idle_parts": parts(idle),
        f"{store}_loaded_parts": parts(loaded),
    }


@contextmanager
def fast_fleet(store: str) -> Iterator[LocalFleet]:
    """Start a fleet with the text model on a device that does nothing."""
    with ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ, {models.DEVICE: "nothing"}))
        if store == "postgresql":
            os.environ["ARGOSY_STORE_URL"] = stack.enter_context(postgresql()).url
        yield stack.enter_context(convention.fleet(toml=FAST_FLEET))


def real(*, quick: bool) -> dict[str, Any]:
    """Return the figures of the real model on this machine."""
    rounds, asked, seconds, bulk = (1, 8, 1.0, 200) if quick else (3, 150, 15.0, 2000)
    texts = mixed_texts(bulk)
    idle: list[Asked] = []
    loaded: list[Asked] = []
    with convention.fleet() as fleet, Client(fleet.broker_url, fleet.store_url) as client:
        ask(client, texts[: 5 * asked])
        for _ in range(rounds):
            idle.append(ask(client, texts[:asked]))
            with load(fleet.broker_url, fleet.store_url, texts):
                ask(client, texts[:8])
                started = time.monotonic()
                loaded.append(ask(client, itertools.cycle(texts), until=started + seconds))
            alone, beside = (
                f"p50 {ms(p50(own.waited_s))}, p99 {ms(p99(own.waited_s))} ms" for own in (idle[-1], loaded[-1])
            )
            convention.progress(f"idle: {alone}; under load: {beside} of {len(loaded[-1].waited_s)}")
        with Store(fleet.store_url) as store:
            batches = [batch for batch in store.flight.recent(limit=100_000) if set(batch.priorities) != {"0"}]
    idle_s, loaded_s = ([own.waited_s for own in found] for found in (idle, loaded))
    return {
        "p99_ratio": round(statistics.median(p99(b) / p99(a) for a, b in zip(idle_s, loaded_s, strict=True)), 2),
        "p99_ratio_by_round": [round(p99(b) / p99(a), 2) for a, b in zip(idle_s, loaded_s, strict=True)],
        "p50_ratio": round(statistics.median(p50(b) / p50(a) for a, b in zip(idle_s, loaded_s, strict=True)), 2),
        "idle_p50_ms": ms(statistics.median(map(p50, idle_s))),
        "idle_p99_ms": ms(statistics.median(map(p99, idle_s))),
        "loaded_p50_ms": ms(statistics.median(map(p50, loaded_s))),
        "loaded_p99_ms": ms(statistics.median(map(p99, loaded_s))),
        "idle_parts": parts(idle),
        "loaded_parts": parts(loaded),
        "asked_under_load": sum(map(len, loaded_s)),
        "bulk_items_per_s": round(sum(b.priorities.get("9", 0) for b in batches) / (rounds * seconds), 1),
        "waste": round(1 - sum(b.tokens for b in batches) / sum(b.padded_tokens for b in batches), 4),
    }


def parts(found: Sequence[Asked]) -> dict[str, list[float]]:
    """Return p50 and p99 of each part of all questions, in ms."""
    whole = {name: list(itertools.chain.from_iterable(own.parts_s[name] for own in found)) for name in PARTS}
    return {name: [ms(p50(own)), ms(p99(own))] for name, own in whole.items()}


def ask(client: Client, texts: Iterable[str], until: float = float("inf")) -> Asked:
    """Submit one text after another as interactive, awaiting each."""
    asked = Asked()
    for text in texts:
        if time.monotonic() > until:
            break
        begun = time.time()
        handle = client.submit("sentiment", text, priority="interactive", params={"truncation": True})
        accepted = time.time()
        handle.result(timeout_s=60)
        answered = time.time()
        (row,) = handle.results()
        asked.add(begun, accepted, row, answered)
    return asked


p50 = statistics.median


def p99(seconds: list[float]) -> float:
    return sorted(seconds)[min(len(seconds) - 1, int(0.99 * len(seconds)))]


def ms(seconds: float) -> float:
    return round(1000 * seconds, 1)


class Unfinished(AssertionError):
    """The bulk jobs of a load did not end."""


@contextmanager
def load(broker_url: str, store_url: str, texts: list[str]) -> Iterator[None]:
    """Have another process keep bulk jobs queued until left; what is not done by then is cancelled.

    Raises Unfinished.
    """
    context = multiprocessing.get_context("spawn")
    begun, over = context.Event(), context.Event()
    pipeline = context.Process(target=_pipeline, args=(broker_url, store_url, texts, begun, over))
    pipeline.start()
    try:
        assert begun.wait(timeout=60), "the load did not begin"
        yield
    finally:
        over.set()
        pipeline.join()
    if pipeline.exitcode:
        raise Unfinished("the cancelled jobs of the load did not end, see above")


def _pipeline(broker_url: str, store_url: str, texts: list[str], begun: Event, over: Event) -> None:
    params = {task: {"truncation": True} for task in ("sentiment", "topic")}
    with Client(broker_url, store_url) as client:
        jobs: list[Job] = []

        def submit() -> None:
            jobs.append(client.submit_many(("sentiment", "topic"), texts, params=params))

        submit()
        submit()
        begun.set()
        while not over.wait(0.2):
            if jobs[-2].progress().finished:
                submit()
        for job in jobs:
            job.cancel()
        for job in jobs:
            job.wait(timeout_s=120)


if __name__ == "__main__":
    main()
