"""How much longer do a tenant's hundred texts take beside another's thousands, submitted before, than alone?

Real texts with the `text` model, bulk, one worker; the large tenant's are all submitted when the small one's come. The
median of several rounds of both. The small one has submitted before: a tenant's very first envelope waits up to two
seconds longer, until the workers have heard of it. tests/unit/test_tenant_shares.py has a million rows, on a virtual
clock.
"""

from __future__ import annotations

import statistics
import time

from benchmarks import convention
from benchmarks.workload import mixed_texts
from producers import Client

FEW = 100
TIMEOUT_S = 300


def main() -> None:
    options = convention.options(__doc__)
    many, rounds = (600, 1) if options.quick else (10_000, 5)
    texts = mixed_texts(many)
    with convention.fleet() as fleet, Client(fleet.broker_url, fleet.store_url) as client:
        submit(client, texts[:FEW], "small")
        submit(client, texts[:FEW], "large")
        alone = [submit(client, texts[:FEW], "small") for _ in range(rounds)]
        large = client.submit_many("sentiment", texts, tenant="large", params={"truncation": True})
        while large.progress().done < FEW:
            time.sleep(0.01)
        beside = [submit(client, texts[:FEW], "small") for _ in range(rounds)]
        left = large.progress().total - large.progress().done
        large.cancel()
        large.wait(timeout_s=TIMEOUT_S)
    figures = {
        "times_alone": round(statistics.median(beside) / statistics.median(alone), 2),
        "alone_s": round(statistics.median(alone), 2),
        "beside_s": round(statistics.median(beside), 2),
        "large_items": many,
        "large_items_left": left,
    }
    convention.report("tenants", figures, keep=options.keep)


def submit(client: Client, texts: list[str], tenant: str) -> float:
    """Return the seconds that a tenant's texts take."""
    took_s = convention.job_s(client, "sentiment", texts, tenant=tenant)
    convention.progress(f"{tenant}: {len(texts)} in {took_s:.2f} s")
    return took_s


if __name__ == "__main__":
    main()
