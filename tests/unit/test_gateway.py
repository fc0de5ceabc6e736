"""The gateway's parts that need no network: rates, keys, bodies, lines of a batch."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase, CompletionCreateParamsStreaming
from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers
from tokenizers import Tokenizer, models, pre_tokenizers

from producers.gateway import browsers, problems
from producers.gateway.answers import encoded
from producers.gateway.guard import SENT_BYTES, GuardedBody, Gzip, _parts
from producers.gateway.keys import REMEMBERED, REMEMBERED_S, Caller, Keyring, Refused, new_key
from producers.gateway.openai import chat
from producers.gateway.openai.batch_requests import LineError, RequestReader, read
from producers.gateway.openai.chat_request import UNSERVED, ChatBody, chat_body
from producers.gateway.openai.embeddings import detokenizer_of, plan
from producers.gateway.openai.endpoint_calls import named_problem
from producers.gateway.openai.transcriptions import segments_of, subtitles
from producers.gateway.problems import Problem
from producers.gateway.rates import KEYS, HeldBytes, Rates
from producers.gateway.routes.jobs import _parsed
from producers.gateway.routes.streams import Newest
from producers.gateway.schemas import MOST_OPENED, NewJobBody, NewOne, item_of
from producers.gateway.settings import GatewaySettings
from producers.wire.catalogue import Catalogue, Kind, Task
from producers.wire.errors import ConfigurationError, InvalidInput, ItemFailed, Overloaded, RateLimited
from producers.wire.messages import InlineBytes, UrlInput
from results_store.errors import StoreUnavailable
from results_store.gateway.api_keys import ApiKey
from results_store.records import JobStatus


def test_a_rate_is_kept_with_room_for_a_burst() -> None:
    """Twice the rate at once after a pause, the rate in the long run, each key for itself."""
    rates = Rates()
    assert [rates.take("a", 2, 100.0) for _ in range(5)] == [0, 0, 0, 0, 0.5]
    assert rates.take("b", 2, 100.0) == 0
    assert rates.take("a", 2, 100.5) == 0
    assert sum(rates.take("a", 2, 101 + n / 100) == 0 for n in range(1000)) == pytest.approx(21, abs=1)


def test_a_caller_who_comes_when_it_is_told_is_let_in() -> None:
    """And not before: the time in Retry-After is the time until there is a token."""
    rates = Rates()
    assert rates.take("a", 0.25, 100.0) == 0.0
    assert rates.take("a", 0.25, 101.0) == pytest.approx(3.0)
    assert rates.take("a", 0.25, 103.0) == pytest.approx(1.0)
    assert rates.take("a", 0.25, 104.0) == 0.0
    assert rates.take("a", 0.25, 104.0) == pytest.approx(4.0)


def test_rates_forget_who_was_idle_longest() -> None:
    """However many keys are tried."""
    rates = Rates()
    rates.take("first", 1, 0.0)
    for number in range(KEYS):
        rates.take(str(number), 1, 0.0)
    assert "first" not in rates._buckets
    assert len(rates._buckets) == KEYS


class Keys:
    """Keys as the store has them, and how often it was asked."""

    def __init__(self, *keys: ApiKey) -> None:
        self.keys = {key.id: key for key in keys}
        self.asked = 0

    async def find(self, id_: str) -> ApiKey | None:
        self.asked += 1
        return self.keys.get(id_)


def test_a_key_opens_for_its_holder_only() -> None:
    """Not with another secret, not with none, not after its time; and only its hash is stored."""
    text, key = new_key("laptop", "ours", expires_at=50.0, rate_per_s=3, created_at=0)
    keyring = Keyring(Keys(key).find)

    def holder(header: str | None, now: float = 1.0) -> Caller:
        return asyncio.run(keyring.holder(header, now))

    caller = Caller(tenant="ours", key=key.id, name="laptop", rate_per_s=3)
    assert holder(f"Bearer {text}") == holder(f"bearer  {text} ") == caller
    assert text.rpartition("-")[2] not in str(key)
    for header in (None, "", text, f"Basic {text}", f"Bearer {text}0", f"Bearer argosy-{key.id}-", "Bearer é\ud800"):
        with pytest.raises(Refused):
            holder(header)
    with pytest.raises(Refused, match="expired"):
        holder(f"Bearer {text}", now=50.0)


def test_a_viewers_key_is_unknown_to_a_gateway_of_an_older_version() -> None:
    """It knows no viewers: it would take the holder for a member, also one who sends the role with the secret."""
    text, key = new_key("wall", "ours", role="viewer", created_at=0)
    assert asyncio.run(Keyring(Keys(key).find).holder(f"Bearer {text}", 1.0)).role == "viewer"
    prefix, id_, secret = text.split("-")
    older = Keyring(Keys(replace(key, role="member")).find)
    for sent in (secret, f"viewer:{secret}", key.secret_hash, key.secret_hash.removeprefix("viewer:")):
        assert hashlib.sha256(sent.encode()).hexdigest() != key.secret_hash  # so an older version compares
        with pytest.raises(Refused, match="not known here"):
            asyncio.run(older.holder(f"Bearer {prefix}-{id_}-{sent}", 1.0))


def test_keys_are_remembered_for_a_moment() -> None:
    """Known or not, so that neither traffic nor guessing reaches the store; then looked up again."""
    text, key = new_key("laptop", "ours", created_at=0)
    keys = Keys(key)
    now_s = 0.0
    keyring = Keyring(keys.find, lambda: now_s)

    async def ask() -> None:
        for _ in range(5):
            await keyring.holder(f"Bearer {text}", 1.0)
            with pytest.raises(Refused):
                await keyring.holder(f"Bearer argosy-{'0' * 26}-{'0' * 64}", 1.0)

    asyncio.run(ask())
    assert keys.asked == 2
    now_s = REMEMBERED_S
    keys.keys.clear()
    with pytest.raises(Refused):
        asyncio.run(keyring.holder(f"Bearer {text}", 1.0))


def test_guessing_costs_nobody_a_known_key() -> None:
    text, key = new_key("laptop", "ours", created_at=0)
    keys = Keys(key)
    keyring = Keyring(keys.find)

    async def ask() -> int:
        await keyring.holder(f"Bearer {text}", 1.0)
        for guess in range(REMEMBERED + 1):
            with pytest.raises(Refused):
                await keyring.holder(f"Bearer argosy-{guess:026}-{'0' * 64}", 1.0)
        asked = keys.asked
        await keyring.holder(f"Bearer {text}", 1.0)
        return keys.asked - asked

    assert asyncio.run(ask()) == 0


@pytest.mark.parametrize("id_", ["0" * 25, "0" * 27, "A" * 26, "i" * 26, "é" * 26])
def test_an_id_of_another_form_is_not_looked_up(id_: str) -> None:
    """Nobody has such a key: `new_id` writes no capitals, and no letter that is easily read as a digit."""
    keys = Keys()

    with pytest.raises(Refused, match="not known here"):
        asyncio.run(Keyring(keys.find).holder(f"Bearer argosy-{id_}-{'0' * 64}", 1.0))

    assert keys.asked == 0


def received(*messages: dict[str, Any]) -> Callable[[], Awaitable[dict[str, Any]]]:
    waiting = iter(messages)

    async def receive() -> dict[str, Any]:
        try:
            return next(waiting)
        except StopIteration:
            await asyncio.Event().wait()
            raise

    return receive


def part(size: int, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": b"x" * size, "more_body": more}


def test_a_body_is_refused_as_it_passes_the_limit() -> None:
    """Not after all of it was read."""

    async def read_all(body: GuardedBody) -> None:
        while True:
            await body.receive()

    with pytest.raises(Problem) as refused:
        asyncio.run(read_all(GuardedBody(received(part(60), part(60), part(10**6)), 100, 5)))
    assert refused.value.status_code == 413
    with pytest.raises(Problem) as stalled:
        asyncio.run(read_all(GuardedBody(received(part(60)), 100, 0.001)))
    assert stalled.value.status_code == 408


def test_others_have_their_turns_while_a_body_is_unpacked() -> None:
    """A small body may unpack to gigabytes."""

    async def turns() -> list[str]:
        done = list[str]()

        async def other() -> None:
            while True:
                done.append("other")
                await asyncio.sleep(0)

        beside = asyncio.create_task(other())
        packed, receive = Gzip(), received({"type": "http.request", "body": gzip.compress(bytes(2**20))})
        while (await packed.next(receive))["more_body"]:
            done.append("part")
        beside.cancel()
        return done

    done = asyncio.run(turns())
    assert done.count("part") >= 15
    assert not any(one == other == "part" for one, other in pairwise(done))


def test_a_large_answer_is_handed_over_in_parts() -> None:
    """Its request keeps its place until the reader has taken all but the last of them."""
    whole = {"type": "http.response.body", "body": bytes(range(256)) * 2**11}
    parts = list(_parts(whole))
    assert [len(one["body"]) for one in parts] == [SENT_BYTES, SENT_BYTES]
    assert [one["more_body"] for one in parts] == [True, False]
    assert b"".join(one["body"] for one in parts) == whole["body"]
    small = {"type": "http.response.body", "body": b"x", "more_body": True}
    assert [*_parts(small)] == [small]


WIDE = b"[" + b"[]," * MOST_OPENED + b"[]]"


def test_json_of_too_many_values_is_refused_unread() -> None:
    """A body, a line of a stream, a line of a batch: reading it would take seconds, in which nobody is answered."""
    half: dict[str, Any] = {"type": "http.request", "body": WIDE[: len(WIDE) // 2], "more_body": True}
    body = GuardedBody(received(half, half, half), len(WIDE) * 2, 5, most_opened=MOST_OPENED)
    asyncio.run(body.receive())
    with pytest.raises(Problem, match="over 3,000,000 lists and objects") as refused:
        asyncio.run(body.receive())
    assert refused.value.status_code == 413
    assert "lists and objects" in str(_parsed(WIDE, "line 1", files=False))
    with pytest.raises(LineError, match="lists and objects"):
        read(1, WIDE, "/v1/embeddings", Catalogue({}))


def test_bodies_leave_memory_for_others() -> None:
    """A key holds as many bytes as are free; the other key has room, and gets all of it back in the end."""
    bodies = HeldBytes(100)
    assert bodies.hold("greedy", 40)
    assert not bodies.hold("greedy", 20)
    assert bodies.hold("other", 30)
    assert not bodies.hold("other", 1)
    assert bodies.hold("greedy", -40)
    assert bodies.hold("other", 20)


def test_a_body_waits_for_room_or_is_refused() -> None:
    """By its declared length before a byte is read; without one, when it has grown too large."""

    async def check(hold: Callable[[int], bool], length: str) -> None:
        body = GuardedBody(received(part(60), part(60)), 200, 5, hold, 100)
        await body.check(Headers({"content-length": length} if length else {}), 0.0)
        await body.receive()
        await body.receive()

    held = HeldBytes(200)
    asyncio.run(check(partial(held.hold, "first"), ""))  # 100 of its 120 bytes count
    for length in ("100", ""):
        with pytest.raises(Problem) as refused:
            asyncio.run(check(partial(held.hold, "second"), length))
        assert (refused.value.status_code, refused.value.kind) == (429, "TooManyBytes")
    held.hold("first", -100)

    async def wait() -> None:
        assert held.hold("third", 100)
        body = GuardedBody(received(part(60, more=False)), 200, 5, partial(held.hold, "third"), 100)
        waiting = asyncio.ensure_future(body.check(Headers({"content-length": "60"}), 60.0))
        await asyncio.sleep(0)
        assert not waiting.done()
        held.hold("third", -100)
        await waiting

    asyncio.run(wait())


def test_the_end_of_a_connection_is_waited_for_without_a_limit() -> None:
    """Once the body is whole, silence is what somebody who waits for an answer does."""

    async def wait() -> None:
        body = GuardedBody(received(part(6, more=False)), 100, 0.001)
        await body.receive()
        async with asyncio.timeout(0.05):
            await body.receive()

    with pytest.raises(TimeoutError):
        asyncio.run(wait())


HOST = "fleet.example:8080"
SAME = f"https://{HOST}"


@pytest.mark.parametrize("auth", [True, False])
@pytest.mark.parametrize(
    ("headers", "refused"),
    [
        ({}, False),
        ({"origin": SAME}, False),
        ({"origin": SAME, "sec-fetch-site": "same-origin"}, False),
        ({"origin": "https://app.example", "sec-fetch-site": "cross-site"}, False),
        ({"origin": SAME, "sec-fetch-site": "cross-site"}, True),
        ({"origin": "https://evil.example", "sec-fetch-site": "same-origin"}, True),
        ({"origin": "https://app.example.evil.example"}, True),
        ({"origin": f"https://{HOST}.evil.example"}, True),
        ({"origin": "https://fleet.example"}, True),
        ({"origin": "null"}, True),
        ({"origin": ""}, True),
        ({"origin": "http://[::1"}, True),
        ({"sec-fetch-site": "same-site"}, True),
        ({"sec-fetch-site": "x"}, True),
    ],
)
def test_a_page_of_another_site_changes_nothing(headers: dict[str, str], refused: bool, auth: bool) -> None:
    """By its origin, or by what the browser says of it; whatever they hold, the answer is no error of the gateway."""
    settings = GatewaySettings(auth=auth, allowed_hosts=("fleet.example",), allowed_origins=("https://app.example",))
    for method in ("POST", "PUT", "PATCH", "DELETE", "post", "X"):
        if refused:
            with pytest.raises(Problem, match="another site"):
                browsers.check(method, Headers({"host": HOST, **headers}), settings)
        else:
            browsers.check(method, Headers({"host": HOST, **headers}), settings)
    browsers.check("GET", Headers({"host": HOST, **headers}), settings)


def test_a_slow_reader_gets_the_newest_state() -> None:
    """And nothing piles up for it."""

    def status(done: int) -> JobStatus:
        counts = {"failed": 0, "cancelled": 0, "expired": 0, "items": 9, "total": 9}
        times = {"created_at": 0.0, "finished_at": None, "cancelled_at": None}
        return JobStatus(id="j", name=None, priority=0, succeeded=done, **times, **counts)  # type: ignore[arg-type]

    async def read() -> list[JobStatus | None]:
        newest = Newest()
        for done in range(5):
            newest.put(status(done))
        return [await newest.take(0.001), await newest.take(0.001)]

    assert asyncio.run(read()) == [status(4), None]


def test_json_holds_any_text() -> None:
    """Half a surrogate pair came in as JSON, and must not break the answer that quotes it."""
    assert json.loads(encoded({"detail": "no \ud800, but é"})) == {"detail": "no \ufffd, but é"}
    assert encoded([{"queued_at": float("inf")}, 1.5]) == b'[{"queued_at":null},1.5]'


MANY = 1000


@pytest.mark.parametrize(
    ("form", "body"),
    [
        (NewJobBody, {"task": [5] * MANY, "inputs": []}),
        (NewJobBody, {"task": "x", "inputs": [], **{str(number): 5 for number in range(MANY)}}),
        (NewOne, {"task": "x", "input": "x", **{str(number): 5 for number in range(MANY)}}),
    ],
)
def test_a_body_of_errors_has_few(form: type[BaseModel], body: dict[str, object]) -> None:
    """A body of 32 MiB may be wrong in ten million places, each of which pydantic would describe in a kilobyte."""
    with pytest.raises(ValidationError) as caught:
        form.model_validate(body)
    assert caught.value.error_count() < 10


@pytest.mark.parametrize("body", [{"x" * 100_000: 1}, {"model": "x", "messages": [{"role": "x" * 100_000}]}])
def test_an_error_repeats_little_of_a_body(body: dict[str, object]) -> None:
    """A caller's name or value of a megabyte would come back whole."""
    with pytest.raises(InvalidInput) as refused:
        chat_body(body)
    assert len(str(refused.value)) < 2000


