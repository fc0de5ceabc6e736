"""How long does one interactive item take, idle fleet, a model that does nothing, beside a bare Celery round trip?

One item at a time through the asyncio client, durable and not, and Celery's `delay` and `get` with its Redis result
backend (prefork, one process) in turn, in one run, each on a broker of its own. Then 1,000 items awaited at once: all
must be answered, and the event loop must not be held up meanwhile: how late a sleep of 5 ms ends is its lag.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import convention, plain_celery
from benchmarks.overhead import FLEET
from producers import AsyncClient

TICK_S = 0.005
TIMEOUT_S = 60


def main() -> None:
    options = convention.options(__doc__)
    trips, rounds, concurrent = (20, 1, 1000) if options.quick else (200, 5, 1_000)
    with (
        tempfile.TemporaryDirectory() as folder,
        convention.fleet(toml=FLEET) as fleet,
        convention.broker(Path(folder)) as url,
        plain_celery.worker(url, processes=1, backend_url=url) as app,
    ):
        celery = app.signature("benchmarks.plain_celery.echo")
        figures = asyncio.run(measure(fleet.broker_url, fleet.store_url, celery, trips, rounds, concurrent))
    convention.report("latency", figures, keep=options.keep)


async def measure(
    broker_url: str, store_url: str, celery: Any, trips: int, rounds: int, concurrent: int
) -> dict[str, Any]:
    took: dict[str, list[float]] = {"direct": [], "durable": [], "celery": []}
    async with AsyncClient(broker_url, store_url) as client:
        await round_trips(client, trips // 4, durable=True)
        await round_trips(client, trips // 4, durable=False)
        celery_trips(celery, trips // 4)
        for _ in range(rounds):
            took["direct"] += await round_trips(client, trips, durable=False)
            took["celery"] += celery_trips(celery, trips)  # nothing else is to run meanwhile, so the loop may wait
            took["durable"] += await round_trips(client, trips, durable=True)
            convention.progress(", ".join(f"{name} {p50(found):.2f} ms" for name, found in took.items()))
        lag_ms, answered_s = await all_at_once(client, concurrent)
    return {
        "p50_over_celery": round(p50(took["direct"]) / p50(took["celery"]), 3),
        "durable_p50_over_celery": round(p50(took["durable"]) / p50(took["celery"]), 3),
        **{f"{name}_p50_ms": round(p50(found), 2) for name, found in took.items()},
        **{f"{name}_p95_ms": round(1000 * statistics.quantiles(found, n=20)[-1], 2) for name, found in took.items()},
        "concurrent": concurrent,
        "concurrent_answered_s": round(answered_s, 2),
        "loop_lag_p99_ms": round(lag_ms, 1),
    }


async def round_trips(client: AsyncClient, count: int, *, durable: bool) -> list[float]:
    """Seconds that each of `count` items takes, one after the other."""
    took = []
    for number in range(count):
        started = time.perf_counter()
        await ask(client, f"a short text, number {number}", durable=durable)
        took.append(time.perf_counter() - started)
    return took


async def ask(client: AsyncClient, text: str, *, durable: bool) -> None:
    handle = await client.submit("nothing", text, priority="interactive", durable=durable)
    assert (await handle.result(timeout_s=TIMEOUT_S))[0]["label"] == "nothing"


def celery_trips(celery: Any, count: int) -> list[float]:
    took = []
    for number in range(count):
        text = f"a short text, number {number}"
        started = time.perf_counter()
        assert celery.delay(text).get(timeout=TIMEOUT_S) == text
        took.append(time.perf_counter() - started)
    return took


async def all_at_once(client: AsyncClient, count: int) -> tuple[float, float]:
    """The loop's lag (99th percentile, ms) while `count` items are awaited, half of them durable; and how long that
    took.
    """
    lags: list[float] = []
    watching = asyncio.create_task(watch(lags))
    started = time.perf_counter()
    await asyncio.gather(*(ask(client, f"item {number}", durable=number % 2 == 0) for number in range(count)))
    answered_s = time.perf_counter() - started
    watching.cancel()
    convention.progress(f"{count} at once: {answered_s:.2f} s, the loop came round {len(lags)} times")
    return 1000 * sorted(lags)[int(0.99 * len(lags))], answered_s


async def watch(lags: list[float]) -> None:
    while True:
        started = time.perf_counter()
        await asyncio.sleep(TICK_S)
        lags.append(time.perf_counter() - started - TICK_S)


def p50(seconds: list[float]) -> float:
    """The median, in milliseconds."""
    return 1000 * statistics.median(seconds)


if __name__ == "__main__":
    main()
