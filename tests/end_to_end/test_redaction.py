"""`[limits] redact` on a whole fleet: what is named there reaches neither the model nor the store, the broker or a
log.
"""

from __future__ import annotations

import asyncio
import zlib
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from producers import AsyncClient, Client, Pipeline
from tests.end_to_end.conftest import SCRIPTED
from tests.end_to_end.gateway_server import serving
from tests.end_to_end.processes import fleet_in
from workers.fleet.local import LocalFleet

TIMEOUT_S = 90
EMAIL, ACCOUNT, CARD = "ada@mail.example.org", "DE89 3704 0044 0532 0130 00", "4111 1111 1111 1111"
#: Cards are not named in the fleet's file, and stay.
LIMITED = SCRIPTED + '[limits]\nredact = ["email", "iban"]\n[blobs]\ninline_bytes = 4000\n'


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything of the fleet lies in here: its file, database, broker, logs and blobs."""
    return tmp_path_factory.mktemp("redacting")


@pytest.fixture(scope="module")
def fleet(home: Path) -> Iterator[LocalFleet]:
    with fleet_in(home, f'{LIMITED}url = "file://{home}/blobs"\n') as fleet:
        yield fleet


def text(way: str) -> str:
    return f"{way}: {EMAIL} pays from {ACCOUNT} with {CARD}"


def seen(way: str) -> dict[str, object]:
    """What the model answers that sees the text without its address and account."""
    return {"crc": zlib.crc32(f"{way}: [e-mail] pays from [IBAN] with {CARD}".encode()), "task": "echo"}


def holding(folder: Path, words: str) -> list[str]:
    """Return the files that have these words in them, plain or as a part of base64, which envelopes in Redis are."""
    raw = words.encode()
    forms = [raw]
    for before in range(3):  # bytes of the same group of three
        whole = (before + len(raw)) * 8 // 6
        forms.append(b64encode(bytes(before) + raw)[(0, 2, 3)[before] : whole])
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path.name for path in files if any(form in path.read_bytes() for form in forms)]


def test_both_clients_and_the_gateway_send_redacted_texts_only(fleet: LocalFleet, home: Path) -> None:
    """By every way in, small or by reference. What the file does not name is found by the same search of all that is
    kept.
    """
    with Client(fleet.broker_url, fleet.store_url) as client:
        assert client.submit("echo", text("one")).result(TIMEOUT_S) == seen("one")
        assert client.submit("echo", text("light"), durable=False).result(TIMEOUT_S) == seen("light")
        job = client.submit_many("echo", [text("many")])
        job.wait(TIMEOUT_S)
        assert [row.output for row in job.results()] == [seen("many")]
        large = "a" * 5000
        assert client.submit("echo", text(large)).result(TIMEOUT_S) == seen(large)
        steps = client.submit_pipeline(Pipeline().step("first", task="echo"), [text("steps")])
        steps.wait(TIMEOUT_S)
        assert [tree.outputs("first") for tree in steps.results()] == [[seen("steps")]]

    async def awaited() -> None:
        async with AsyncClient(fleet.broker_url, fleet.store_url) as client:
            assert await (await client.submit("echo", text("await"))).result(TIMEOUT_S) == seen("await")
            job = await client.submit_many("echo", [text("loop")])
            assert [row.output async for row in job.as_completed()] == [seen("loop")]

    asyncio.run(awaited())
    with serving(fleet.broker_url, fleet.store_url) as gateway, gateway.client(gateway.key("ours")) as http:
        answer = http.post("/api/items", json={"task": "echo", "input": text("http"), "wait_s": 60}).json()
        assert answer["results"][0]["output"] == seen("http")
    assert holding(home, CARD)
    assert holding(home, "[e-mail]")
    assert not holding(home, EMAIL)
    assert not holding(home, ACCOUNT)
