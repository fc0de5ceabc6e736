"""The other tenant: interactive items at a steady rate, through the gateway and through the client, in one process."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from typing import Any, NamedTuple

import httpx2 as httpx

from producers import AsyncClient

#: Seconds between an item's due time and the next item's, by each door.
EVERY_S = 0.04

#: Seconds for an answer.
TIMEOUT_S = 30.0

TENANT = "victim"
PARAMS = {"truncation": True}


class Answer(NamedTuple):
    """An answer through a door. `fault` is empty if it is right. Times are of `time.monotonic`."""

    door: str
    due: float
    answered: float
    fault: str

    @property
    def waited_s(self) -> float:
        return self.answered - self.due


class Urls(NamedTuple):
    broker: str
    store: str
    gateway: str
    key: str


@contextmanager
def asking(urls: Urls, texts: Sequence[str], expected: Sequence[Any]) -> Iterator[list[Answer]]:
    """Have another process ask until left; the answers are in the list then."""
    context = multiprocessing.get_context("spawn")
    over, begun = context.Event(), context.Event()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_process, args=(urls, texts, expected, begun, over, sender))
    process.start()
    answers: list[Answer] = []
    try:
        assert begun.wait(timeout=60), "the victims did not begin"
        yield answers
    finally:
        over.set()
        if receiver.poll(2 * TIMEOUT_S):
            answers += receiver.recv()
        process.join()
    assert process.exitcode == 0


def _process(
    urls: Urls, texts: Sequence[str], expected: Sequence[Any], begun: Event, over: Event, sender: Connection
) -> None:
    sender.send(asyncio.run(_ask(urls, texts, expected, begun, over)))


async def _ask(urls: Urls, texts: Sequence[str], expected: Sequence[Any], begun: Event, over: Event) -> list[Answer]:
    answers: list[Answer] = []
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)  # as callers who come for the first time
    headers = {"Authorization": f"Bearer {urls.key}"}
    async with (
        AsyncClient(urls.broker, urls.store) as client,
        httpx.AsyncClient(base_url=urls.gateway, headers=headers, limits=limits, timeout=TIMEOUT_S) as http,
        asyncio.TaskGroup() as group,
    ):

        async def by_client(text: str) -> Any:
            handle = await client.submit("sentiment", text, priority="interactive", params=PARAMS, tenant=TENANT)
            return await handle.result(timeout_s=TIMEOUT_S)

        async def by_gateway(text: str) -> Any:
            item = {"task": "sentiment", "input": text, "params": PARAMS, "wait_s": TIMEOUT_S}
            answer = (await http.post("/api/items", json=item)).raise_for_status().json()
            return answer["results"][0]["output"]

        async def one(door: str, ask: Callable[[str], Awaitable[Any]], number: int, due: float) -> None:
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    output = await ask(texts[number])
                fault = "" if output[:1] == expected[number] else f"wrong: {output}, not {expected[number]}"
            except Exception as error:  # noqa: BLE001 - whatever it is, the tenant has no answer
                fault = f"{type(error).__name__}: {error}"
            answers.append(Answer(door, due, time.monotonic(), fault))

        due, number = time.monotonic(), 0
        begun.set()
        while not over.is_set():
            for door, ask in {"client": by_client, "gateway": by_gateway}.items():
                group.create_task(one(door, ask, number % len(texts), due))
                number += 1
            due += EVERY_S
            await asyncio.sleep(max(0.0, due - time.monotonic()))
    return answers
