"""The gateway as OpenAI's own Python package uses it, unmodified, with the real text model behind it."""

from __future__ import annotations

import base64
import json
import math
import socket
import subprocess
import sys
import time
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from producers import Client
from producers.gateway.keys import new_key
from producers.gateway.openai.batch_job import BatchJob
from producers.wire.messages import new_id
from results_store.migrations.run import upgrade
from results_store.records import Tenant
from results_store.sql.database import Database, Weight
from results_store.store import Store
from tests.conftest import free_port
from tests.end_to_end.documents import ROOT, Reader
from tests.end_to_end.gateway_server import Served, serving
from tests.end_to_end.generated_requests import answers
from tests.end_to_end.processes import fleet_in, until
from tests.integration import batches_before
from workers.fleet.local import LocalFleet

TEXTS = ["A fine, moving film.", "The movie was excellent.", "Shares fell as profits missed forecasts."]


@pytest.fixture(scope="module")
def text_fleet(tmp_path_factory: pytest.TempPathFactory, pulled_models: object) -> Iterator[LocalFleet]:
    """A fleet with the built-in text model alone."""
    with fleet_in(tmp_path_factory.mktemp("text"), '[worker]\nmodels = ["text"]\n') as fleet:
        yield fleet


@pytest.fixture(scope="module")
def served(text_fleet: LocalFleet) -> Iterator[Served]:
    with serving(text_fleet.broker_url, text_fleet.store_url) as found:
        yield found


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=served.key("ours"), max_retries=0) as client:
        yield client


def cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def request(custom_id: str, **body: object) -> str:
    return json.dumps(
        {"custom_id": custom_id, "method": "POST", "url": "/v1/embeddings", "body": {"model": "embedding", **body}}
    )


def finished(client: openai.OpenAI, id_: str) -> openai.types.Batch:
    ended = ("completed", "failed", "cancelled", "expired")
    return until(lambda: batch if (batch := client.batches.retrieve(id_)).status in ended else None)


def test_embeddings(client: openai.OpenAI, text_fleet: LocalFleet) -> None:
    """The package asks for base64 unless told otherwise; either way these are the fleet's own vectors."""
    answer = client.embeddings.create(model="embedding", input=TEXTS)
    floats = client.embeddings.create(model="text", input=TEXTS[0], encoding_format="float")
    raw = client.embeddings.create(model="embedding", input=TEXTS[0], encoding_format="base64").data[0].embedding

    vectors = [one.embedding for one in answer.data]
    with Client(text_fleet.broker_url, text_fleet.store_url) as fleet:
        own = fleet.submit("embedding", TEXTS[0]).result(timeout_s=60)
    assert [one.index for one in answer.data] == [0, 1, 2]
    assert vectors[0] == pytest.approx(own, abs=1e-5)
    assert floats.data[0].embedding == pytest.approx(own, abs=1e-5)
    assert list(array("f", base64.b64decode(str(raw)))) == pytest.approx(own, abs=1e-5)
    assert cosine(vectors[0], vectors[1]) > cosine(vectors[0], vectors[2])
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > len(" ".join(TEXTS).split())


def test_embeddings_of_fewer_dimensions(client: openai.OpenAI) -> None:
    """The first numbers, of length 1 again."""
    vector = client.embeddings.create(model="embedding", input=TEXTS[0], dimensions=64).data[0].embedding
    assert len(vector) == 64
    assert math.hypot(*vector) == pytest.approx(1, abs=1e-5)


