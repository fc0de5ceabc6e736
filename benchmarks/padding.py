"""How much of what the device computes is padding, on texts of very mixed lengths?

All texts are submitted as one bulk job, through a real fleet; the flight recorder says what each batch held. Beside it,
from the same lengths: batches of the same budget filled in the order of arrival, as a batcher without a view of lengths
does, and filled after sorting everything, which only a loop that waits for all of it can do.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from benchmarks import convention
from benchmarks.workload import mixed_texts
from producers import Client
from results_store.records import Batch
from results_store.store import Store

TASKS = ("sentiment", "topic")


def main() -> None:
    options = convention.options(__doc__)
    count = 200 if options.quick else 2000
    texts = mixed_texts(count)
    with convention.fleet() as fleet, Client(fleet.broker_url, fleet.store_url) as client:
        convention.job_s(client, TASKS, texts[: count // 10])
        with Store(fleet.store_url) as store:
            before = {batch.id for batch in store.flight.recent(limit=10_000)}
            convention.job_s(client, TASKS, texts)
            batches = [b for b in store.flight.recent(limit=10_000, traces=True) if b.id not in before]
    lengths = [cost for batch in reversed(batches) if batch.trace for *_, cost, _ in batch.trace["items"]]
    cost, rows = max(batch.padded_tokens for batch in batches), max(batch.rows for batch in batches)
    known = [(batch.predicted_s, batch.forward_s) for batch in batches if batch.predicted_s]
    figures = {
        "waste": round(1 - sum(b.tokens for b in batches) / sum(b.padded_tokens for b in batches), 4),
        "waste_in_order_of_arrival": round(filled(by_arrival(batches), cost, rows), 4),
        "waste_sorted_offline": round(filled(sorted(lengths), cost, rows), 4),
        "batches": len(batches),
        "mean_rows": round(sum(batch.rows for batch in batches) / len(batches), 1),
        "waste_by_batch": sorted(round(1 - batch.tokens / batch.padded_tokens, 3) for batch in batches),
        "prediction_error": round(statistics.median(abs(p / f - 1) for p, f in known), 3),
    }
    convention.report("padding", figures, keep=options.keep)


def by_arrival(batches: list[Batch]) -> list[int]:
    """The lengths in the order in which the items came to the batcher."""
    items = [
        (batch.trace["formed_at"] - waited_ms / 1000, job, seq, cost)
        for batch in batches
        if batch.trace
        for job, seq, _, _, cost, waited_ms in batch.trace["items"]
    ]
    return [cost for *_, cost in sorted(items)]


def filled(lengths: Iterable[int], most_cost: int, most_rows: int) -> float:
    """Return the waste of batches filled in this order up to the budget."""
    real = padded = rows = widest = 0
    for length in lengths:
        real += length
        if rows == most_rows or (rows + 1) * max(widest, length) > most_cost:
            padded += rows * widest
            rows = widest = 0
        rows, widest = rows + 1, max(widest, length)
    return 1 - real / (padded + rows * widest)


if __name__ == "__main__":
    main()
