"""The gateway with a real fleet behind it: every route, every refusal, over a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import socket
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import httpx2 as httpx
import pytest

from producers import Client
from producers.gateway import connections
from producers.gateway.connections import BoundedConnection
from producers.gateway.guard import PAGE, PAGE_REQUESTS
from producers.gateway.openai.batch_duty import BatchDuty
from producers.gateway.server import serve
from producers.wire.errors import ConfigurationError, ResultTimeout
from results_store.errors import StoreUnavailable
from results_store.store import Store
from tests.conftest import free_port
from tests.end_to_end.gateway_server import SETTINGS, Served, serving
from tests.end_to_end.processes import until
from workers.fleet.local import LocalFleet


@pytest.fixture(scope="module")
def served(shared_fleet: LocalFleet) -> Iterator[Served]:
    with serving(shared_fleet.broker_url, shared_fleet.store_url) as found:
        yield found


@pytest.fixture(scope="module")
def ours(served: Served) -> Iterator[httpx.Client]:
    """A caller of the tenant `ours`."""
    with served.client(served.key("ours")) as client:
        yield client


@pytest.fixture(scope="module")
def theirs(served: Served) -> Iterator[httpx.Client]:
    """A caller of another tenant."""
    with served.client(served.key("theirs")) as client:
        yield client


JSON = {"content-type": "application/json"}
LINES = {"content-type": "application/jsonl"}


def crc(text: str) -> int:
    return zlib.crc32(text.encode())


def test_an_item_is_answered_in_one_request(ours: httpx.Client) -> None:
    """What an API backend wants: ask, wait, have it."""
    answer = ours.post("/api/items", json={"task": "echo", "input": "a text", "key": "mine", "wait_s": 30})

    assert answer.status_code == 200
    (row,) = answer.json()["results"]
    assert (row["state"], row["output"]["crc"], row["key"]) == ("succeeded", crc("a text"), "mine")


def test_an_item_is_accepted_and_fetched_later(ours: httpx.Client, theirs: httpx.Client) -> None:
    """A handle outlives the request, and is nobody else's."""
    accepted = ours.post("/api/items", json={"task": ["echo", "shout"], "input": "sleep 0.2"})
    assert accepted.status_code == 202
    where = accepted.headers["location"]

    answer = ours.get(where, params={"wait_s": 30})
    assert answer.status_code == 200
    assert {row["task"] for row in answer.json()["results"]} == {"echo", "shout"}
    assert theirs.get(where).status_code == 404


def test_many_are_one_job(ours: httpx.Client, theirs: httpx.Client) -> None:
    """Submitted in a body, followed by events, read as lines; another tenant sees nothing of it."""
    body = {
        "task": "echo",
        "inputs": [f"text {n}" for n in range(20)] + [{"input": "raise", "key": "bad"}],
        "name": "x",
    }
    accepted = ours.post("/api/jobs", json=body)
    assert accepted.status_code == 202
    job = accepted.json()["id"]

    with ours.stream("GET", f"/api/jobs/{job}/events") as events:
        told = "".join(events.iter_text())
    assert "event: progress" in told
    assert told.rstrip().rpartition("data: ")[2].startswith("{")
    assert '"finished":true' in told.rpartition("event: finished")[2]

    rows = [json.loads(line) for line in ours.get(f"/api/jobs/{job}/results").text.splitlines()]
    assert [row["output"]["crc"] for row in rows[:20]] == [crc(f"text {n}") for n in range(20)]
    assert (rows[20]["key"], rows[20]["error"]["kind"]) == ("bad", "ModelError")
    assert "traceback" not in rows[20]["error"]

    status = ours.get(f"/api/jobs/{job}").json()
    assert (status["state"], status["succeeded"], status["failed"], status["name"]) == ("finished", 20, 1, "x")
    for path in ("", "/results", "/events", "/page", "/waiting"):
        assert theirs.get(f"/api/jobs/{job}{path}").status_code == 404
    assert theirs.post(f"/api/jobs/{job}/cancel").status_code == 404
    assert job not in theirs.get("/api/jobs").text
    assert job in ours.get("/api/jobs").text


def test_lines_are_accepted_while_they_come(ours: httpx.Client) -> None:
    """A stream of any length needs no memory for it; sent again with its key, it adds nothing twice. The key is refused
    for other lines.
    """

    def lines(count: int, word: str = "line") -> Iterator[bytes]:
        rows = [json.dumps({"input": f"{word} {number}", "key": f"k{number}"}).encode() for number in range(count + 1)]
        yield from (row + b"\n" for row in rows[:-1])
        yield rows[-1]  # the last, without an end

    query = {"task": "echo", "idempotency_key": "stream", "name": "stream"}
    first = ours.post("/api/jobs/lines", params=query, content=lines(300))
    again = ours.post("/api/jobs/lines", params=query, content=lines(500))
    assert (first.status_code, again.status_code) == (202, 202)
    assert (first.json()["items"], again.json()["items"]) == (301, 501)
    assert first.json()["id"] == again.json()["id"]
    other = ours.post("/api/jobs/lines", params=query, content=lines(500, "other"))
    assert (other.status_code, other.json()["field"]) == (409, "idempotency_key")
    assert first.json()["id"] in other.json()["detail"]

    followed = ours.get(f"/api/jobs/{first.json()['id']}/results", params={"follow": "true"}).text.splitlines()
    assert sorted(json.loads(line)["seq"] for line in followed) == list(range(501))


