"""Is the fleet as fast as a bare loop, and how much faster than Celery by hand?

The same real texts, two tasks each, all cores, and the GPU if there is one, for everybody, in one run:

* the fleet: from the submission until the last row is in SQLite;
* offline: one process on the fleet's own backend, texts sorted by length, batches of the fleet's own budget, tokenising
  included, nothing stored;
* plain Celery (benchmarks/plain_celery.py): prefork, one text a task, Celery's SQL backend, transformers' model as it
  comes (torch, fp32), as people write it.

Medians of three passes, in turn.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import convention, offline, plain_celery
from benchmarks.workload import mixed_texts
from producers import Client
from workers import settings
from workers.device import devices

TASKS = ("sentiment", "topic")


def main() -> None:
    options = convention.options(__doc__)
    config = settings.load()
    device = offline.device(config)
    times = 8 if device.is_cuda else 1
    count, naive_count, passes = (40, 10, 1) if options.quick else (1200 * times, 200 * times, 3)
    processes = 1 if options.quick else devices.available_cores()  # each loads the model
    texts = mixed_texts(count)
    wanted, budget = offline.as_served(config)
    model = offline.loaded(wanted, wanted.backend, device)
    rates: dict[str, list[float]] = {"fleet": [], "offline": [], "naive": []}
    with (
        tempfile.TemporaryDirectory() as folder,
        convention.fleet(config) as fleet,
        Client(fleet.broker_url, fleet.store_url) as client,
        naive_worker(Path(folder), processes) as app,
    ):
        fleet_pass(client, texts[: count // 4])
        for _ in range(passes):
            rates["fleet"].append(fleet_pass(client, texts))
            rates["offline"].append(offline.run(model, texts, budget, TASKS))
            rates["naive"].append(naive_pass(app, texts[:naive_count]))
            convention.progress(", ".join(f"{name} {found[-1]:.0f}/s" for name, found in rates.items()))
    median = {name: statistics.median(found) for name, found in rates.items()}
    figures = {
        "fleet_over_offline": round(median["fleet"] / median["offline"], 3),
        "fleet_over_naive": round(median["fleet"] / median["naive"], 2),
        "backend": str(wanted.backend),
        **{f"{name}_items_per_s": round(rate, 1) for name, rate in median.items()},
    }
    convention.report("bulk", figures, keep=options.keep, variant="gpu" if device.is_cuda else "")


def fleet_pass(client: Client, texts: list[str]) -> float:
    return len(texts) / convention.job_s(client, TASKS, texts)


@contextmanager
def naive_worker(folder: Path, processes: int) -> Iterator[Any]:
    """A plain Celery worker with a broker of its own."""
    backend = f"db+sqlite:///{folder / 'celery.db'}"
    with (
        convention.broker(folder) as url,
        plain_celery.worker(url, processes=processes, backend_url=backend, model=True) as app,
    ):
        yield app


def naive_pass(app: Any, texts: list[str]) -> float:
    started = time.monotonic()
    waiting = [app.send_task("benchmarks.plain_celery.classify", (text,)) for text in texts]
    for result in waiting:
        result.get(timeout=300, interval=0.02)
    return len(texts) / (time.monotonic() - started)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