def test_what_embeddings_refuse(client: openai.OpenAI) -> None:
    """Errors come in the shape that the package reads, by its own classes."""
    with pytest.raises(openai.NotFoundError, match="embedding") as unknown:
        client.embeddings.create(model="gpt-17", input="x")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="token ids"):
        client.embeddings.create(model="embedding", input=[1, 2, 3])
    texts = ["x", "word " * 2000, "y"]
    with pytest.raises(openai.BadRequestError, match=r"over 512; .* set `truncation`") as long:
        client.embeddings.create(model="embedding", input=texts)
    assert (long.value.code, long.value.param) == ("context_length_exceeded", "input[1]")
    assert len(client.embeddings.create(model="embedding", input=texts, extra_body={"truncation": True}).data) == 3
    with pytest.raises(openai.BadRequestError, match="empty") as empty:
        client.embeddings.create(model="embedding", input=["x", "  "])
    assert empty.value.param == "input[1]"
    with pytest.raises(openai.BadRequestError, match="over the model's 384") as wide:
        client.embeddings.create(model="embedding", input="x", dimensions=385)
    assert wide.value.param == "dimensions"
    assert str(wide.value.request_id).startswith("req_")
    with pytest.raises(openai.AuthenticationError, match="not known"):
        client.with_options(api_key="argosy-0-0").embeddings.create(model="embedding", input="x")


def test_models(client: openai.OpenAI) -> None:
    """Those that these shapes can ask for."""
    assert [model.id for model in client.models.list()] == ["embedding"]
    assert client.models.retrieve("embedding").owned_by == "text"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("sentiment")


def test_what_is_not_served_is_refused(client: openai.OpenAI) -> None:
    """This fleet neither talks nor listens: each refusal says what it would need."""
    with pytest.raises(openai.NotFoundError, match="text-generation; the fleet serves no such model"):
        client.chat.completions.create(model="embedding", messages=[{"role": "user", "content": "Hi"}])
    with pytest.raises(openai.NotFoundError, match="automatic-speech-recognition; the fleet serves no such model"):
        client.audio.transcriptions.create(model="whisper-1", file=("a.wav", b"RIFF"))


def test_files(client: openai.OpenAI, served: Served) -> None:
    """What is uploaded comes back byte for byte, is listed, and is nobody else's."""
    content = b"".join(b"%d\n" % n for n in range(200_000))  # several parts
    file = client.files.create(file=("numbers.jsonl", content), purpose="batch")

    assert client.files.content(file.id).read() == content
    assert (client.files.retrieve(file.id).bytes, file.filename) == (len(content), "numbers.jsonl")
    assert file.id in [one.id for one in client.files.list(limit=1, purpose="batch")]
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=served.key("theirs"), max_retries=0) as other:
        assert file.id not in [one.id for one in other.files.list()]
        for call in (other.files.retrieve, other.files.content, other.files.delete):
            with pytest.raises(openai.NotFoundError):
                call(file.id)
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


def test_files_that_would_expire_are_refused(client: openai.OpenAI) -> None:
    """Who wants a file to be gone must not be told that it is kept as asked."""
    expiry: Any = {"anchor": "created_at", "seconds": 3600}
    with pytest.raises(openai.BadRequestError, match="not permitted") as error:
        client.files.create(file=("a.jsonl", b"{}"), purpose="batch", expires_after=expiry)
    assert str(error.value.param).startswith("expires_after")
    asked: Any = {"input_file_id": "file-x", "endpoint": "/v1/embeddings", "completion_window": "24h"}
    with pytest.raises(openai.BadRequestError, match="not available") as error:
        client.batches.create(**asked, output_expires_after=expiry)
    assert error.value.param == "output_expires_after"
    with pytest.raises(openai.NotFoundError) as unknown:
        client.batches.create(**asked)
    assert unknown.value.param == "input_file_id"