def test_inputs_of_many() -> None:
    """As they are, or with what belongs to them; bytes as base64."""
    given = {"input": {"bytes": "aGk="}, "key": "k", "params": {"top_k": 2}}
    assert item_of("text", "inputs[0]", files=False).input == "text"
    assert item_of(given, "x", files=True).input == InlineBytes(b"hi")
    assert item_of({"url": "http://x/y.png"}, "x", files=True).input == UrlInput("http://x/y.png")
    assert item_of({"question": "q", "context": "c"}, "x", files=False).input == {"question": "q", "context": "c"}
    for wrong in ({"input": "x", "kex": 1}, {"bytes": "??"}, {"bytes": 1}):
        with pytest.raises(InvalidInput, match=r"^inputs\[3\]\."):
            item_of(wrong, "inputs[3]", files=True)


@pytest.mark.parametrize(
    "value", [{"bytes": 1024}, {"bytes": "YR=="}, {"url": None}, {"path": 5}, {"text": 1, "image": {"bytes": 1}}]
)
def test_an_object_is_a_file_only_to_a_task_for_files(value: dict[str, Any]) -> None:
    """A table or a document may have columns of these names: they were refused, or came back as other base64."""
    assert item_of(value, "inputs[0]", files=False).input == value


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (InvalidInput("a", "is wrong"), 422, None),
        (Overloaded("full", 7.2), 503, "8"),
        (Overloaded("full"), 503, "2"),
        (RateLimited("over", 0.1), 429, "1"),
        (StoreUnavailable("away"), 503, "2"),
        (KeyError("secret"), 500, None),
    ],
)
def test_errors_by_whose_fault_they_are(error: Exception, status: int, retry_after: str | None) -> None:
    """With when to try again where that helps; and a bug's text is for the log."""
    found = problems.problem(error)
    assert (found.status_code, (found.headers or {}).get("Retry-After")) == (status, retry_after)
    assert "secret" not in found.detail
    assert problems.item_problem(ItemFailed("t", "InputTooLarge", "m")).status_code == 400
    assert problems.item_problem(ItemFailed("t", "DeviceLost", "m")).status_code == 500