def test_anothers_idempotency_key_is_another_key(ours: httpx.Client, theirs: httpx.Client) -> None:
    """Or one tenant could find the job of another by guessing its key."""
    body = {"task": "echo", "inputs": ["x"], "idempotency_key": "nightly"}
    mine, other = ours.post("/api/jobs", json=body), theirs.post("/api/jobs", json=body)
    assert mine.json()["id"] != other.json()["id"]
    assert ours.post("/api/jobs", json=body).json()["id"] == mine.json()["id"]


def test_a_wrong_line_is_named_and_what_came_before_stays(ours: httpx.Client) -> None:
    """Or it is left out, where the caller says so."""
    content = b'"good"\n{"input": 17}\n\n{"inputt": "x"}\nnot json\n{"input": "fine", "colour": 1}\n"good too"\n'
    stopped = ours.post("/api/jobs/lines", params={"task": "echo"}, content=content)
    assert stopped.status_code == 422
    assert stopped.json()["field"] == "line 2"
    assert stopped.headers["content-type"] == "application/problem+json"

    skipped = ours.post("/api/jobs/lines", params={"task": "echo", "on_error": "skip"}, content=content).json()
    assert (skipped["items"], skipped["rejected_count"]) == (2, 4)
    assert ["line 5: is not JSON" in one["error"] for one in skipped["rejected"]] == [False, False, True, False]


def test_the_priority_of_a_job_changes(ours: httpx.Client, theirs: httpx.Client, tmp_path: Path) -> None:
    """For its owner: what waits moves, and the job ends as any other."""
    gate = tmp_path / "gate"
    gate.touch()
    inputs = [f"wait while {gate}"] + ["x"] * 5000  # more than a worker holds
    job = ours.post("/api/jobs", json={"task": "echo", "inputs": inputs}).json()["id"]
    wanted = {"priority": "interactive"}
    assert theirs.post(f"/api/jobs/{job}/priority", json=wanted).status_code == 404
    refused = ours.post(f"/api/jobs/{job}/priority", json={"priority": "urgent"})
    assert (refused.status_code, refused.json()["field"]) == (422, "priority")
    for _ in range(2):  # the same again is no change
        assert ours.post(f"/api/jobs/{job}/priority", json=wanted).json()["priority"] == "interactive"
    back = ours.post(f"/api/jobs/{job}/priority", json={"priority": "bulk"})
    assert (back.status_code, back.json()["type"]) == (429, "urn:argosy:problem:TooManyChanges")
    assert int(back.headers["retry-after"]) > 0
    gate.unlink()
    ours.get(f"/api/jobs/{job}/events")  # ends with the job
    ended = ours.get(f"/api/jobs/{job}").json()
    assert (ended["state"], ended["succeeded"], ended["priority"]) == ("finished", 5001, "interactive")


def test_cancelling_a_job_and_an_item(served: Served, ours: httpx.Client, tmp_path: Path) -> None:
    """What is not computed yet ends `cancelled`, and the audit log has both."""
    gate = tmp_path / "gate"
    gate.touch()
    inputs = [f"wait while {gate}"] + ["x"] * 5000  # more than a worker holds
    job = ours.post("/api/jobs", json={"task": "echo", "inputs": inputs}).json()["id"]
    assert ours.post(f"/api/jobs/{job}/cancel").status_code == 200
    gate.unlink()
    ours.get(f"/api/jobs/{job}/events")  # ends with the job
    assert ours.get(f"/api/jobs/{job}").json()["state"] == "cancelled"

    gate.touch()
    item = ours.post("/api/items", json={"task": "echo", "input": inputs[0], "priority": "bulk"}).json()["id"]
    ended = ours.delete(f"/api/items/{item}").json()
    gate.unlink()
    assert ended["done"]
    assert ended["results"][0]["state"] == "cancelled"
    stream, seq, _ = item.split(".")
    with Store(served.store_url) as store:
        own = [entry for entry in store.audit.newest(limit=2) if entry.tenant == "ours" and entry.action == "cancel"]
    wanted = [(f"job:{stream}", {"item": int(seq)}), (f"job:{job}", {})]
    assert [(entry.subject, entry.detail) for entry in own] == wanted


def test_failures_are_listed_and_replayed(ours: httpx.Client, theirs: httpx.Client) -> None:
    """By their own tenant only."""
    job = ours.post("/api/jobs", json={"task": "echo", "inputs": ["raise", "fine"]}).json()["id"]
    ours.get(f"/api/jobs/{job}/events")
    (failure,) = ours.get("/api/failures", params={"job": job}).json()["failures"]
    assert (failure["seq"], failure["error"]["kind"]) == (0, "ModelError")
    assert job not in theirs.get("/api/failures").text
    assert theirs.get("/api/failures", params={"job": job}).status_code == 404
    assert ours.get("/api/dead").json() == {"dead": []}

    assert theirs.post("/api/replay", json={"job": job}).status_code == 404
    assert theirs.post("/api/replay", json={"error_kind": "ModelError"}).status_code == 422
    assert ours.post("/api/replay", json={"job": job}).json() == {"envelopes": 1, "results": 1}
    ours.get(f"/api/jobs/{job}/events")
    assert ours.get(f"/api/jobs/{job}").json()["failed"] == 1


