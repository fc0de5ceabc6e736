"""Webhooks: a receiver of the tests' own is told that jobs have finished, whatever it answers."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2 as httpx
import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from producers.gateway.duties import webhook_duty
from producers.gateway.duties.webhook_message import key_of
from producers.wire.errors import ConfigurationError
from results_store.gateway.webhooks import DueWebhook
from results_store.store import Store
from tests.end_to_end.gateway_server import Served, serving
from tests.end_to_end.processes import until
from workers.fleet.local import LocalFleet

SECRET, OLD_SECRET = (f"whsec_{base64.b64encode(bytes([sign]) * 32).decode()}" for sign in b"no")


class Receiver:
    """Answers POSTs with the next of its `statuses`, the last of them for good, and keeps what came."""

    def __init__(self) -> None:
        self.came: list[tuple[dict[str, str], bytes]] = []
        self.statuses = [204]
        self.url = ""
        self.location = ""
        self.on_request: Callable[[], object] = lambda: None

    def messages(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.came]


@contextmanager
def receiving(host: str = "127.0.0.1") -> Iterator[Receiver]:
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.do_POST()  # a redirect that is followed

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            receiver.came.append((dict(self.headers), body))
            receiver.on_request()
            status = receiver.statuses[min(len(receiver.came), len(receiver.statuses)) - 1]
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("location", receiver.location or f"{receiver.url}/elsewhere")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - of http.server
            pass

    with ThreadingHTTPServer((host, 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        receiver.url = f"http://{host}:{server.server_port}/hook"
        yield receiver
        server.shutdown()
        thread.join()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


@pytest.fixture(scope="module")
def served(shared_fleet: LocalFleet) -> Iterator[Served]:
    private = {"webhook_secrets": (SECRET, OLD_SECRET), "webhook_private": True}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(webhook_duty, "RETRIES_S", (0.1, 0.1, 0.1, 0.1))
        with serving(shared_fleet.broker_url, shared_fleet.store_url, **private) as found:
            yield found


@pytest.fixture(scope="module")
def caller(served: Served) -> Iterator[httpx.Client]:
    with served.client(served.key("ours")) as client:
        yield client


def submitted(caller: httpx.Client, webhook: str, inputs: list[str], **options: object) -> str:
    answer = caller.post("/api/jobs", json={"task": "echo", "inputs": inputs, "webhook": webhook, **options})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def test_one_item_is_told_by_the_job_that_it_has_of_its_own(caller: httpx.Client, receiver: Receiver) -> None:
    """An asynchronous backend sends an item and its address, and goes on; the call says where the results are."""
    body = {"task": ["echo", "shout"], "input": "one", "key": "order 17", "webhook": receiver.url}
    accepted = caller.post("/api/items", json=body)
    assert accepted.status_code in (200, 202)  # it may be done already
    item = accepted.json()["id"]
    until(lambda: bool(receiver.came))
    (told,) = receiver.messages()
    assert (told["type"], told["data"]["succeeded"], told["data"]["priority"]) == ("job.finished", 2, "interactive")
    assert item == f"{told['data']['id']}.0.2"
    answer = caller.get(f"/api/items/{item}")
    assert answer.status_code == 200
    assert {(row["task"], row["key"]) for row in answer.json()["results"]} == {
        ("echo", "order 17"),
        ("shout", "order 17"),
    }
    waited = caller.post("/api/items", json={**body, "wait_s": 30})
    assert waited.status_code == 200
    assert waited.json()["id"].split(".")[0] != told["data"]["id"], "each item has a job of its own"
    refused = caller.post("/api/items", json={**body, "durable": False})
    assert (refused.status_code, refused.json()["field"]) == (422, "webhook")
    wrong = caller.post("/api/items", json={**body, "input": ""})
    assert (wrong.status_code, wrong.json()["field"]) == (422, "input")


def webhook_of(caller: httpx.Client, job: str) -> dict[str, Any]:
    return dict(caller.get(f"/api/jobs/{job}").json()["webhook"])


def state_is(caller: httpx.Client, job: str, state: str) -> Callable[[], bool]:
    return lambda: webhook_of(caller, job)["state"] == state


def test_a_finished_job_is_told_and_signed(caller: httpx.Client, receiver: Receiver) -> None:
    """The reference library of Standard Webhooks verifies it, with the new secret and with the old one."""
    job = submitted(caller, receiver.url, ["one", "two"])
    until(state_is(caller, job, "delivered"))

    ((headers, body),) = receiver.came
    for secret in (SECRET, OLD_SECRET):
        told = Webhook(secret).verify(body, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(body.replace(b"succeeded", b"Succeeded"), headers)
    assert told["type"] == "job.finished"
    assert (told["data"]["id"], told["data"]["succeeded"], told["data"]["state"]) == (job, 2, "finished")
    assert webhook_of(caller, job) == {
        "host": "127.0.0.1",
        "state": "delivered",
        "attempts": 1,
        "attempted_at": webhook_of(caller, job)["attempted_at"],
        "status": 204,
        "error": None,
    }


def test_nothing_is_told_before_the_last_result(caller: httpx.Client, receiver: Receiver) -> None:
    """Whoever is told can fetch all results."""
    done: list[int] = []
    receiver.on_request = lambda: done.append(
        caller.get(f"/api/jobs/{receiver.messages()[-1]['data']['id']}").json()["done"]
    )
    jobs = [submitted(caller, receiver.url, ["sleep 0.2", *map(str, range(9))]) for _ in range(5)]
    for job in jobs:
        until(state_is(caller, job, "delivered"))
    assert sorted(message["data"]["id"] for message in receiver.messages()) == sorted(jobs)
    assert done == [10] * 5


def test_an_end_is_told_until_it_is_taken(caller: httpx.Client, receiver: Receiver) -> None:
    """Errors and redirects, which are not followed, are no answers; the id stays the same."""
    receiver.statuses = [500, 302, 429, 200]
    job = submitted(caller, receiver.url, ["one"])
    until(state_is(caller, job, "delivered"))

    assert len(receiver.came) == 4
    assert len({headers["webhook-id"] for headers, _ in receiver.came}) == 1
    assert webhook_of(caller, job)["attempts"] == 4


def test_a_redirect_to_the_inside_is_not_followed(caller: httpx.Client, receiver: Receiver) -> None:
    """Also if the gateway itself may send to private addresses: the sender names the address, not its host."""
    with receiving() as inside:
        receiver.location = f"{inside.url}/admin"
        receiver.statuses = [302, 307, 308, 204]
        job = submitted(caller, receiver.url, ["one"])
        until(state_is(caller, job, "delivered"))
        assert (len(receiver.came), inside.came) == (4, [])


def test_a_receiver_that_hangs_holds_up_no_other(
    caller: httpx.Client, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has four of the places at most, and is told once it answers."""
    monkeypatch.setattr(webhook_duty, "RETRIES_S", (0.1,) * 1000)
    answers = threading.Event()
    with receiving("127.0.0.2") as hanging:
        hanging.on_request = answers.wait
        held = [submitted(caller, hanging.url, ["one"]) for _ in range(6)]
        until(lambda: len(hanging.came) >= webhook_duty.OF_A_HOST)
        quick = submitted(caller, receiver.url, ["one"])
        until(state_is(caller, quick, "delivered"))
        assert {webhook_of(caller, job)["state"] for job in held} <= {"waiting", "retrying"}
        answers.set()
        for job in held:
            until(state_is(caller, job, "delivered"))


