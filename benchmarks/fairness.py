"""Does bulk keep its guaranteed share of the device while interactive work alone could fill it?

Thousands of interactive texts and thousands of bulk ones at once, none of them twice. Counted are the batches while
there are plenty of both; a batch's time is shared out by the tokens of its items. A fifth is guaranteed to bulk here.
"""

from __future__ import annotations

from benchmarks import convention
from benchmarks.workload import mixed_texts
from producers import Client
from results_store.records import Batch
from results_store.store import Store

GUARANTEED = 0.2
WARM_UP_S = 1.0
INTERACTIVE, BULK = 0, 9
CUT = {"truncation": True}


def main() -> None:
    options = convention.options(__doc__)
    count = 500 if options.quick else 4000
    texts = mixed_texts(2 * count)  # no text twice: the same content in one batch is one row, whoever wants it
    toml = f"[worker]\nbulk_share = {GUARANTEED}\n"
    with convention.fleet(toml=toml) as fleet, Client(fleet.broker_url, fleet.store_url) as client:
        convention.job_s(client, "sentiment", texts[:100])
        jobs = [
            client.submit_many("sentiment", texts[start::2], priority=which, params=CUT)
            for start, which in enumerate(("bulk", "interactive"))
        ]
        convention.progress(f"{count:,} interactive and {count:,} bulk texts")
        assert jobs[1].wait(timeout_s=600).succeeded == count
        jobs[0].cancel()
        jobs[0].wait(timeout_s=600)
        with Store(fleet.store_url) as store:
            batches = store.flight.recent(limit=10_000, traces=True)[::-1]
    contended = both(batches)
    shares = [seconds(batch) for batch in contended]
    spent = {priority: sum(share.get(priority, 0.0) for share in shares) for priority in (INTERACTIVE, BULK)}
    figures = {
        "bulk_share": round(spent[BULK] / sum(spent.values()), 4),
        "guaranteed": GUARANTEED,
        "contended_s": round(sum(spent.values()), 2),
        "batches": len(contended),
        "share_by_tenth": tenths(contended),
    }
    convention.report("fairness", figures, keep=options.keep)


def both(batches: list[Batch]) -> list[Batch]:
    """The batches from `WARM_UP_S` after the first interactive one on, without the last tenth: while such items are
    plenty.

    At first bulk has a little device time to its debit, from when it had the device to itself. Whole turns are counted,
    from the end of one that was bulk's to the end of another: a batch more of the one or the other is no matter of
    shares.
    """
    urgent = [batch.started_at for batch in batches if str(INTERACTIVE) in batch.priorities]
    first, last = urgent[0], urgent[-1 - len(urgent) // 10]
    first += min(WARM_UP_S, (last - first) / 4)
    plenty = [batch for batch in batches if first <= batch.started_at <= last]
    led = [place for place, batch in enumerate(plenty) if str(INTERACTIVE) not in batch.priorities]
    return plenty[led[0] + 1 : led[-1] + 1] if len(led) > 1 else plenty


def seconds(batch: Batch) -> dict[int, float]:
    """A batch's time, shared out to priorities by the tokens of their items."""
    assert batch.trace
    tokens: dict[int, int] = {}
    for _, _, _, priority, cost, _ in batch.trace["items"]:
        tokens[priority] = tokens.get(priority, 0) + cost
    total = sum(tokens.values())
    return {priority: batch.forward_s * own / total for priority, own in tokens.items()}


def tenths(batches: list[Batch]) -> list[float]:
    """Bulk's share in each tenth of the batches, in order."""
    size = max(1, len(batches) // 10)
    shares = []
    for start in range(0, size * 10, size):
        part = [seconds(batch) for batch in batches[start : start + size]]
        total = sum(sum(share.values()) for share in part)
        shares.append(round(sum(share.get(BULK, 0.0) for share in part) / total, 3) if total else 0.0)
    return shares


if __name__ == "__main__":
    main()
