"""A program at a site: it asks items one by one and times them, or submits them as a job.

    python -m benchmarks.sites.program ask|submit TASK INPUTS OUT IN_FLIGHT DEADLINE_S

INPUTS is a file of MessagePack with texts or pictures; a deadline of 0 is none. OUT gets a JSON list of rows: label,
score, the mark of the cascade, seconds. `submit` prints the job's id.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from producers import AsyncClient
from producers.wire.errors import ArgosyError

#: The longest wait for an answer.
PATIENCE_S = 300.0


async def ask(client: AsyncClient, task: str, inputs: Sequence[Any], in_flight: int) -> list[dict[str, Any]]:
    """Return the rows, in order, with at most so many items under way."""
    places = asyncio.Semaphore(in_flight)

    async def one(value: Any) -> dict[str, Any]:
        async with places:
            began = time.perf_counter()
            try:
                answer = await (await client.submit(task, value, priority="standard")).result(PATIENCE_S)
            except ArgosyError as error:
                return {"error": type(error).__name__, "seconds": time.perf_counter() - began}
            return row_of(answer) | {"seconds": time.perf_counter() - began}

    return list(await asyncio.gather(*map(one, inputs)))


def row_of(answer: Any) -> dict[str, Any]:
    first = answer[0]
    return {"label": first["label"], "score": first["score"], "cascade": first.get("cascade", {})}


async def run(how: str, task: str, values: Sequence[Any], in_flight: int, deadline_s: float) -> list[dict[str, Any]]:
    async with AsyncClient() as client:
        if how == "ask":
            return await ask(client, task, values, in_flight)
        print((await client.submit_many(task, values, deadline_s=deadline_s or None)).id)
        return []


def main(how: str, task: str, inputs: str, out: str, in_flight: str, deadline_s: str) -> None:
    values = msgspec.msgpack.decode(Path(inputs).read_bytes())
    rows = asyncio.run(run(how, task, values, int(in_flight), float(deadline_s)))
    Path(out).write_text(json.dumps(rows), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
