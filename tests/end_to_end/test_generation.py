"""A fleet that writes: texts, dialogues, prompted tasks, streams; on a tiny model with random weights."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from click.testing import CliRunner

from producers import AsyncClient, Client, Handle, InvalidInput, ItemCancelled, ItemFailed, Job
from producers.client.async_handles import AsyncHandle
from producers.client.text_streams import AsyncTextStream
from producers.commands.main import main
from results_store.records import ResultState
from results_store.store import Store
from tests import tiny_checkpoints
from tests.end_to_end.gateway_server import serving
from tests.end_to_end.processes import fleet_in, until
from workers.fleet.local import LocalFleet

FLEET = """
[worker]
models = ["chat"]
look_for_cancellations_every_s = 0.2
[models.chat]
source = {{ path = "{folder}" }}
options = {{ max_tokens = 256 }}
[models.chat.tasks]
chat = "text-generation"
[models.chat.tasks.urgency]
kind = "prompted-classification"
prompt = "How urgent is this? {{input}}"
labels = ["low", "high", "higher"]
[models.chat.tasks.extract]
kind = "prompted-json"
prompt = "Where? {{input}}"
schema = {{ type = "object", properties = {{ city = {{ enum = ["Rome", "Oslo"] }} }}, required = ["city"], additionalProperties = false }}
"""

#: Longer than any test waits: it ends because it is cancelled.
LONG = {"max_new_tokens": 240, "temperature": 1.0, "seed": 3}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    folder = tmp_path_factory.mktemp("generation")
    checkpoint = tiny_checkpoints.llama(folder / "llama", **NEVER_ENDS)
    with fleet_in(folder, FLEET.format(folder=checkpoint)) as fleet:
        yield fleet


#: Nothing in the vocabulary ends an answer, so that lengths are known.
NEVER_ENDS = {"tie_word_embeddings": False}


def test_every_kind_at_once(client: Client) -> None:
    """Requests of all tasks share the steps; a text that is asked alone is the one that it is among others."""
    texts = [f"Story number {n} begins" for n in range(12)]
    job = client.submit_many("chat", texts, params={"max_new_tokens": 12})
    label = client.submit("urgency", "Now!", params={"top_k": None})
    found = client.submit("extract", "In the north.")
    dialogue = client.submit("chat", [{"role": "user", "content": "Hello"}], params={"max_new_tokens": 5})

    assert found.result(timeout_s=60)["city"] in ("Rome", "Oslo")
    scores = label.result(timeout_s=60)
    assert {one["label"] for one in scores} == {"low", "high", "higher"}
    assert sum(one["score"] for one in scores) == pytest.approx(1, abs=1e-4)
    assert dialogue.result(timeout_s=60)["completion_tokens"] <= 5
    assert job.wait(timeout_s=60).succeeded == 12
    together = {row.seq: row.output["text"] for row in job.results()}
    alone = client.submit("chat", texts[7], params={"max_new_tokens": 12}).result(timeout_s=60)
    assert together[7] == alone["text"]


def test_a_stream_is_the_result_piece_by_piece(client: Client) -> None:
    params = {"max_new_tokens": 200, "seed": 5, "temperature": 1.0}
    whole = client.submit("chat", "Once", params=params).result(timeout_s=60)
    with client.stream("chat", "Once", params=params) as stream:
        pieces = list(stream)
    assert len(pieces) > 3
    assert "".join(pieces) == whole["text"]
    assert stream.result is not None
    assert stream.result["completion_tokens"] == whole["completion_tokens"]


def test_an_asyncio_stream(fleet: LocalFleet) -> None:
    async def read() -> tuple[list[str], str]:
        async with AsyncClient(fleet.broker_url, fleet.store_url) as client:
            async with await client.stream("chat", "Once", params={"max_new_tokens": 200}, durable=False) as stream:
                pieces = [piece async for piece in stream]
            assert stream.result is not None
            return pieces, stream.result["text"]

    pieces, text = asyncio.run(read())
    assert "".join(pieces) == text
    assert len(pieces) > 1


def test_chat_completions_by_the_openai_package(fleet: LocalFleet) -> None:
    """Unmodified: at once, as a stream of many chunks with the same text, and refused with a status that it knows."""
    import openai

    messages: Any = [{"role": "user", "content": "Hello"}]
    with (
        serving(fleet.broker_url, fleet.store_url) as served,
        openai.OpenAI(base_url=f"{served.url}/v1", api_key=served.key("ours"), max_retries=0) as openai_client,
    ):
        asked = {"model": "chat", "messages": messages, "max_tokens": 200, "seed": 1, "temperature": 1.0}
        create: Any = openai_client.chat.completions.create
        whole = create(**asked)
        chunks = list(create(**asked, stream=True, stream_options={"include_usage": True}))
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError, match="over 256") as long:
                create(model="chat", messages=[{"role": "user", "content": "word " * 100}], stream=stream)
            assert (long.value.code, long.value.param) == ("context_length_exceeded", "messages")
            with pytest.raises(openai.BadRequestError, match="over 256; ask for") as long:
                create(model="chat", messages=messages, max_completion_tokens=10_000, stream=stream)
            assert (long.value.code, long.value.param) == ("context_length_exceeded", "max_completion_tokens")
        assert create(**{**asked, "messages": [{"role": "system", "content": ""}, *messages]}).choices == whole.choices
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert len(chunks) > 5
    assert chunks[-1].usage == whole.usage
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason


def test_a_stream_that_is_left_is_cancelled(client: Client) -> None:
    """The item ends cancelled, though it has hardly begun: beside forty others it would go on for long."""
    job = client.submit_many("chat", [f"text {n}" for n in range(40)], params=LONG)
    stream = client.stream("chat", "Once", params=LONG, priority="bulk")
    for _ in stream:
        break
    stream.close()
    handle = stream._stream._handle
    assert handle is not None
    with pytest.raises(ItemCancelled):
        Handle(handle).result(timeout_s=60)
    job.cancel()
    job.wait(timeout_s=60)


def test_a_stream_whose_http_client_leaves_is_cancelled(fleet: LocalFleet, client: Client) -> None:
    """The gateway cancels the request at each of its turns, and the item all the same."""
    import openai

    job = client.submit_many("chat", [f"text {n}" for n in range(40)], params=LONG)
    left = list[AsyncTextStream]()
    with (
        serving(fleet.broker_url, fleet.store_url) as served,
        openai.OpenAI(base_url=f"{served.url}/v1", api_key=served.key("ours"), max_retries=0) as openai_client,
        patch.object(AsyncTextStream, "follow", _noting(left, AsyncTextStream.follow)),
    ):
        messages: Any = [{"role": "user", "content": "Hello"}]
        with openai_client.chat.completions.create(model="chat", messages=messages, stream=True) as stream:
            next(iter(stream))
        handle = until(lambda: left[0]._handle if left[0]._cancelled else None)
        until(lambda: left[0]._subscription is None)
    with Store(fleet.store_url) as store:
        (row,) = until(lambda: store.results_of(handle.job, [handle.seq]))
    assert row.state is ResultState.CANCELLED
    job.cancel()
    job.wait(timeout_s=60)


def _noting(seen: list[AsyncTextStream], follow: Callable[..., AsyncTextStream]) -> Callable[..., AsyncTextStream]:
    def noted(stream: AsyncTextStream, handle: AsyncHandle) -> AsyncTextStream:
        seen.append(stream)
        return follow(stream, handle)

    return noted


def test_a_cancelled_job_stops_decoding(client: Client) -> None:
    job = client.submit_many("chat", [f"text {n}" for n in range(40)], params=LONG)
    first = client.submit("chat", "short", params={"max_new_tokens": 2}, priority="interactive")
    first.result(timeout_s=60)
    job.cancel()
    status = job.wait(timeout_s=60)
    assert status.cancelled > 0
    assert status.cancelled + status.succeeded == 40


def test_an_urgent_request_overtakes_long_ones(client: Client) -> None:
    """Forty long bulk texts hold all places; an interactive one is through before the first of them."""
    job = client.submit_many("chat", [f"text {n}" for n in range(40)], params=LONG, priority="bulk")
    until(lambda: client.job(job.id).progress().items == 40)
    urgent = client.submit("chat", "quick", params={"max_new_tokens": 3}, priority="interactive")
    urgent.result(timeout_s=60)
    status = job.progress()
    job.cancel()
    job.wait(timeout_s=60)
    assert status.succeeded < 40


def test_what_is_refused(client: Client) -> None:
    """At the door what is wrong in itself, at the worker what the model has no room for; each says what to do."""
    for params in ({"temperature": -1}, {"top_p": 0}, {"max_new_tokens": 0}, {"stop": [""]}, {"tempo": 1}):
        with pytest.raises(InvalidInput):
            client.submit("chat", "x", params=params)
    for messages in ([], [{"role": "user"}], [{"role": "user", "content": " "}], {"messages": "x"}):
        with pytest.raises(InvalidInput):
            client.submit("chat", messages)
    with pytest.raises(ItemFailed, match=r"tokens; with 12 to generate that is over 256; shorten"):
        client.submit("chat", "word " * 100, params={"max_new_tokens": 12}).result(timeout_s=60)
    bad = {"schema": {"type": "object", "patternProperties": {"(": {"type": "nothing"}}}}
    with pytest.raises(ItemFailed, match="cannot be compiled"):
        client.submit("extract", "x", params=bad).result(timeout_s=60)


@pytest.mark.long
def test_a_dead_device_process_costs_no_answer(client: Client, fleet: LocalFleet) -> None:
    """What stepped is begun again; a stream that was under way goes on without a gap."""
    import psutil

    pieces: list[str] = []
    killed = threading.Event()
    with client.stream("chat", "Once", params={**LONG, "max_new_tokens": 200}) as stream:
        for piece in stream:
            pieces.append(piece)
            if not killed.is_set():
                killed.set()
                [device] = [
                    process
                    for process in psutil.Process().children(recursive=True)
                    if process.name().startswith("device ")
                ]
                device.kill()
    whole = client.submit("chat", "Once", params={**LONG, "max_new_tokens": 200}).result(timeout_s=60)
    assert "".join(pieces) == whole["text"]


def test_a_model_is_changed_while_it_writes(client: Client, tmp_path: Path) -> None:
    """What has begun is ended by the version that began it, what waited is written by the new one; no text is of
    both.
    """
    texts, params = [f"text {n}" for n in range(24)], {"max_new_tokens": 60}

    def begin() -> Job:
        job = client.submit_many("chat", texts, params=params)
        until(lambda: job.progress().done)
        return job

    newer = tiny_checkpoints.llama(tmp_path / "newer", rope_parameters={"rope_type": "default", "rope_theta": 100.0})
    words = ["models", "reload", "chat", "--source", str(newer)]
    jobs = [begin()]
    with ThreadPoolExecutor() as pool:
        ran = pool.submit(CliRunner().invoke, main, words)
        while not ran.done():
            jobs.append(begin())
    assert ran.result().exit_code == 0, ran.result().output
    jobs.append(begin())
    written: dict[tuple[str, int], set[str]] = {}
    for job in jobs:
        assert job.wait(timeout_s=60).succeeded == len(texts)
        for row in job.results():
            version = str(row.model_revision).partition("@")[0]
            written.setdefault((version, row.seq), set()).add(row.output["text"])
    assert written.keys() == {(version, seq) for version in ("llama", "newer") for seq in range(len(texts))}
    assert all(len(answers) == 1 for answers in written.values()), "one version writes one text"
    assert written["llama", 0] != written["newer", 0]
