"""What does the fleet itself cost? Items a second end to end with a model that does nothing, beside plain Celery's
no-op tasks.

Durable, submitted in bulk, one worker node, SQLite; Celery: one worker process, results ignored. In one run, medians of
three; a pass begins with the submission and ends when the last result is in SQL (for Celery, with the last task done).
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from redis import Redis

from benchmarks import convention, plain_celery
from producers import Client

FLEET = """
[worker]
models = ["nothing"]
[models.nothing]
class = "benchmarks.nothing:NothingModel"
source = { path = "." }
batch_cost = 4096
batch_rows = 256
[models.nothing.tasks.nothing]
kind = "text-classification"
"""


def main() -> None:
    options = convention.options(__doc__)
    items, tasks, passes = (2_000, 300, 1) if options.quick else (50_000, 4_000, 3)
    with convention.fleet(toml=FLEET) as fleet, Client(fleet.broker_url, fleet.store_url) as client:
        ours = [fleet_pass(client, items) for _ in range(passes + 1)][1:]  # the first one warms up
    with tempfile.TemporaryDirectory() as folder:
        celery = celery_passes(Path(folder), tasks, passes)
    figures = {
        "items_per_s": round(statistics.median(ours)),
        "celery_tasks_per_s": round(statistics.median(celery)),
        "over_celery": round(statistics.median(ours) / statistics.median(celery), 1),
    }
    convention.report("overhead", figures, keep=options.keep)


def fleet_pass(client: Client, items: int) -> float:
    started = time.monotonic()
    job = client.submit_many("nothing", (f"a short text, number {n}" for n in range(items)))
    submitted_s = time.monotonic() - started
    status = job.wait(timeout_s=300)
    assert status.succeeded == items
    rate = items / (time.monotonic() - started)
    convention.progress(f"fleet: {rate:,.0f} items/s, of which submitted at {items / submitted_s:,.0f}/s")
    return rate


def celery_passes(folder: Path, tasks: int, passes: int) -> list[float]:
    nothing = "benchmarks.plain_celery.nothing"
    with convention.broker(folder) as url, plain_celery.worker(url, processes=1) as app:
        return [celery_pass(app.signature(nothing), url, tasks) for _ in range(passes)]


def celery_pass(nothing: object, broker_url: str, tasks: int) -> float:
    with Redis.from_url(broker_url) as redis:
        started = time.monotonic()
        for n in range(tasks):
            nothing.apply_async((f"a short text, number {n}",), ignore_result=True)  # type: ignore[attr-defined]
        while redis.llen("celery") or redis.hlen("unacked"):
            time.sleep(0.005)
    rate = tasks / (time.monotonic() - started)
    convention.progress(f"celery: {rate:,.0f} tasks/s")
    return rate


if __name__ == "__main__":
    main()