def line(custom_id: str = "a", **changes: object) -> bytes:
    request = {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/embeddings",
        "body": {"model": "embedding", "input": "x"},
    }
    return json.dumps({**request, **changes}).encode()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"{", "invalid_json_line"),
        (b"[]", "invalid_json_line"),
        (b'"' + b"[" * 100_000, "invalid_json_line"),
        (line(custom_id=""), "missing_required_parameter"),
        (line(method="GET"), "invalid_method"),
        (line(url="/v1/chat/completions"), "mismatched_url"),
        (line(body=None), "missing_required_parameter"),
    ],
)
def test_a_line_that_is_no_request(text: bytes, code: str) -> None:
    """Says which rule it breaks."""
    with pytest.raises(LineError) as error:
        read(1, text, "/v1/embeddings", Catalogue.builtin())
    assert error.value.code == code


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"model": "embedding", "input": ""}, "InvalidInput"),
        ({"model": "embedding", "input": []}, "InvalidInput"),
        ({"model": "embedding", "input": [[1]]}, "InvalidInput"),
        ({"model": "embedding", "input": ["x", 1]}, "InvalidInput"),
        ({"model": "embedding", "input": ["x"] * 2049}, "InvalidInput"),
        ({"model": "embedding", "input": "x", "encoding_format": "hex"}, "InvalidInput"),
        ({"model": "embedding", "input": "x", "dimensions": True}, "InvalidInput"),
        ({"model": "embedding", "input": "x" * 100_001}, "context_length_exceeded"),
        ({"model": "embedding", "input": "x", "input_type": "query"}, "InvalidInput"),
        ({"model": "embedding", "input": "x", "stream": True}, "InvalidInput"),
        ({"model": "sentiment", "input": "x"}, "model_not_found"),
        ({"input": "x"}, "InvalidInput"),
    ],
)
def test_a_request_that_only_its_body_makes_impossible(body: dict[str, object], kind: str) -> None:
    """Fails alone; the others of its batch go on."""
    found = read(1, line(body=body), "/v1/embeddings", Catalogue.builtin())
    assert found.refused is not None
    assert found.refused.kind == kind
    assert found.items() == []


