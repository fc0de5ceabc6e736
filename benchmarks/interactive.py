"""What does a saturating bulk load do to interactive items, and to whom does the padding go?

One interactive text at a time, awaited, first on an idle fleet, then while bulk texts keep the device busy. The padding is that of
all text batches of the loaded part; `bulk_items_per_s` says that the load was one.
"""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from typing import Self

from benchmarks import convention
from benchmarks.workload import mixed_texts
from producers import Client, Job
from results_store.store import Store


def main() -> None:
    options = convention.options(__doc__)
    asked, seconds, bulk = (8, 1.0, 200) if options.quick else (150, 30.0, 2000)
    texts = mixed_texts(bulk)
    with convention.fleet() as fleet, Client(fleet.broker_url, fleet.store_url) as client:
        ask(client, texts[:8])
        idle = ask(client, texts[:asked])
        convention.progress(f"idle: p50 {1000 * statistics.median(idle):.0f} ms")
        with Load(client, texts) as load:
            ask(client, texts[:8])
            started = time.monotonic()
            loaded = ask(client, itertools.islice(itertools.cycle(texts), 100 * asked), until=started + seconds)
            done = load.done() / (time.monotonic() - started)
        convention.progress(f"loaded: p50 {1000 * statistics.median(loaded):.0f} ms of {len(loaded)}")
        with Store(fleet.store_url) as store:
            batches = [batch for batch in store.recent_batches(limit=10_000) if batch.items > 1]
    figures = {
        "p99_ratio": round(p99(loaded) / p99(idle), 2),
        "p50_ratio": round(statistics.median(loaded) / statistics.median(idle), 2),
        "idle_p50_ms": round(1000 * statistics.median(idle), 1),
        "idle_p99_ms": round(1000 * p99(idle), 1),
        "loaded_p50_ms": round(1000 * statistics.median(loaded), 1),
        "loaded_p99_ms": round(1000 * p99(loaded), 1),
        "asked_under_load": len(loaded),
        "bulk_items_per_s": round(done, 1),
        "waste": round(1 - sum(b.tokens for b in batches) / sum(b.padded_tokens for b in batches), 4),
    }
    convention.report("interactive", figures, keep=options.keep)


def ask(client: Client, texts: object, until: float = float("inf")) -> list[float]:
    """Submit one text after another as interactive, awaiting each; return the seconds each took."""
    found = []
    for text in texts:  # type: ignore[attr-defined]
        started = time.monotonic()
        if started > until:
            break
        client.submit("sentiment", text, priority="interactive", params={"truncation": True}).result(timeout_s=60)
        found.append(time.monotonic() - started)
    return found


def p99(seconds: list[float]) -> float:
    return sorted(seconds)[min(len(seconds) - 1, int(0.99 * len(seconds)))]


class Load:
    """Keeps bulk jobs queued until left; then cancels what is not done."""

    def __init__(self, client: Client, texts: list[str]) -> None:
        self._client = client
        self._texts = texts
        self._jobs: list[Job] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._before = 0

    def __enter__(self) -> Self:
        self._submit()
        self._submit()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for job in self._jobs:
            job.cancel()
        for job in self._jobs:
            job.wait(timeout_s=120)

    def done(self) -> int:
        """How many bulk texts are done so far."""
        return sum(job.progress().succeeded for job in self._jobs) // 2

    def _submit(self) -> None:
        params = {"sentiment": {"truncation": True}, "topic": {"truncation": True}}
        self._jobs.append(self._client.submit_many(("sentiment", "topic"), self._texts, params=params))

    def _run(self) -> None:
        while not self._stop.wait(0.2):
            if self._jobs[-2].progress().finished:
                self._submit()


if __name__ == "__main__":
    main()