def test_what_is_paused_waits_and_says_so(served: Served, ours: httpx.Client, shared_fleet: LocalFleet) -> None:
    """Submissions are accepted; who waits is told why; what cannot wait is refused; only operators pause."""
    echo = {"kind": "task", "name": "echo", "reason": "a test"}
    assert ours.post("/api/pause", json=echo).status_code == 403
    assert ours.get("/api/pauses").status_code == 403
    with served.client(served.key("boss", operator=True)) as boss:
        assert boss.post("/api/pause", json={**echo, "name": "ecko"}).status_code == 422
        paused = boss.post("/api/pause", json=echo)
        assert [(one["name"], one["reason"]) for one in paused.json()["pauses"]] == [("echo", "a test")]
        try:
            answer = ours.post("/api/items", json={"task": ["echo", "shout"], "input": "a text", "wait_s": 2})
            assert answer.status_code == 202
            found = answer.json()
            assert [row["task"] for row in found["results"]] == ["shout"], "the other task of the item goes on"
            assert found["paused"] == "task 'echo' is paused (a test); its items wait until it is resumed"
            job = found["id"].partition(".")[0]
            assert ours.get(f"/api/jobs/{job}/waiting").json()["paused"] == found["paused"]
            until(lambda: boss.get("/api/pauses").json()["pauses"][0]["waiting"])  # others of this fleet may wait too
            gone = ours.post("/api/items", json={"task": "echo", "input": "x", "durable": False, "wait_s": 30}).json()
            assert gone["results"][0]["error"]["kind"] == "Paused"
            with (
                Client(shared_fleet.broker_url, shared_fleet.store_url) as client,
                pytest.raises(ResultTimeout) as late,
            ):
                client.job(job).wait(timeout_s=0.2)
            assert "task 'echo' is paused (a test)" in str(late.value)
        finally:
            assert boss.post("/api/resume", json={"kind": "task", "name": "echo"}).json() == {"pauses": []}
        answer = ours.get(answer.headers["location"], params={"wait_s": 60})
        assert {row["state"] for row in answer.json()["results"]} == {"succeeded"}


def test_an_operator_sees_everybody(served: Served, ours: httpx.Client) -> None:
    """And a member does not see the fleet."""
    job = ours.post("/api/jobs", json={"task": "echo", "inputs": ["x"]}).json()["id"]
    ours.get(f"/api/jobs/{job}/events")  # its batch is stored before its result
    with served.client(served.key("ops", operator=True)) as operator:
        assert operator.get(f"/api/jobs/{job}").json()["tenant"] == "ours"
        fleet = operator.get("/api/fleet").json()
    assert fleet["batches"][0]["model"] == "scripted"
    assert ours.get("/api/fleet").status_code == 403


def test_who_has_no_key_is_told_so(served: Served) -> None:
    """In the shape of the path asked for; what is open stays open."""
    with served.client() as nobody:
        refused = nobody.get("/api/tasks")
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert refused.json()["type"] == "urn:argosy:problem:Unauthorized"
        assert nobody.get("/v1/models").json()["error"]["type"] == "authentication_error"
        assert nobody.get("/healthz").status_code == nobody.get("/readyz").status_code == 200
        assert nobody.get("/openapi.json").json()["info"]["title"] == "Argosy"
    with served.client(served.key("ours", expires_at=1.0)) as late:
        assert "expired" in late.get("/api/tasks").json()["detail"]


def test_a_key_has_its_rate(served: Served) -> None:
    """The rest is told when to come again."""
    with served.client(served.key("eager", rate_per_s=0.001)) as eager:
        assert eager.get("/api/tasks").status_code == 200
        refused = eager.get("/api/tasks")
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 900