def test_a_file_of_requests_is_read_to_its_end() -> None:
    """Its errors are counted by line, its requests keep their places, empty lines are nothing."""

    async def texts() -> AsyncIterator[bytes]:
        for text in (line("a"), b"", line("a"), line("b", body={"model": "embedding", "input": ["x", "y"]})):
            yield text

    async def numbers(reading: RequestReader) -> list[tuple[int, int]]:
        return [(found.number, len(found.items())) async for found in reading.lines()]

    reading = RequestReader(texts(), "/v1/embeddings", Catalogue.builtin())
    assert asyncio.run(numbers(reading)) == [(1, 1), (4, 2)]
    assert [(error["line"], error["code"]) for error in reading.errors] == [(3, "duplicate_custom_id")]
    assert (reading.task, reading.total) == ("embedding", 3)


@pytest.mark.parametrize(
    ("given", "field"),
    [([1, 2], "input"), ([[1, 2], [3]], "input[0]"), (["a", [3]], "input[1]"), (["a", 1], "input[1]")],
)
def test_a_plan_wants_text(given: object, field: str) -> None:
    """Token ids are of one tokenizer, and each model has its own; the switch of LangChain is named."""
    with pytest.raises(InvalidInput, match="send text") as error:
        plan(Catalogue.builtin(), {"model": "embedding", "input": given})
    assert error.value.field == field
    assert ("check_embedding_ctx_length=False" in str(error.value)) == (given != ["a", 1])


