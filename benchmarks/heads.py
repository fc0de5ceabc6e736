"""What do more tasks on the same text cost? Four heads on one pass beside one head, end to end, medians of three in
turn.
"""

from __future__ import annotations

import statistics

from benchmarks import convention
from benchmarks.workload import mixed_texts
from producers import Client

ONE = ("sentiment",)
FOUR = ("sentiment", "topic", "spam", "embedding")


def main() -> None:
    options = convention.options(__doc__)
    count, passes = (60, 1) if options.quick else (1000, 3)
    texts = mixed_texts(count)
    seconds: dict[tuple[str, ...], list[float]] = {ONE: [], FOUR: []}
    with convention.fleet() as fleet, Client(fleet.broker_url, fleet.store_url) as client:
        convention.job_s(client, FOUR, texts[: count // 4])
        for _ in range(passes):
            for tasks, found in seconds.items():
                found.append(convention.job_s(client, tasks, texts))
            convention.progress(f"one task {seconds[ONE][-1]:.2f} s, four {seconds[FOUR][-1]:.2f} s")
    one, four = statistics.median(seconds[ONE]), statistics.median(seconds[FOUR])
    figures = {
        "four_over_one": round(four / one, 3),
        "one_task_items_per_s": round(count / one, 1),
        "four_tasks_items_per_s": round(count / four, 1),
    }
    convention.report("heads", figures, keep=options.keep)


if __name__ == "__main__":
    main()