@pytest.mark.parametrize(
    ("method", "path", "sent", "status", "detail"),
    [
        ("GET", "/api/nothing", {}, 404, "Not Found"),
        ("GET", "/api/jobs/nothing", {}, 404, "no job 'nothing'"),
        ("GET", "/api/items/nothing", {}, 404, "no item 'nothing'"),
        ("GET", "/api/items/01jd2m3n4p5q6r7s8t9v0w1x2y.0.1", {}, 404, "no job"),
        ("PUT", "/api/jobs", {}, 405, "Method Not Allowed"),
        ("POST", "/api/jobs/lines?task=echo", {"content": b"<x/>", "headers": {"content-type": "text/xml"}}, 415, "jsonl"),
        ("POST", "/api/items", {"content": b"{", "headers": JSON}, 400, "not JSON"),
        ("POST", "/api/items", {"content": b"{}"}, 415, "application/json"),
        ("POST", "/api/items", {"json": {"task": "ecko", "input": "x"}}, 422, "did you mean 'echo'?"),
        ("POST", "/api/items", {"json": {"task": "echo"}}, 422, "input: Field required"),
        ("POST", "/api/items", {"json": {"task": "echo", "input": "x", "wait": 1}}, 422, "wait: Extra inputs"),
        ("POST", "/api/items", {"json": {"task": "echo", "input": "x", "params": {"top": 1}}}, 422, "params"),
        ("POST", "/api/items", {"content": b'{"task": "echo", "input": "\\ud800"}', "headers": JSON}, 422, "not valid Unicode"),
        ("POST", "/api/items", {"content": b'{"task": "\\ud800", "input": "x"}', "headers": JSON}, 422, "no task"),
        ("POST", "/api/items", {"json": {"task": "image-classification", "input": {"bytes": "?"}}}, 422, "not base64"),
        ("POST", "/api/jobs", {"json": {"task": "echo", "inputs": ["x"], "deadline_s": -1}}, 422, "deadline_s"),
        ("GET", "/api/jobs?before=yesterday", {}, 422, "before"),
        ("GET", "/api/jobs?before=1.0,%00", {}, 422, "before"),
        ("GET", "/api/jobs?limit=0", {}, 422, "limit"),
        ("GET", "/api/jobs?state=failed", {}, 422, "state: is not a parameter of the query here"),
        ("GET", "/api/jobs/01jd2m3n4p5q6r7s8t9v0w1x2y/results?folow=true", {}, 422, "folow: is not a parameter"),
        ("POST", "/api/items?wait_s=5", {"json": {"task": "echo", "input": "x"}}, 422, "wait_s: is not a parameter"),
        ("POST", "/api/jobs/lines?task=echo&nmae=x", {"content": b"", "headers": LINES}, 422, "nmae: "),
        ("POST", "/api/jobs", {"json": {"task": "echo", "inputs": ["x"], "ttl_s": True}}, 422, "a number of seconds"),
        ("POST", "/api/items", {"content": b"[" * 5000, "headers": JSON}, 400, "within each other too many times"),
        ("POST", "/api/items", {"content": b'"\xe9"', "headers": JSON}, 400, "the body is not JSON: 'utf-8'"),
        ("POST", "/api/items", {"content": b"1" * 5000, "headers": JSON}, 400, "the body is not JSON: Exceeds the limit"),
    ],
)  # fmt: skip
def test_every_error_is_a_problem(
    ours: httpx.Client, method: str, path: str, sent: dict[str, object], status: int, detail: str
) -> None:
    """With what is wrong and, where there is one, the remedy; never a page of HTML, never a trace."""
    answer = ours.request(method, path, **sent)  # type: ignore[arg-type]
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    assert detail in problem["detail"]
    assert problem["type"].startswith("urn:argosy:problem:")


def test_every_answer_has_an_id(served: Served, ours: httpx.Client) -> None:
    """To find it in the log; also a refusal before any route."""
    with served.client() as nobody:
        answers = [nobody.get(path) for path in ("/healthz", "/", "/api/tasks")]
    answers += [ours.get(path) for path in ("/api/tasks", "/v1/models", "/api/nothing")]
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert len({*ids}) == len(ids)
    assert all(one.startswith("req_") for one in ids)


def test_a_head_is_a_get_without_a_body(ours: httpx.Client) -> None:
    """Also of a stream that would not end."""
    job = ours.post("/api/jobs", json={"task": "echo", "inputs": ["x"]}).json()["id"]
    for path in ("/healthz", "/readyz", "/", "/openapi.json", "/v1/models", f"/api/jobs/{job}/events"):
        whole, head = ours.get(path), ours.head(path)
        assert (head.status_code, head.content) == (200, b"")
        names = ("content-type", "content-length")
        assert [head.headers.get(name) for name in names] == [whole.headers.get(name) for name in names]
    assert ours.head("/api/nothing").status_code == 404


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/api/jobs", "GET, HEAD, POST"),
        ("/api/items/x", "DELETE, GET, HEAD"),
        ("/api/jobs/lines", "POST"),
        ("/v1/files", "GET, HEAD, POST"),
        ("/v1/embeddings", "POST"),
        ("/healthz", "GET, HEAD"),
    ],
)
def test_allow_names_every_method(ours: httpx.Client, path: str, allowed: str) -> None:
    refused = ours.request("PATCH", path)
    assert (refused.status_code, refused.headers["allow"]) == (405, allowed)


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/chat/completions", "/v1/chat/completions; the base_url of OpenAI's clients is http://127.0.0.1:"),
        ("/embeddings/", "/v1/embeddings"),
        ("/v1/models/", "there is /v1/models"),
        ("/api/jobs/", "there is /api/jobs"),
        ("/v1/completions", "/v1/audio/transcriptions, "),
        ("/nothing", "see /openapi.json"),
    ],
)
def test_a_path_that_is_not_served_hints_at_one_that_is(ours: httpx.Client, path: str, hint: str) -> None:
    refused = ours.post(path, json={})
    assert refused.status_code == 404
    assert hint in refused.text


def test_under_v1_a_wrong_request_is_a_bad_request(ours: httpx.Client) -> None:
    """In OpenAI's form, by the name of the parameter; the API of our own keeps 422."""
    for sent in (
        {"json": {}},
        {"json": ["x"]},
        {"content": b"{", "headers": JSON},
        {"json": {"model": "e", "input": 1}},
    ):
        refused = ours.post("/v1/embeddings", **sent)  # type: ignore[arg-type]
        assert refused.status_code == 400
        assert refused.json()["error"].keys() == {"message", "type", "param", "code"}
    assert refused.json()["error"]["param"] == "input"
    for name in ("limit", "created_after"):
        assert ours.get("/v1/files", params={name: 0}).json()["error"]["param"] == name
    assert ours.get("/v1/files", params={"limit": 1, "purpose": "batch", "order": "asc"}).status_code == 200
    assert ours.post("/v1/files", files={"file": b"x"}, data={"purpose": "x"}).json()["error"]["param"] == "purpose"
    assert ours.post("/v1/embeddings", content=b"{}").status_code == 415
    coded = ours.post("/v1/files", content=b"&" * 1000, headers={"content-type": "application/x-www-form-urlencoded"})
    assert (coded.status_code, coded.json()["error"]["param"]) == (415, "content-type")
    two = ours.post("/v1/files", files=[("file", b"{}"), ("file", b"{}")], data={"purpose": "batch"})
    assert (two.status_code, "Too many files" in two.json()["error"]["message"]) == (400, True)
    assert ours.post("/api/items", json={}).status_code == 422