def test_a_batch(client: openai.OpenAI) -> None:
    """Each request gets its response under its own id, the impossible one its error; alone or several texts."""
    lines = [request(f"r{n}", input=f"text number {n}") for n in range(30)]
    lines += [
        request("two", input=TEXTS[:2], encoding_format="base64"),
        "",
        request("wrong", input=""),
        request("long", input="word " * 2000),
    ]
    file = client.files.create(file=("in.jsonl", "\n".join(lines).encode()), purpose="batch")
    made = client.batches.create(
        input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h", metadata={"for": "test"}
    )
    batch = finished(client, made.id)

    assert (batch.status, batch.metadata) == ("completed", {"for": "test"})
    counts = batch.request_counts
    assert counts is not None
    assert (counts.total, counts.completed, counts.failed) == (33, 31, 2)
    assert batch.output_file_id is not None
    assert batch.error_file_id is not None
    good = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    bad = [json.loads(line) for line in client.files.content(batch.error_file_id).text.splitlines()]
    assert [one["custom_id"] for one in good] == [*(f"r{n}" for n in range(30)), "two"]
    assert {one["response"]["status_code"] for one in good} == {200}
    assert len(good[30]["response"]["body"]["data"]) == 2
    told = [(one["custom_id"], one["error"], one["response"]["status_code"]) for one in bad]
    assert told == [("wrong", None, 400), ("long", None, 400)]
    assert [one["response"]["body"]["error"]["code"] for one in bad] == ["InvalidInput", "context_length_exceeded"]
    alone = client.embeddings.create(model="embedding", input="text number 7").data[0].embedding
    assert good[7]["response"]["body"]["data"][0]["embedding"] == pytest.approx(alone, abs=1e-4)
    assert made.id in [one.id for one in client.batches.list(limit=1)]


def test_a_file_that_is_no_batch(client: openai.OpenAI) -> None:
    """Each line that is wrong is named, and nothing is computed."""
    lines = [
        "{",
        request("a", input="x"),
        request("a", input="y"),
        json.dumps({"custom_id": "b"}),
        request("c", model="text", input="x"),
    ]
    file = client.files.create(file=("in.jsonl", "\n".join(lines).encode()), purpose="batch")
    made = client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h")
    batch = finished(client, made.id)

    assert batch.status == "failed"
    assert batch.errors is not None
    assert [(one.line, one.code) for one in batch.errors.data or []] == [
        (1, "invalid_json_line"),
        (3, "duplicate_custom_id"),
        (4, "mismatched_url"),
    ]
    assert batch.output_file_id is None


def begun(client: openai.OpenAI, count: int) -> openai.types.Batch:
    """A batch that takes a while."""
    content = "\n".join(request(f"r{n}", input=f"text number {n} " * 8) for n in range(count)).encode()
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h")


@contextmanager
def gateway(fleet: LocalFleet, key: str = "") -> Iterator[tuple[openai.OpenAI, str]]:
    """A gateway of its own, and its client."""
    with serving(fleet.broker_url, fleet.store_url) as served:
        key = key or served.key("ours")
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0) as client:
            yield client, key


def test_a_batch_outlives_its_gateway(text_fleet: LocalFleet) -> None:
    """The next gateway goes on where the first one stopped, and computes nothing again."""
    with gateway(text_fleet) as (client, key):
        made = begun(client, 200)
        until(lambda: client.batches.retrieve(made.id).status != "validating")
    with gateway(text_fleet, key) as (client, _):
        batch = finished(client, made.id)
        assert batch.output_file_id is not None
        rows = client.files.content(batch.output_file_id).text.splitlines()
    assert batch.status == "completed"
    assert [json.loads(row)["custom_id"] for row in rows] == [f"r{n}" for n in range(200)]
    with Client(text_fleet.broker_url, text_fleet.store_url) as fleet:
        (job,) = [one for one in fleet.jobs() if one.name == made.id]
    assert (job.items, job.succeeded, job.tenant) == (200, 200, "ours")


