"""Measure one tree with one scripted device: ``python -m argosy_scripted.measure texts|images DEVICE …``.

The last line is the figures as JSON. `benchmarks.host` starts this in the tree's environment.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import iter_unpack
from typing import Any

from . import devices, models, stored
from .cpu import CpuSeconds
from .workload import Pictures, Texts

#: The settings of an H100's tuning (docs/decisions/0027-gpus.md): 32,768 tokens, 512 rows.
FLEET = """
[worker]
models = ["{model}"]
profile = "cpu"
[models.{model}]
class = "{classes}"
backend = "torch"
batch_cost = {cost}
batch_rows = 512
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", choices=("texts", "images"))
    parser.add_argument("device")
    parser.add_argument("--items", type=int, required=True)
    parser.add_argument("--passes", type=int, default=1)
    parser.add_argument("--backlog", type=int, default=0, help="then submit so many texts while no worker runs")
    parser.add_argument("--wakes", action="store_true", help="measure how late a thread of the worker wakes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="argosy-host-") as folder:
        figures = measured(options, Path(folder))
    print(json.dumps(figures), flush=True)


def measured(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    os.environ[models.DEVICE] = options.device
    if options.wakes:
        os.environ["ARGOSY_SCRIPTED_WAKES"] = str(folder)
    work = Texts() if options.work == "texts" else Pictures()
    inputs, expected, alone = work.made(options.items)
    with fleet(work, folder) as (running, client):
        warm_up = inputs[: max(64, len(inputs) // 5)]
        client.submit_many(work.tasks, warm_up, params=work.params).wait(timeout_s=300)
        passes = [_pass(running, client, work, inputs, expected) for _ in range(options.passes)]
        figures = {name: statistics.median(each[name] for each in passes) for name in passes[0]}
        if options.wakes:
            figures["wake_p99_ms"] = _late_s(folder, figures) * 1e3
        if options.backlog:
            figures |= _backlog(running, client, work, inputs, expected, options.backlog)
    for name in ("started", "ended"):
        del figures[name]
    return figures | alone | _derived(figures, alone, devices.named(options.device))


def _derived(figures: dict[str, float], alone: dict[str, float], device: devices.ScriptedDevice) -> dict[str, float]:
    derived = {}
    if "tokens_per_text" in alone:
        roof = 1 / (alone["tokens_per_text"] * device.per_token_s) if device.per_token_s else 0.0
        derived["overhead_us_per_text"] = figures["node_cpu_us"] - alone["tokenising_us"]
        derived["fed_share"] = figures["items_per_s"] / roof if roof else 0.0
    return derived


@contextmanager
def fleet(work: Any, folder: Path) -> Iterator[tuple[Any, Any]]:
    """Start the tree's own local fleet, with the scripted model, and a client."""
    from benchmarks import convention
    from producers import Client
    from workers import settings

    config = folder / "fleet.toml"
    classes = f"{models.__name__}:{work.class_name}"
    config.write_text(FLEET.format(model=work.model, classes=classes, cost=work.cost), encoding="utf-8")
    os.environ["ARGOSY_FLEET"] = str(config)
    with convention.fleet(settings.load()) as running, Client(running.broker_url, running.store_url) as client:
        yield running, client


def _pass(fleet: Any, client: Any, work: Any, inputs: list[Any], expected: Any) -> dict[str, float]:
    """Run all inputs through the fleet and verify every row. Raises stored.Wrong."""
    before, started_at, started = CpuSeconds.now(fleet), time.time(), time.monotonic()
    job = client.submit_many(work.tasks, inputs, params=work.params)
    submitted = time.monotonic()
    job.wait(timeout_s=600)
    ended = time.monotonic()
    spent = CpuSeconds.now(fleet).since(before)
    stored.verify(fleet.store_url, job.id, expected)
    took_s, items = ended - started, len(inputs)
    return {
        "items_per_s": items / took_s,
        "submitted_per_s": items / (submitted - started),
        **{f"{name}_us": value for name, value in spent.us_per(items).items()},
        "others_cpu_share": (spent.machine - spent.host) / (took_s * len(os.sched_getaffinity(0))),
        **_sleep_errors(fleet, started_at),
        "started": started,
        "ended": ended,
    }


def _sleep_errors(fleet: Any, since: float) -> dict[str, float]:
    """By how much the device's batches took longer than they should."""
    device = devices.named(os.environ[models.DEVICE])
    batches = stored.batches(fleet.store_url, since)
    errors = sorted(took_s - device.seconds(padded) for _, padded, took_s in batches)
    return {
        "rows_per_batch": statistics.mean(rows for rows, _, _ in batches),
        "sleep_error_p50_us": 1e6 * statistics.median(errors),
        "sleep_error_p99_us": 1e6 * errors[int(0.99 * (len(errors) - 1))],
        "sleep_error_share": sum(errors) / sum(took_s for _, _, took_s in batches),
    }


def _late_s(folder: Path, figures: dict[str, float]) -> float:
    """The 99th percentile of how late the worker's waiting thread woke during the (last) pass."""
    late = [
        late_s
        for file in folder.iterdir()
        if file.name.isdigit()
        for woken, late_s in iter_unpack("dd", file.read_bytes())
        if figures["started"] <= woken <= figures["ended"]
    ]
    return sorted(late)[int(0.99 * (len(late) - 1))]


def _backlog(fleet: Any, client: Any, work: Any, inputs: list[Any], expected: Any, count: int) -> dict[str, float]:
    """Submit a backlog while no worker runs, then start the worker again, and verify every row."""
    from redis import Redis

    inputs = list(itertools.islice(itertools.cycle(inputs), count))
    expected = {task: list(itertools.islice(itertools.cycle(own), count)) for task, own in expected.items()}
    (service,) = fleet.workers
    service.stop()
    with Redis.from_url(fleet.broker_url) as redis:
        before = redis.info("memory")["used_memory_dataset"]
        job = client.submit_many(work.tasks, inputs, params=work.params)
        redis_bytes = redis.info("memory")["used_memory_dataset"] - before
    predicted_s = sum(queued.seconds for queued in client.queued_work())
    started_at = time.time()
    service.start()
    status = job.wait(timeout_s=600)
    stored.verify(fleet.store_url, job.id, expected)
    real_s = status.finished_at - stored.first_batch_at(fleet.store_url, started_at)
    return {"redis_bytes_per_text": redis_bytes / count, "queued_seconds_over_real": predicted_s / real_s}


if __name__ == "__main__":
    main()