def test_a_gzip_body_is_read_like_a_plain_one(ours: httpx.Client) -> None:
    packed = {**JSON, "Content-Encoding": "gzip"}
    body = json.dumps({"task": "echo", "inputs": ["the same text"] * 100}).encode()
    accepted = ours.post("/api/jobs", content=gzip.compress(body), headers=packed)
    assert accepted.status_code == 202
    assert accepted.json()["items"] == 100
    assert ours.get("/api/jobs", headers={"Content-Encoding": "gzip"}).status_code == 200, "no body is none"
    lines = gzip.compress(b'"%s"\n' % (b"a text " * 1000) * 50)  # over `PART_BYTES` when it is unpacked
    streamed = ours.post("/api/jobs/lines?task=echo", content=lines, headers={"Content-Encoding": "gzip"}).json()
    assert streamed.get("items") == 50, streamed


@pytest.mark.parametrize(
    ("coding", "body", "status"),
    [
        ("gzip", zlib.compress(b"{}"), 400),
        ("gzip", gzip.compress(b"{}")[:-4], 400),
        ("gzip", gzip.compress(b"{}") * 2, 400),
        ("gzip", gzip.compress(bytes(200 * 2**20), 9), 413),
        ("deflate", zlib.compress(b"{}"), 415),
        ("gzip, gzip", gzip.compress(gzip.compress(b"{}")), 415),
    ],
    ids=["zlib", "cut off", "two members", "200 MiB", "deflate", "packed twice"],  # packed bytes hold the time
)
def test_a_body_that_is_packed_otherwise_is_refused_by_name(
    ours: httpx.Client, coding: str, body: bytes, status: int
) -> None:
    """And not as JSON that cannot be read; a bomb is not unpacked."""
    headers = {**JSON, "Content-Encoding": coding}
    refused = ours.post("/api/jobs", content=body, headers=headers)
    assert refused.status_code == status
    assert ("accept-encoding" in refused.headers) == (status == 415)


def test_null_is_a_field_that_is_left_out(ours: httpx.Client) -> None:
    nulls = dict.fromkeys(("priority", "durable", "wait_s", "key", "deadline_s", "params"))
    accepted = ours.post("/api/items", json={"task": "echo", "input": "x", **nulls})
    assert accepted.status_code in (200, 202), "done already, or not yet"
    nulls = dict.fromkeys(("priority", "on_error", "name", "ttl_s", "idempotency_key"))
    assert ours.post("/api/jobs", json={"task": "echo", "inputs": ["x"], **nulls}).status_code == 202


def test_every_answer_is_described(ours: httpx.Client) -> None:
    """With its type; those under /v1 have OpenAI's errors, and what needs no key says so."""
    for path, operations in ours.get("/openapi.json").json()["paths"].items():
        for operation in operations.values():
            assert ("security" in operation) == (path not in ("/healthz", "/readyz"))
            for status, answer in operation["responses"].items():
                assert answer["content"], (path, status)
                assert all(one["schema"] for one in answer["content"].values()), (path, status)
                if status in ("4XX", "5XX"):
                    kind = "application/json" if path.startswith("/v1/") else "application/problem+json"
                    assert [*answer["content"]] == [kind]