@pytest.mark.long
def test_a_gateway_is_killed_in_the_middle_of_submitting(text_fleet: LocalFleet) -> None:
    """SIGKILL once the first items are accepted: two other gateways go on at once, nothing is lost or doubled."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    key, row = new_key("killed", "slow", created_at=time.time())
    command = [sys.executable, "-m", "producers.commands.main", "gateway", "--port", str(port)]
    with (
        Store(text_fleet.store_url) as store,
        openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client,
    ):
        store.keys.add(row)
        store.tenants.configure(Tenant(name="slow", lane=0, max_items_per_s=20))
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            try:
                until(lambda: listens(port))
                made = begun(client, 300)
                until(lambda: any(job.items for job in store.jobs(tenant="slow")))
            finally:
                process.kill()
        (job,) = store.jobs(tenant="slow")
        assert 0 < job.items < 300
        store.tenants.configure(Tenant(name="slow", lane=0))
        with gateway(text_fleet, key) as (one, _), gateway(text_fleet, key):
            batch = finished(one, made.id)
            assert (batch.status, batch.output_file_id is not None, batch.error_file_id) == ("completed", True, None)
            rows = one.files.content(str(batch.output_file_id)).text.splitlines()
        (job,) = store.jobs(tenant="slow")
    assert [json.loads(row)["custom_id"] for row in rows] == [f"r{n}" for n in range(300)]
    assert (job.id, job.items, job.succeeded) == (batch.to_dict()["job"], 300, 300)


@pytest.mark.long
def test_a_batch_of_an_older_version_is_finished(
    tmp_path: Path, pulled_models: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first gateway submits what was open at the migration; what was finished can still be read."""
    old, ended = f"batch_{new_id()}", f"batch_{new_id()}"
    content = "\n".join(request(f"r{n}", input=f"text number {n}") for n in range(20)).encode()
    output = f"file-{ended[6:]}-output"
    database = Database(f"sqlite:///{tmp_path}/home/store.db", timeout_s=30)
    upgrade(database, batches_before.REVISION)
    with database.write(Weight.ACCEPTED) as connection:
        counts = {"total": 20, "completed": 0, "failed": 0}
        batches_before.insert_file(connection, f"file-{old[6:]}", content)
        batches_before.insert_batch(connection, old, "in_progress", {"counts": counts, "job": "old"}, worker="gone")
        batches_before.insert_job(connection, "old", old)
        done = {"counts": {**counts, "completed": 20}, "output_file_id": output}
        batches_before.insert_batch(connection, ended, "completed", done, finished_at=200.0)
        batches_before.insert_file(connection, output, b"answers\n", purpose="batch_output")
    database.close()
    for name in ("ARGOSY_BROKER_URL", "ARGOSY_STORE_URL"):  # another fleet's, if it runs
        monkeypatch.delenv(name, raising=False)
    with fleet_in(tmp_path, '[worker]\nmodels = ["text"]\n') as fleet, gateway(fleet) as (client, _):
        batch = finished(client, old)
        assert (batch.status, batch.error_file_id) == ("completed", None)
        rows = client.files.content(str(batch.output_file_id)).text.splitlines()
        assert [json.loads(row)["custom_id"] for row in rows] == [f"r{n}" for n in range(20)]
        before = client.batches.retrieve(ended)
        assert (before.status, before.completed_at, before.output_file_id) == ("completed", 200, output)
        assert client.files.content(output).text == "answers\n"


def test_what_becomes_of_output_files(client: openai.OpenAI, text_fleet: LocalFleet) -> None:
    """They are the same whenever they are read, are deleted by themselves, and go with their job."""
    file = client.files.create(
        file=("in.jsonl", "\n".join([request("a", input="x"), request("b", input="")]).encode()), purpose="batch"
    )
    made = client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h")
    batch = finished(client, made.id)
    output, failed = str(batch.output_file_id), str(batch.error_file_id)
    client.files.delete(file.id)  # they need no input any more

    first = client.files.content(output).read()
    assert client.files.content(output).read() == first
    assert client.files.retrieve(output).bytes == len(first)
    assert {output, failed} <= {one.id for one in client.files.list(purpose="batch_output")}
    client.files.delete(failed)
    with pytest.raises(openai.NotFoundError, match="no file"):
        client.files.content(failed)
    with Store(text_fleet.store_url) as store:
        store.retention.purge(finished_before=time.time())
    with pytest.raises(openai.NotFoundError, match="purged"):
        client.files.content(output)
    assert client.batches.retrieve(batch.id).status == "completed"


