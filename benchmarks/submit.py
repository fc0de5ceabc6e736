"""How fast are durable items accepted, beside Celery's `apply_async` in the same run, and does memory stay flat?

Short texts in bulk, by the client and the asyncio client, into SQLite and PostgreSQL: an item counts once it is
committed and on Redis. `apply_async` sends one task a text. Medians of three, in turn; the ratios are the worse of the
two databases'. No worker runs.

`while_working_over_alone` is the rate at which texts are accepted while a worker stores the results of a backlog, with
a device that does nothing, over that without a worker (counted as at most 60,000 a second): the lower of both databases'.

`rss_growth_mib` is by how much a submission of a million items, from a generator,
raises the memory of the process over one of 10,000.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from celery import Celery
from redis import Redis

from benchmarks import convention
from benchmarks.disasters.databases import postgresql
from benchmarks.interactive import fast_fleet
from producers import AsyncClient, Client, Job
from results_store.store import Store

Pass = Callable[[int], float]

#: The rate alone, items a second, above which more is not asked for.
MOST_ALONE = 60_000


def main() -> None:
    options = convention.options(__doc__)
    items, tasks, few, many, passes = (
        (4_096, 200, 1_000, 5_000, 1) if options.quick else (50_000, 3_000, 10_000, 1_000_000, 3)
    )
    with tempfile.TemporaryDirectory() as folder, convention.broker(Path(folder)) as url, postgresql() as server:
        stores = {"sqlite": f"sqlite:///{folder}/store.db", "postgresql": server.url}
        ways: dict[str, tuple[Pass, int]] = {"celery": (lambda count: celery_pass(url, count), tasks)}
        for name, store in stores.items():
            Store(store).migrate()
            ways[f"sync_{name}"] = (lambda count, store=store: sync_pass(url, store, count), items)  # type: ignore[misc]
            ways[f"async_{name}"] = (lambda count, store=store: async_pass(url, store, count), items)  # type: ignore[misc]
        found: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(passes):
            for way, how in ways.items():
                found[way].append(run(way, *how, url))
        rates = {way: statistics.median(passed) for way, passed in found.items()}
        growth_mib = memory_growth_mib(url, stores["sqlite"], few, many)
    working = {store: while_working(store, items) for store in stores}
    figures = {
        "while_working_over_alone": min(own["ratio"] for own in working.values()),
        **{f"while_working_{store}": own for store, own in working.items()},
        **{f"{way}_over_celery": round(slower(rates, way) / rates["celery"], 1) for way in ("sync", "async")},
        **{f"{way}_items_per_s": round(rate) for way, rate in rates.items()},
        "rss_growth_mib": round(growth_mib, 1),
        "rss_growth_items": many - few,
    }
    convention.report("submit", figures, keep=options.keep)


def slower(rates: dict[str, float], way: str) -> float:
    return min(rate for name, rate in rates.items() if name.startswith(f"{way}_"))


def run(way: str, measure: Pass, count: int, broker_url: str) -> float:
    """Items a second of one pass, after a tenth of it to warm up; the broker is emptied afterwards."""
    measure(count // 10)
    rate = count / measure(count)
    with Redis.from_url(broker_url) as redis:
        redis.flushall()
    convention.progress(f"{way}: {rate:,.0f} items/s")
    return rate


def texts(count: int) -> Iterator[str]:
    return (f"a short text, number {number}, as people write them" for number in range(count))


def sync_pass(broker_url: str, store_url: str, count: int) -> float:
    with Client(broker_url, store_url) as client:
        client.submit_many("sentiment", texts(1))
        started = time.perf_counter()
        client.submit_many("sentiment", texts(count))
        return time.perf_counter() - started


def async_pass(broker_url: str, store_url: str, count: int) -> float:
    async def submit() -> float:
        async with AsyncClient(broker_url, store_url) as client:
            await client.submit_many("sentiment", texts(1))
            started = time.perf_counter()
            await client.submit_many("sentiment", texts(count))
            return time.perf_counter() - started

    return asyncio.run(submit())


def celery_pass(broker_url: str, count: int) -> float:
    app = Celery("plain", broker=broker_url, set_as_current=False)
    task = app.signature("benchmarks.plain_celery.nothing")
    task.apply_async(("connects",), ignore_result=True)
    started = time.perf_counter()
    for text in texts(count):
        task.apply_async((text,), ignore_result=True)
    took_s = time.perf_counter() - started
    app.close()
    return took_s


def while_working(store: str, count: int) -> dict[str, float]:
    """Return the rates of a submission without a worker, and of the next one while that is worked at."""
    with fast_fleet(store) as fleet, Client(fleet.broker_url, fleet.store_url) as client:

        def rate() -> float:
            started = time.perf_counter()
            jobs.append(client.submit_many(("sentiment", "topic"), texts(count)))
            return count / (time.perf_counter() - started)

        jobs: list[Job] = []
        (worker,) = fleet.workers
        worker.stop()
        alone = rate()
        worker.start()
        while not jobs[0].progress().done:
            time.sleep(0.1)
        working = rate()
        for job in jobs:
            job.cancel()
    convention.progress(f"{store}: {alone:,.0f} items/s alone, {working:,.0f} while a worker works")
    return {"alone": round(alone), "working": round(working), "ratio": round(working / min(alone, MOST_ALONE), 2)}


def memory_growth_mib(broker_url: str, store_url: str, few: int, many: int) -> float:
    with Client(broker_url, store_url) as client:
        sizes = []
        for count in (few, many):
            client.submit_many("sentiment", texts(count))
            gc.collect()
            sizes.append(psutil.Process().memory_info().rss / 2**20)
            convention.progress(f"{count:,} items submitted: {sizes[-1]:.0f} MiB")
    return sizes[1] - sizes[0]


if __name__ == "__main__":
    main()