def test_token_ids_of_a_named_tokenizer(tmp_path: Path) -> None:
    """Become the text that they were made of, alone and among texts; ids that it does not have are refused."""
    path = tmp_path / "tokenizer.json"
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "fine": 1, "film": 2}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path))
    text_of = detokenizer_of(path)
    asked: list[object] = [[0, 1, 2], [[0, 1, 2], [2]], ["a film", [1, 2]]]
    found = [plan(Catalogue.builtin(), {"model": "embedding", "input": given}, text_of) for given in asked]
    texts = [[item.input for item in call.items] for call in found]
    assert texts == [["a fine film"], ["a fine film", "film"], ["a film", "fine film"]]
    for wrong in (3, -1, 2**40):
        with pytest.raises(InvalidInput, match=rf"^input\[1\]: has the token id {wrong}"):
            plan(Catalogue.builtin(), {"model": "embedding", "input": ["a", [1, wrong]]}, text_of)
    path.write_text("{}")
    with pytest.raises(ConfigurationError, match="is no tokenizer"):
        detokenizer_of(path)


def test_a_text_at_fault_is_named_by_its_place() -> None:
    """Before any of them is sent, with what the caller calls it; and a result by the same name."""
    for wrong, code in (("", "InvalidInput"), ("x" * 100_001, "context_length_exceeded")):
        with pytest.raises(Problem) as refused:
            plan(Catalogue.builtin(), {"model": "embedding", "input": ["fine", "fine", wrong]})
        assert (refused.value.field, refused.value.kind) == ("input[2]", code)
    long = ItemFailed("t", "InputTooLarge", "input: has 600 tokens, over 512; split the text")
    found = named_problem(long, {"input": "input[50]"})
    assert (found.status_code, found.kind, found.field) == (400, "context_length_exceeded", "input[50]")
    assert (
        found.detail == "input[50]: is longer than the model's context length: has 600 tokens, over 512; split the text"
    )


