"""What does a saturating bulk load do to interactive items, and to whom does the padding go?

One interactive text at a time, awaited, first on an idle fleet, then while another process, as a pipeline would, keeps
bulk texts queued; in turns, medians of three. The padding is that of all text batches of the loaded parts;
`bulk_items_per_s` says that the load was one.
"""

from __future__ import annotations

import itertools
import multiprocessing
import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event

from benchmarks import convention
from benchmarks.workload import mixed_texts
from producers import Client, Job
from results_store.store import Store


def main() -> None:
    options = convention.options(__doc__)
    rounds, asked, seconds, bulk = (1, 8, 1.0, 200) if options.quick else (3, 150, 15.0, 2000)
    texts = mixed_texts(bulk)
    idle: list[list[float]] = []
    loaded: list[list[float]] = []
    with convention.fleet() as fleet, Client(fleet.broker_url, fleet.store_url) as client:
        ask(client, texts[: 5 * asked])
        for _ in range(rounds):
            idle.append(ask(client, texts[:asked]))
            with load(fleet.broker_url, fleet.store_url, texts):
                ask(client, texts[:8])
                started = time.monotonic()
                loaded.append(ask(client, itertools.cycle(texts), until=started + seconds))
            alone, beside = (f"p50 {ms(p50(found[-1]))}, p99 {ms(p99(found[-1]))} ms" for found in (idle, loaded))
            convention.progress(f"idle: {alone}; under load: {beside} of {len(loaded[-1])}")
        with Store(fleet.store_url) as store:
            batches = [batch for batch in store.flight.recent(limit=100_000) if set(batch.priorities) != {"0"}]
    figures = {
        "p99_ratio": round(statistics.median(p99(b) / p99(a) for a, b in zip(idle, loaded, strict=True)), 2),
        "p50_ratio": round(statistics.median(p50(b) / p50(a) for a, b in zip(idle, loaded, strict=True)), 2),
        "idle_p50_ms": ms(statistics.median(map(p50, idle))),
        "idle_p99_ms": ms(statistics.median(map(p99, idle))),
        "loaded_p50_ms": ms(statistics.median(map(p50, loaded))),
        "loaded_p99_ms": ms(statistics.median(map(p99, loaded))),
        "asked_under_load": sum(map(len, loaded)),
        "bulk_items_per_s": round(sum(b.priorities.get("9", 0) for b in batches) / (rounds * seconds), 1),
        "waste": round(1 - sum(b.tokens for b in batches) / sum(b.padded_tokens for b in batches), 4),
    }
    convention.report("interactive", figures, keep=options.keep)


def ask(client: Client, texts: Iterable[str], until: float = float("inf")) -> list[float]:
    """Submit one text after another as interactive, awaiting each; return the seconds each took."""
    found = []
    for text in texts:
        started = time.monotonic()
        if started > until:
            break
        client.submit("sentiment", text, priority="interactive", params={"truncation": True}).result(timeout_s=60)
        found.append(time.monotonic() - started)
    return found


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