def test_a_batch_ends_with_its_window(text_fleet: LocalFleet) -> None:
    """Its deadline is its items': what is not computed by then is told expired."""
    with (
        serving(text_fleet.broker_url, text_fleet.store_url, batch_window_s=0.0) as served,
        openai.OpenAI(base_url=f"{served.url}/v1", api_key=served.key("ours"), max_retries=0) as client,
    ):
        batch = finished(client, begun(client, 30).id)
        told = client.files.content(str(batch.error_file_id)).text.splitlines()
    counts = batch.request_counts
    assert counts is not None
    assert (batch.status, counts.total, counts.completed, counts.failed) == ("expired", 30, 0, 30)
    assert {json.loads(row)["error"]["code"] for row in told} == {"batch_expired"}
    assert {json.loads(row)["response"] for row in told} == {None}


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_fault_of_the_gateway_ends_a_batch(client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be there again at every try; the batch says so, and the reason stays in the log."""

    async def faulty(_: BatchJob) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(BatchJob, "advance", faulty)
    batch = finished(client, begun(client, 1).id)
    assert batch.status == "failed"
    assert batch.errors is not None
    assert [(one.code, one.message) for one in batch.errors.data or []] == [
        ("internal_error", "the gateway failed; its log says why")
    ]


def test_a_batch_is_cancelled(client: openai.OpenAI) -> None:
    """What it has computed by then is there; each other request says that it was cancelled."""
    made = begun(client, 600)
    assert client.batches.cancel(made.id).status == "cancelling"
    batch = finished(client, made.id)

    counts = batch.request_counts
    assert (batch.status, batch.cancelled_at is not None) == ("cancelled", True)
    assert counts is not None
    assert counts.failed > 0
    assert counts.completed + counts.failed == counts.total == 600
    assert batch.error_file_id is not None
    told = client.files.content(batch.error_file_id).text.splitlines()
    assert {json.loads(row)["error"]["code"] for row in told} == {"batch_cancelled"}
    assert {json.loads(row)["response"] for row in told} == {None}
    with pytest.raises(openai.ConflictError, match="cancelled already"):
        client.batches.cancel(made.id)


@pytest.mark.long
def test_its_document_can_be_followed(text_fleet: LocalFleet, tmp_path: Path) -> None:
    """docs/gateway.md, block by block, with curl and with OpenAI's package."""
    where = {"ARGOSY_BROKER_URL": text_fleet.broker_url, "ARGOSY_STORE_URL": text_fleet.store_url}
    reader = Reader(tmp_path, where)
    try:
        reader.follow(ROOT / "docs" / "gateway.md")
    finally:
        reader.stop()
    one, _, events, vectors = reader.said[1:]
    (row,) = json.loads(one)["results"]
    assert (row["state"], row["output"][0]["label"]) == ("succeeded", "positive")
    assert "event: finished" in events
    results = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["key"] for row in results] == [str(number) for number in range(1, 1001)]
    assert vectors.startswith("2 vectors of 384 for ")


def test_no_request_is_answered_with_a_server_error(text_fleet: LocalFleet) -> None:
    """Generated requests to every operation, by an operator, who may do everything: none finds a fault of ours."""
    seen: Counter[int] = Counter()
    operations = set()
    with serving(text_fleet.broker_url, text_fleet.store_url, max_wait_s=0.02) as served:
        for operation, statuses in answers(served.url, served.key("fuzz", operator=True)):
            operations.add(operation)
            seen += statuses
    assert len(operations) >= 25
    assert seen[401] == 0
    assert {200, 202, 404, 422} <= set(seen)
