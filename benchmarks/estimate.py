"""Is `argosy submit --dry-run` right about when a submission is done?

Real texts of bulk, two tasks each, through a fleet with the built-in models. The fleet computes as many texts first, since an
estimate is made of recent batches. Then, in each pass and with other texts of the same mix, a file is estimated by the
command and submitted:

* `alone`: the fleet has nothing else to do;
* `behind`: as much work of the same priority was submitted just before.

`…_over_real` is the estimated time until it is done over the real one, the median of three passes; `…_worst` is the ratio
of the pass that is farthest from 1. `within_25_percent` says that every pass of both is between 0.75 and 1.25.
"""

from __future__ import annotations

import math
import os
import re
import statistics
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from benchmarks import convention
from benchmarks.workload import mixed_texts
from producers import Client, Job
from producers.commands.main import main as argosy
from workers import settings

TASKS = ("sentiment", "topic")

#: The time that the command names, in its two forms: ``12.3 s`` and ``0:01:15``.
_DONE_IN = re.compile(r"done in about (?:(?P<seconds>[\d.]+) s|(?P<clock>\d+:\d\d:\d\d))", re.MULTILINE)

BOUND = 0.25


def main() -> None:
    options = convention.options(__doc__)
    count, passes = (60, 1) if options.quick else (1000, 3)
    texts = iter(mixed_texts(3 * count * passes + count))
    found: dict[str, list[float]] = {"alone": [], "behind": []}
    with (
        tempfile.TemporaryDirectory() as folder,
        convention.fleet(settings.load()) as fleet,
        Client(fleet.broker_url, fleet.store_url) as client,
    ):
        os.environ |= {"ARGOSY_BROKER_URL": fleet.broker_url, "ARGOSY_STORE_URL": fleet.store_url}
        submitted(client, texts, count).wait(timeout_s=600)
        for _ in range(passes):
            for name, ahead in (("alone", 0), ("behind", count)):
                ratio = estimated_over_real(client, Path(folder), texts, count, ahead)
                found[name].append(ratio)
                convention.progress(f"{name}: estimated over real {ratio:.2f}")
    convention.report("estimate", figures(found), keep=options.keep)


def figures(found: dict[str, list[float]]) -> dict[str, Any]:
    every = [ratio for ratios in found.values() for ratio in ratios]
    shown: dict[str, Any] = {}
    for name, ratios in found.items():
        shown[f"{name}_over_real"] = round(statistics.median(ratios), 3)
        shown[f"{name}_worst"] = round(max(ratios, key=lambda ratio: abs(math.log(ratio))), 3)
    return shown | {"within_25_percent": all(1 - BOUND <= ratio <= 1 + BOUND for ratio in every)}


def estimated_over_real(client: Client, folder: Path, texts: Iterator[str], count: int, ahead: int) -> float:
    """Estimate a file of `count` texts behind `ahead` others, and submit it."""
    file = folder / "rows.txt"
    rows = [next(texts).replace("\n", " ") for _ in range(count)]
    file.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    before = submitted(client, texts, ahead) if ahead else None
    estimate_s, began = estimated_s(file), time.monotonic()
    job = submit(client, rows)
    job.wait(timeout_s=600)
    real_s = time.monotonic() - began
    if before is not None:
        before.wait(timeout_s=600)
    return estimate_s / real_s


def estimated_s(file: Path) -> float:
    """Return the seconds that `argosy submit --dry-run` names."""
    tasks = [word for task in TASKS for word in ("-t", task)]
    params = '{"sentiment": {"truncation": true}, "topic": {"truncation": true}}'
    done = CliRunner().invoke(argosy, ["submit", str(file), *tasks, "--params", params, "--dry-run"])
    told = _DONE_IN.search(done.output)
    if done.exit_code or told is None:
        raise RuntimeError(f"the estimate failed: {done.output}")
    if told["seconds"]:
        return float(told["seconds"])
    hours, minutes, seconds = map(int, told["clock"].split(":"))
    return timedelta(hours=hours, minutes=minutes, seconds=seconds).total_seconds()


def submitted(client: Client, texts: Iterator[str], count: int) -> Job:
    return submit(client, [next(texts) for _ in range(count)])


def submit(client: Client, rows: list[str]) -> Job:
    return client.submit_many(TASKS, rows, params={task: {"truncation": True} for task in TASKS})


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