def test_a_tenant_whose_receivers_hang_holds_up_no_other(
    served: Served, caller: httpx.Client, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many names they have: its next end waits, and another tenant's is told."""
    monkeypatch.setattr(webhook_duty, "RETRIES_S", (0.1,) * 1000)
    monkeypatch.setattr(webhook_duty, "OF_A_TENANT", 2)
    answers = threading.Event()
    with receiving("127.0.0.3") as one, receiving("127.0.0.4") as other, served.client(served.key("theirs")) as theirs:
        one.on_request = other.on_request = answers.wait
        held = [submitted(caller, hanging.url, ["one"]) for hanging in (one, other)]
        until(lambda: one.came and other.came)
        waiting = submitted(caller, receiver.url, ["one"])
        quick = submitted(theirs, receiver.url, ["one"])
        until(state_is(theirs, quick, "delivered"))
        assert webhook_of(caller, waiting)["attempts"] == 0
        answers.set()
        for job in (*held, waiting):
            until(state_is(caller, job, "delivered"))


@pytest.mark.parametrize(("status", "attempts"), [(410, 1), (500, 5)])
def test_an_end_that_nobody_wants_is_given_up(
    caller: httpx.Client, receiver: Receiver, status: int, attempts: int
) -> None:
    receiver.statuses = [status]
    job = submitted(caller, receiver.url, ["one"])
    until(state_is(caller, job, "given up"))
    found = webhook_of(caller, job)
    assert (found["attempts"], found["status"], found["error"]) == (attempts, status, f"the host answers {status}")


def test_a_receiver_that_is_away_is_tried_again(caller: httpx.Client) -> None:
    with receiving() as gone:
        pass
    job = submitted(caller, gone.url, ["one"])
    until(state_is(caller, job, "given up"))
    assert "cannot be reached" in webhook_of(caller, job)["error"]


def test_two_gateways_tell_each_end_once(shared_fleet: LocalFleet, caller: httpx.Client, receiver: Receiver) -> None:
    """While nothing fails, a receiver has each end from one of them."""
    secrets = {"webhook_secrets": (SECRET,), "webhook_private": True}
    with serving(shared_fleet.broker_url, shared_fleet.store_url, **secrets):
        jobs = [submitted(caller, receiver.url, ["one", "two"]) for _ in range(20)]
        for job in jobs:
            until(state_is(caller, job, "delivered"))
    assert sorted(message["data"]["id"] for message in receiver.messages()) == sorted(jobs)


def test_a_job_that_ends_again_is_told_again(served: Served, caller: httpx.Client, receiver: Receiver) -> None:
    job = submitted(caller, receiver.url, ["one", "raise"])
    until(state_is(caller, job, "delivered"))
    with Store(served.store_url) as store:
        assert store.dead_letters.replay(job=job, limit=10).results == 1
    until(lambda: len(receiver.came) == 2)
    until(state_is(caller, job, "delivered"))
    first, second = (headers["webhook-id"] for headers, _ in receiver.came)
    assert first != second


def test_a_cancelled_job_is_told_and_a_purged_one_is_not(
    served: Served, caller: httpx.Client, receiver: Receiver
) -> None:
    job = submitted(caller, receiver.url, ["sleep 1"] * 600, ttl_s=60)
    caller.post(f"/api/jobs/{job}/cancel")
    until(state_is(caller, job, "delivered"))
    with Store(served.store_url) as store:
        store.webhooks.add(job, f"{receiver.url}/again")
        store.retention.purge(now=time.time() + 100)
        assert store.webhooks.find(job) is None
    assert [message["data"]["state"] for message in receiver.messages()] == ["cancelled"]


@pytest.mark.parametrize(
    ("webhook", "problem"),
    [
        ("https://user:secret@app.example/hook", "carries a name or password"),
        ("ftp://app.example/hook", "has the scheme 'ftp'"),
        ("/hook", "is not a URL"),
        ("https://app.example/a b", "is not a URL"),
        ("https://app.example:99999/", "is not a URL"),
    ],
)
def test_a_wrong_address_is_refused_before_anything_is_accepted(
    caller: httpx.Client, webhook: str, problem: str
) -> None:
    before = len(caller.get("/api/jobs").json()["jobs"])
    answer = caller.post("/api/jobs", json={"task": "echo", "inputs": ["one"], "webhook": webhook})
    assert answer.status_code == 422
    assert problem in answer.text
    assert "secret" not in answer.text
    assert len(caller.get("/api/jobs").json()["jobs"]) == before


def test_lines_have_webhooks_too(caller: httpx.Client, receiver: Receiver) -> None:
    answer = caller.post("/api/jobs/lines", params={"task": "echo", "webhook": receiver.url}, content=b'"one"\n"two"\n')
    until(state_is(caller, answer.json()["id"], "delivered"))
    assert receiver.messages()[0]["data"]["succeeded"] == 2


def test_the_inside_of_the_network_is_not_reached(
    served: Served, caller: httpx.Client, shared_fleet: LocalFleet, receiver: Receiver
) -> None:
    """Not by http, and not by a name whose address is not public; without a secret, nothing is accepted to be told."""
    with Store(served.store_url) as store:
        job = store.job(submitted(caller, receiver.url, []))
    due = DueWebhook(job=job, url=receiver.url.replace("http://127.0.0.1", "https://localhost"), host="", attempts=0)
    body = {"task": "echo", "inputs": ["one"], "webhook": receiver.url}
    for secrets, problem in (((SECRET,), "has the scheme 'http'"), ((), "is not available here")):
        with (
            serving(shared_fleet.broker_url, shared_fleet.store_url, webhook_secrets=secrets) as public,
            public.client(public.key("ours")) as asking,
        ):
            refused = asking.post("/api/jobs", json=body)
            assert (refused.status_code, problem in refused.text) == (422, True)
            status, reason = public.app.state.webhooks._sent(due)
            assert (status, reason) == (None, "the host's address is not public; --webhook-private allows it")
    assert receiver.came == []


@pytest.mark.parametrize("secret", ["", "hunter2", "whsec_", "whsec_c2hvcnQ=", "whsec_%%%"])
def test_a_secret_that_is_none_is_refused_untold(secret: str) -> None:
    with pytest.raises(ConfigurationError, match=r"--webhook-secret: must be whsec_ and 24 to 64 bytes") as caught:
        key_of(secret)
    assert secret in ("", "whsec_") or secret not in str(caught.value)
