"""The asyncio client with real workers: what only they can show of it."""

from __future__ import annotations

import asyncio
import zlib

import pytest

from producers import AsyncClient, ItemExpired, ItemFailed
from workers.fleet.local import LocalFleet


@pytest.mark.parametrize("durable", [True, False])
def test_a_fleet_answers_each_its_own(shared_fleet: LocalFleet, *, durable: bool) -> None:
    """Durable or not, alone or together: every item gets its own answer, and the failures their own errors."""
    texts = [f"item {number}" for number in range(300)]

    async def ask(client: AsyncClient, text: str) -> object:
        return await (await client.submit(["echo", "shout"], text, priority="interactive", durable=durable))

    async def main() -> None:
        async with AsyncClient(shared_fleet.broker_url, shared_fleet.store_url) as client:
            answers = await asyncio.gather(*(ask(client, text) for text in texts))
            for text, answer in zip(texts, answers, strict=True):
                crc = zlib.crc32(text.encode())
                assert answer == {task: {"crc": crc, "task": task} for task in ("echo", "shout")}
            with pytest.raises(ItemFailed, match="scripted to raise"):
                await ask(client, "raise")
            late = await client.submit("echo", "late", deadline_s=1e-6, durable=durable)
            with pytest.raises(ItemExpired):
                await late
            (job,) = [one for one in await client.jobs() if one.id == late.job]
            assert (job.items, job.total, job.done) == (302, 603, 603)

    asyncio.run(main())


def test_a_job_is_streamed_as_it_is_computed(shared_fleet: LocalFleet) -> None:
    """Results come while the job runs, each once, from a real fleet's own order of things."""

    async def main() -> None:
        async with AsyncClient(shared_fleet.broker_url, shared_fleet.store_url) as client:
            job = await client.submit_many(["echo", "shout"], (f"row {number}" for number in range(2000)))
            rows = [row async for row in job.as_completed()]
            assert sorted((row.seq, row.task) for row in rows) == [
                (number, task) for number in range(2000) for task in ("echo", "shout")
            ]
            assert (await job.progress()).finished

    asyncio.run(main())