def test_null_is_left_out() -> None:
    """Wherever a parameter is not required, also one that is not served here."""
    nulls = dict.fromkeys(("encoding_format", "dimensions", "user", "truncation", "unheard_of"))
    assert len(plan(Catalogue.builtin(), {"model": "embedding", "input": "x", **nulls}).items) == 1
    fields = {*ChatBody.__struct_fields__, *UNSERVED} - {"model", "messages"}
    message = {"role": "user", "content": "Hi", "name": None, "tool_calls": [], "refusal": None, "annotations": []}
    (item,) = chat.plan(CHAT, {"model": "chat", "messages": [message], **dict.fromkeys(fields)}).items
    assert (item.input, item.params) == ({"messages": [{"role": "user", "content": "Hi"}]}, {})


HEARD = {
    "text": " Go on. Stop.",
    "chunks": [{"text": " Go on.", "timestamp": [0.0, 1.25]}, {"text": " Stop.", "timestamp": [3661.0, 3662.5]}],
}


def test_subtitles() -> None:
    """Both forms, with hours and without."""
    segments = segments_of(HEARD)
    assert subtitles(segments, "srt") == (
        "1\n00:00:00,000 --> 00:00:01,250\nGo on.\n\n2\n01:01:01,000 --> 01:01:02,500\nStop.\n"
    )
    assert subtitles(segments, "vtt").startswith("WEBVTT\n\n00:00:00.000 --> 00:00:01.250\nGo on.\n")
    assert subtitles([], "srt") == ""
    assert segments_of({"text": ""}) == []


class ChatParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """As a kind that generates has them."""

    max_new_tokens: int = 16
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.max_new_tokens < 2**31:
            raise ValueError("`max_new_tokens` must be 1 or more")
        if "" in self.stop:
            raise ValueError("`stop` must not be empty")


#: A catalogue with a task that answers.
CHAT = Catalogue(
    {"chat": Task("chat", Kind("text-generation", "prompt", ChatParams, dict, "an answer"), "small", "answers")}
)


@pytest.mark.parametrize(
    "empty",
    [
        {"role": "system", "content": ""},
        {"role": "developer", "content": " \n"},
        {"role": "assistant", "content": None},
        {"role": "assistant"},
        {"role": "assistant", "content": [{"type": "text", "text": ""}]},
        {"role": "user", "content": ""},
    ],
)
def test_an_empty_message_is_as_none(empty: dict[str, object]) -> None:
    """It says nothing; only an empty question cannot be answered."""
    asked = [{"role": "user", "content": "Hello"}, {"role": "user", "content": "Hi"}]
    for place in (0, 1):
        (item,) = chat.plan(CHAT, {"model": "chat", "messages": [*asked[:place], empty, *asked[place:]]}).items
        assert item.input == {"messages": asked}
    with pytest.raises(InvalidInput) as error:
        chat.plan(CHAT, {"model": "chat", "messages": [*asked, {"role": "user", "content": " "}]})
    assert error.value.field == "messages[2].content"


def test_a_batch_streams_nothing() -> None:
    body = {"model": "chat", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    found = read(1, line(body=body, url="/v1/chat/completions"), "/v1/chat/completions", CHAT)
    assert found.refused is not None
    assert found.refused.field == "stream"


def test_nothing_that_asks_for_something_is_ignored() -> None:
    """Each parameter of OpenAI's own package has an effect, is a label, asks for nothing, or is refused by name."""
    theirs = {*CompletionCreateParamsStreaming.__annotations__, *CompletionCreateParamsBase.__annotations__}
    assert theirs <= {*ChatBody.__struct_fields__, *UNSERVED}
    for name in UNSERVED:
        with pytest.raises(InvalidInput) as error:
            chat.plan(CHAT, {"model": "chat", "messages": [{"role": "user", "content": "Hi"}], name: {"a": 1}})
        assert error.value.field == name


def test_a_conversation_is_an_item() -> None:
    """Its messages in the one form that models know, OpenAI's parameters by our names."""
    messages = [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "!"}]},
    ]
    call = chat.plan(
        CHAT, {"model": "small", "messages": messages, "max_tokens": 5, "stop": "\n", "n": 1, "user": "me"}
    )
    (item,) = call.items
    assert item.input == {"messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi!"}]}
    assert (call.task, item.params) == ("chat", {"max_new_tokens": 5, "stop": ["\n"]})


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": "x", "name": "Bob"}]}, "messages[0].name"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "system", "content": ""}]}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"max_tokens": 2**40}, "max_tokens"),
        ({"max_tokens": 4.5}, "max_tokens"),
        ({"max_tokens": 4, "max_completion_tokens": 4}, "max_tokens"),
        ({"stop": ["a", 1]}, "stop[1]"),
        ({"stop": ""}, "stop"),
        ({"stream": 0}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"n": True}, "n"),
        ({"min_p": 0.1}, "min_p"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
        ({"temperature": 0.5}, "temperature"),
        ({"n": 2}, "n"),
        ({"tools": [{}]}, "tools"),
    ],
)
def test_what_a_conversation_cannot_ask(changes: dict[str, object], field: str) -> None:
    """Refused by name, and never silently left out."""
    with pytest.raises(InvalidInput) as error:
        chat.plan(CHAT, {"model": "chat", "messages": [{"role": "user", "content": "Hi"}], **changes})
    assert error.value.field == field
    assert "max_new_tokens" not in str(error.value), "the caller has no such parameter"