def test_a_store_that_goes_away_after_the_acceptance_costs_no_second_submission(
    ours: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error names the job, and an item is answered with its address: sent again, they would be computed twice."""

    def away(*_: object, **__: object) -> NoReturn:
        raise StoreUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "job", away)
        refused = ours.post("/api/jobs", json={"task": "echo", "inputs": ["x"]})
    assert (refused.status_code, refused.json()["type"]) == (503, "urn:argosy:problem:StoreUnavailable")
    assert ours.get(f"/api/jobs/{refused.json()['job']}").json()["items"] == 1
    with monkeypatch.context() as patch:
        patch.setattr(Store, "results_of", away)
        accepted = ours.post("/api/items", json={"task": "echo", "input": "y"})
    assert accepted.status_code == 202
    answer = ours.get(accepted.headers["location"], params={"wait_s": 60})
    assert [row["state"] for row in answer.json()["results"]] == ["succeeded"]


# --- callers that misbehave, on bare sockets ---


@pytest.fixture(scope="module")
def strict(shared_fleet: LocalFleet) -> Iterator[Served]:
    """A gateway with little patience and little room."""
    with serving(
        shared_fleet.broker_url, shared_fleet.store_url, max_body_bytes=100_000, max_items=50, stall_s=0.3
    ) as found:
        yield found


def asked(served: Served, request: str, *headers: str, key: str | None = None) -> socket.socket:
    """Send the head of a request, and leave the rest to the test."""
    connection = socket.create_connection(served.address, timeout=60)
    key = key or served.key("ours")
    lines = [f"{request} HTTP/1.1", "Host: gateway", f"Authorization: Bearer {key}", *headers, "", ""]
    connection.sendall("\r\n".join(lines).encode())
    return connection


def status_of(connection: socket.socket) -> int:
    """The status of the answer."""
    with connection.makefile("rb") as answer:
        return int(answer.readline().split()[1])


def test_a_body_over_the_limit_is_refused_unread(strict: Served) -> None:
    """By what it says of itself, before any of it is sent; or as it passes the limit, when it says nothing."""
    with asked(strict, "POST /api/jobs", "Content-Type: application/json", "Content-Length: 100001") as connection:
        assert status_of(connection) == 413
    with asked(strict, "POST /api/jobs", "Content-Type: application/json", "Transfer-Encoding: chunked") as connection:
        chunk = b"8000\r\n" + b"[" * 0x8000 + b"\r\n"
        connection.sendall(chunk * 4)  # over the limit, and not at its end
        assert status_of(connection) == 413


def test_too_many_items_are_refused_at_the_one_too_many(strict: Served) -> None:
    """In a body nothing is accepted; in a stream the answer names the job that keeps what is."""
    with strict.client(strict.key("ours")) as client:
        assert client.post("/api/jobs", json={"task": "echo", "inputs": ["x"] * 51}).status_code == 413
        streamed = client.post("/api/jobs/lines", params={"task": "echo"}, content=b'"x"\n' * 51)
        long = client.post("/api/jobs/lines", params={"task": "echo"}, content=b'"' + b"x" * 200_000)
        blank = client.post("/api/jobs/lines", params={"task": "echo"}, content=b"\n" * 51)
    assert (streamed.status_code, streamed.json()["type"]) == (413, "urn:argosy:problem:TooManyItems")
    assert (blank.status_code, blank.json()["type"]) == (413, "urn:argosy:problem:TooManyItems")
    assert (long.status_code, long.json()["field"]) == (413, "line 1")


def test_who_stops_sending_is_told_so(strict: Served) -> None:
    """A connection is not held for ever by half a body."""
    with asked(strict, "POST /api/jobs", "Content-Type: application/json", "Content-Length: 1000") as connection:
        connection.sendall(b'{"task": ')
        assert status_of(connection) == 408
    until(lambda: strict.serving == 0)


def test_who_takes_nothing_is_cut_off(strict: Served) -> None:
    """What waits for a reader is bounded, in bytes and in time."""
    with strict.client(strict.key("ours")) as client:
        upload = {"file": ("big", b"x" * 20_000_000)}
        id_ = client.post("/v1/files", files=upload, data={"purpose": "batch"}).json()["id"]
    with asked(strict, f"GET /v1/files/{id_}/content") as connection:
        came = len(connection.recv(1))  # it has begun
        until(lambda: strict.serving == 0)
        while some := connection.recv(2**20):
            came += len(some)
    assert came < 20_000_000, "what is in the buffers is there; nobody waits for the rest to be read"


def test_who_takes_nothing_has_no_connection(strict: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies in a connection's buffer would wait for its reader for ever: a close waits for it, too."""
    dropped = list[str]()
    monkeypatch.setattr(connections, "UNREAD_S", 0.3)
    monkeypatch.setattr(BoundedConnection, "drop", _noting(dropped, BoundedConnection.drop))
    with strict.client(strict.key("ours")) as client:
        upload = {"file": ("big", b"x" * 20_000_000)}
        id_ = client.post("/v1/files", files=upload, data={"purpose": "batch"}).json()["id"]
    with asked(strict, f"GET /v1/files/{id_}/content"):
        until(lambda: "nothing of an answer was taken for 0.3 s" in dropped)


def _noting(reasons: list[str], drop: Callable[[BoundedConnection, str], None]) -> Callable[..., None]:
    def noted(connection: BoundedConnection, reason: str) -> None:
        reasons.append(reason)
        drop(connection, reason)

    return noted


def test_who_leaves_ends_the_waiting_and_not_the_work(served: Served, ours: httpx.Client) -> None:
    """What was accepted is computed, though nobody heard that it was."""
    body = json.dumps({"task": "echo", "input": "sleep 1", "key": "left", "wait_s": 60}).encode()
    until(lambda: served.serving == 0)
    with asked(
        served, "POST /api/items", "Content-Type: application/json", f"Content-Length: {len(body)}"
    ) as connection:
        connection.sendall(body)
        until(lambda: served.serving == 1)
        job = until(lambda: stream_with(ours, "left", accepted=True))
    until(lambda: served.serving == 0)
    until(lambda: stream_with(ours, "left"))
    assert job


def stream_with(client: httpx.Client, key: str, *, accepted: bool = False) -> bool:
    """Whether a job holds a result of this key; or, `accepted`, whether one is not finished."""
    jobs = client.get("/api/jobs").json()["jobs"]
    if accepted:
        return any(not job["finished"] for job in jobs)
    pages = [client.get(f"/api/jobs/{job['id']}/page", params={"limit": 1000}).json()["results"] for job in jobs]
    return any(row["key"] == key for page in pages for row in page)


def test_a_page_begins_after_an_item_or_after_one_of_its_tasks(ours: httpx.Client) -> None:
    """With the item alone it began with that item again, for ever."""
    job = ours.post("/api/jobs", json={"task": ["echo", "shout"], "inputs": ["a", "b"]}).json()["id"]
    ours.get(f"/api/jobs/{job}/results", params={"follow": True})

    def page(**params: str | int) -> list[tuple[int, str]]:
        rows = ours.get(f"/api/jobs/{job}/page", params=params).json()["results"]
        return [(row["seq"], row["task"]) for row in rows]

    assert page(limit=1) == [(0, "echo")]
    assert page(after_seq=0) == [(1, "echo"), (1, "shout")]
    assert page(after_seq=0, after_task="echo", limit=2) == [(0, "shout"), (1, "echo")]


def test_a_gateway_without_a_broker_says_so(shared_fleet: LocalFleet) -> None:
    """It lives, is not ready, and tells callers when to come again."""
    nowhere = f"redis://127.0.0.1:{free_port()}/0"
    with serving(nowhere, shared_fleet.store_url) as served, served.client(served.key("ours")) as client:
        assert client.get("/healthz").status_code == 200
        ready = client.get("/readyz")
        refused = client.post("/api/items", json={"task": "echo", "input": "x"})
        lost = client.post("/v1/embeddings", json={"model": "embedding", "input": "x"})
    assert (ready.status_code, ready.json()["type"]) == (503, "urn:argosy:problem:NotReady")
    assert (refused.status_code, refused.json()["type"]) == (503, "urn:argosy:problem:BrokerUnavailable")
    assert refused.headers["retry-after"]
    assert (lost.status_code, lost.json()["error"]["type"]) == (503, "server_error")


def test_the_task_that_advances_batches_outlives_everything(
    shared_fleet: LocalFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception of any kind is followed by the next look, an ended task by another; a stuck task is not ready."""
    with serving(shared_fleet.broker_url, shared_fleet.store_url) as served, served.client() as client:
        duty: BatchDuty = served.app.state.batches
        looks: list[str] = []

        async def look() -> None:
            looks.append("look")
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(duty, "look", look)
        until(lambda: len(looks) > 1)
        first = duty._task
        assert first is not None
        first.get_loop().call_soon_threadsafe(first.cancel)
        until(lambda: duty._task is not first)
        seen = len(looks)
        until(lambda: len(looks) > seen)
        assert client.get("/readyz").status_code == 200
        monkeypatch.setattr(duty, "look", asyncio.Event().wait)
        monkeypatch.setattr("producers.gateway.duties.duty.LOOK_LIMIT_S", 0.0)
        refused = until(lambda: (found := client.get("/readyz")).status_code == 503 and found)
        assert "made no progress" in refused.json()["detail"]


def test_without_keys_everybody_is_the_operator(shared_fleet: LocalFleet) -> None:
    """On one's own machine; and on no address that others reach."""
    with serving(shared_fleet.broker_url, shared_fleet.store_url, auth=False) as served, served.client() as client:
        assert client.get("/api/fleet").status_code == 200
    with pytest.raises(ConfigurationError, match="--no-auth"):
        serve(replace(SETTINGS, auth=False), "0.0.0.0", 0)


# --- shares, browsers, connections ---


@pytest.fixture(scope="module")
def crowded(shared_fleet: LocalFleet) -> Iterator[Served]:
    """Eight requests at once."""
    with serving(shared_fleet.broker_url, shared_fleet.store_url, max_requests=8) as served:
        yield served


def test_a_key_leaves_room_for_others(crowded: Served) -> None:
    """A key that begins many streams holds half of the slots; the other key, the page and health checks are served."""
    greedy, other = crowded.key("greedy"), crowded.key("other")
    stream = ("POST /api/jobs/lines?task=echo", "Content-Type: application/jsonl", "Transfer-Encoding: chunked")
    with contextlib.ExitStack() as held:
        for _ in range(4):
            held.enter_context(asked(crowded, *stream, key=greedy))
        until(lambda: crowded.serving == 4)
        with crowded.client(greedy) as client:
            refused = client.get("/api/tasks")
            assert (refused.status_code, refused.json()["type"]) == (429, "urn:argosy:problem:TooManyRequests")
        with crowded.client(other) as client:
            assert client.get("/api/tasks").status_code == 200
            assert client.get("/healthz").status_code == 200
            assert client.get("/").status_code == 200
    until(lambda: crowded.serving == 0)


def test_the_page_has_slots_of_its_own(crowded: Served) -> None:
    """Whoever asks for its files again and again keeps neither a key nor a health check waiting."""
    serving = crowded.app.state.gateway.serving
    serving[PAGE] = PAGE_REQUESTS
    try:
        with crowded.client(crowded.key("ours")) as client:
            found = [client.get(path).status_code for path in ("/", "/static/api.js", "/api/tasks", "/healthz")]
    finally:
        del serving[PAGE]
    assert found == [503, 503, 200, 200]


def test_waiting_requests_leave_connections_for_others(crowded: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """With few descriptors a key's requests would take every connection long before they take every slot."""
    monkeypatch.setattr(connections, "most_connections", lambda: 6)
    greedy, other = crowded.key("greedy"), crowded.key("other")
    stream = ("POST /api/jobs/lines?task=echo", "Content-Type: application/jsonl", "Transfer-Encoding: chunked")
    with contextlib.ExitStack() as held:
        for count in range(1, 4):
            held.enter_context(asked(crowded, *stream, key=greedy))
            until(lambda: crowded.serving == count)  # noqa: B023 - at once
        for _ in range(10):
            with asked(crowded, *stream, key=greedy) as refused:
                assert refused.recv(2**16).startswith(b"HTTP/1.1 429 ")
        with crowded.client(other) as client:
            assert client.get("/api/tasks").status_code == 200
    until(lambda: crowded.serving == 0)


def test_half_a_header_is_cut_off_and_others_are_served(crowded: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many connections as there are descriptors: whoever waits longest goes, and a whole request is answered."""
    monkeypatch.setattr(connections, "most_connections", lambda: 20)
    monkeypatch.setattr(connections, "HEADERS_S", 3600.0)  # it is the number that ends them
    with contextlib.ExitStack() as held:
        begun = [held.enter_context(socket.create_connection(crowded.address)) for _ in range(60)]
        for connection in begun:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: ")
        with crowded.client() as client:
            assert client.get("/healthz").status_code == 200
        begun[0].settimeout(30)
        with contextlib.suppress(ConnectionError):
            assert begun[0].recv(1) == b""


def test_headers_have_a_time(crowded: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADERS_S", 0.2)
    with socket.create_connection(crowded.address, timeout=30) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(b"GET / HTTP/1.1\r\nHost: ")
        assert connection.recv(1) == b""


@pytest.mark.parametrize("line", ["POST /api/jobs", "GET /healthz", "GET /static/api.js"])
def test_two_lengths_are_refused_and_the_connection_ends(crowded: Served, line: str) -> None:
    """A proxy in front may read the other one, and take the rest for somebody else's request."""
    both = ("Content-Type: application/json", "Content-Length: 4", "Transfer-Encoding: chunked")
    with asked(crowded, line, *both) as connection:
        answers = b""
        with contextlib.suppress(ConnectionError):  # it may be closed before it has read all of this
            connection.sendall(b"0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            while part := connection.recv(2**16):
                answers += part
    assert answers.startswith(b"HTTP/1.1 400 ")
    assert answers.count(b"HTTP/1.1 ") == 1


def test_private_answers_are_not_kept(crowded: Served) -> None:
    with crowded.client(crowded.key("ours")) as client:
        for path in ("/api/tasks", "/v1/models", "/api/jobs/nothing"):
            headers = client.get(path).headers
            assert (headers["cache-control"], headers["x-content-type-options"]) == ("no-store", "nosniff")


FOREIGN = [
    {"Origin": "https://elsewhere.example"},
    {"Origin": "null"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
]


@pytest.mark.parametrize("headers", FOREIGN)
@pytest.mark.parametrize("auth", [True, False])
def test_a_page_of_another_site_changes_nothing(shared_fleet: LocalFleet, headers: dict[str, str], auth: bool) -> None:
    """By a form, by text/plain, by multipart: a browser sends these without asking."""
    with (
        serving(shared_fleet.broker_url, shared_fleet.store_url, auth=auth) as served,
        served.client(served.key("ours", operator=True)) as client,
    ):
        job = client.post("/api/jobs", json={"task": "echo", "inputs": ["x"]}).json()["id"]
        for path, sent in (
            (f"/api/jobs/{job}/cancel", {}),
            ("/api/jobs/lines?task=echo", {"content": b'"x"', "headers": {"Content-Type": "text/plain"}}),
            ("/v1/files", {"files": {"file": ("a", b"{}")}, "data": {"purpose": "batch"}}),
        ):
            refused = client.post(path, **{**sent, "headers": {**sent.get("headers", {}), **headers}})
            assert refused.status_code == 403
            assert "another site" in refused.text
        own = {"Origin": served.url, "Sec-Fetch-Site": "same-origin"}
        assert client.post(f"/api/jobs/{job}/cancel", headers=own).status_code == 200


def test_a_site_that_is_allowed(shared_fleet: LocalFleet) -> None:
    site = "https://app.example"
    with serving(shared_fleet.broker_url, shared_fleet.store_url, allowed_origins=(site,)) as served:
        asks = {
            "Origin": site,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization, content-type, x-stainless-lang",
        }
        with served.client(served.key("ours")) as client:
            assert client.options("/api/jobs", headers=asks).headers["access-control-allow-origin"] == site
            made = client.post("/api/jobs", json={"task": "echo", "inputs": ["x"]}, headers={"Origin": site})
            assert (made.status_code, made.headers["access-control-allow-origin"]) == (202, site)
            assert "x-request-id" in made.headers["access-control-expose-headers"]
    with (
        serving(shared_fleet.broker_url, shared_fleet.store_url, allowed_origins=("*",)) as served,
        served.client(served.key("ours")) as client,
    ):
        assert (
            client.post("/api/jobs", json={"task": "echo", "inputs": ["x"]}, headers={"Origin": site}).status_code
            == 202
        )
    with pytest.raises(ConfigurationError, match="any site"):
        serve(replace(SETTINGS, auth=False, allowed_origins=("*",)), "127.0.0.1", 0)


def test_without_keys_a_foreign_name_is_refused(shared_fleet: LocalFleet) -> None:
    """A name that another site makes resolve to this machine."""
    with (
        serving(
            shared_fleet.broker_url, shared_fleet.store_url, auth=False, allowed_hosts=("fleet.example",)
        ) as served,
        served.client() as client,
    ):
        for name, status in (
            ("rebound.example", 403), ("127.0.0.1.rebound.example", 403), ("[::1]:80", 200), ("localhost", 200),
            ("127.0.0.1:9", 200), ("fleet.example:8080", 200), ("[", 403), ("", 403),
        ):  # fmt: skip
            assert client.get("/api/tasks", headers={"Host": name}).status_code == status, name
        assert client.get("/healthz", headers={"Host": "rebound.example"}).status_code == 200
