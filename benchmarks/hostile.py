"""Whatever a message says, no slot is lost: hostile Celery messages by the ten thousand, and an ordinary item meanwhile.

    python -m benchmarks.hostile [--messages N] [--seed N] [--quick | --keep]

Each part of the messages goes to a fleet of its own: one and two workers, on SQLite and on PostgreSQL. The fleet serves
the scripted model with eight slots a worker and two lanes. The messages come in portions from
`benchmarks.disasters.messages`; the seed, the fleet and the portion's number decide each of them. After each portion an
ordinary item is submitted and answered, and every list and kombu's notes are empty again.

Figures by fleet: `messages`, `refused` (by the worker's log), `answer_ms_p50` and `answer_ms_max` of the ordinary
items, `left` (messages that stayed unacknowledged), `workers_ended`. The command ends with exit code 1 if a message was
left, an item was not answered, or a worker ended.
"""

from __future__ import annotations

import re
import statistics
import sys
import time
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from redis import Redis

from benchmarks import convention
from benchmarks.disasters.databases import postgresql
from benchmarks.disasters.messages import HostileMessages
from producers import Client
from producers.wire.errors import ArgosyError
from workers.fleet.local import LocalFleet

FLEET = """
[worker]
models = ["scripted"]
concurrency = 8
[store]
url = "{url}"
[models.scripted]
class = "tests.scripted_model:ScriptedModel"
source = {{ path = "{tests}" }}
[models.scripted.tasks.echo]
kind = "text-classification"
"""

#: The folder of the scripted model.
TESTS = Path(__file__).parents[1] / "tests"

#: Messages between two ordinary items.
PORTION = 250

#: Seconds after which an item counts as not answered, and messages as left.
LIMIT_S = 60.0


def refused(log: str) -> int:
    """Return the number of refusals in a worker's log, with those that its lines only count."""
    left_out = re.findall(r"\(([\d,]+) lines of this kind were left out before\)", log)
    return log.count("refused a message of") + sum(int(count.replace(",", "")) for count in left_out)


class Attack:
    """A fleet under hostile messages."""

    def __init__(self, fleet: LocalFleet, client: Client, redis: Redis, seed: str) -> None:
        self._fleet = fleet
        self._client = client
        self._redis = redis
        self._seed = seed
        self._answers_ms: list[float] = []
        self._left = 0

    def run(self, messages: int) -> dict[str, Any]:
        """Send the messages and return the figures."""
        processes = [worker.process for worker in self._fleet.workers]
        somebody = self._client.submit("echo", "somebody else's", tenant="second-lane")
        somebody.result(timeout_s=LIMIT_S)
        sent = 0
        while sent < messages and not self._left:
            portion = HostileMessages(f"{self._seed} {sent}", "scripted", lanes=2, known=(somebody.job, "unknown"))
            sent += self._strike(list(islice(portion, min(PORTION, messages - sent))))
            if sent % (20 * PORTION) == 0:
                convention.progress(f"{self._seed}: {sent:,} messages")
        logs = (self._fleet.home / "logs").glob("worker-*.log")
        return {
            "messages": sent,
            "refused": sum(refused(log.read_text(errors="replace")) for log in logs),
            "answer_ms_p50": round(statistics.median(self._answers_ms), 1) if self._answers_ms else None,
            "answer_ms_max": round(max(self._answers_ms, default=0.0), 1),
            "left": self._left,
            "workers_ended": sum(
                before is not now.process or (before is not None and before.poll() is not None)
                for before, now in zip(processes, self._fleet.workers, strict=True)
            ),
        }

    def _strike(self, messages: list[tuple[str, bytes]]) -> int:
        with self._redis.pipeline(transaction=False) as pipeline:
            for key, data in messages:
                pipeline.lpush(key, data)
            pipeline.execute()
        began = time.monotonic()
        try:
            self._client.submit("echo", "ordinary", priority="interactive").result(timeout_s=LIMIT_S)
        except (ArgosyError, TimeoutError) as error:
            convention.progress(f"an ordinary item was not answered: {error}")
            self._left += 1
        self._answers_ms.append(1000 * (time.monotonic() - began))
        self._left += self._await_empty({key for key, _ in messages})
        return len(messages)

    def _await_empty(self, keys: set[str]) -> int:
        """Return the number of messages that are left after LIMIT_S at most."""
        deadline = time.monotonic() + LIMIT_S
        while True:
            waiting: list[Any] = [self._redis.llen(key) for key in keys]
            held: Any = self._redis.hlen("unacked")
            left = sum(waiting) + int(held)
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.01)


def attack(store: str, workers: int, messages: int, seed: str) -> dict[str, Any]:
    """Send `messages` to a fleet with this store and so many workers."""
    with (
        convention.fleet(toml=FLEET.format(url=store, tests=TESTS), workers_per_device=workers) as fleet,
        Client(fleet.broker_url, fleet.store_url) as client,
        Redis.from_url(fleet.broker_url) as redis,
    ):
        return Attack(fleet, client, redis, seed).run(messages)


def main() -> int:
    parser = convention.parser(__doc__)
    parser.add_argument(
        "--messages", type=int, default=100_000, help="messages, of all fleets together (default: 100000)"
    )
    parser.add_argument("--seed", type=int, default=1, help="decides the messages (default: 1)")
    chosen = parser.parse_args()
    figures: dict[str, Any] = {"seed": chosen.seed}
    with TemporaryDirectory(prefix="argosy-benchmark-") as folder, postgresql() as server:
        fleets = [("sqlite", 1), ("sqlite", 2), ("postgresql", 1), ("postgresql", 2)]
        if chosen.quick:
            fleets, chosen.messages = [("postgresql", 2)], 1000
        for number, (store, workers) in enumerate(fleets):
            url = f"sqlite:///{folder}/{number}.db" if store == "sqlite" else server.url
            name = f"{store}_{workers}"
            figures[name] = attack(url, workers, chosen.messages // len(fleets), f"{chosen.seed} {name}")
            convention.progress(f"{name}: {figures[name]}")
    convention.report("hostile", figures, keep=chosen.keep)
    return int(any(found["left"] or found["workers_ended"] for found in figures.values() if isinstance(found, dict)))


if __name__ == "__main__":
    sys.exit(main())
