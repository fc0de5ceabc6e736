"""What a gateway does for OpenAI batches that no worker computes, on each database."""

from __future__ import annotations

import json
import time
from typing import Any

import openai

from producers.gateway.openai import batch_duty
from producers.wire.messages import new_id
from results_store.gateway.gateway_batches import FileBatch
from results_store.gateway.gateway_files import StoredFile
from results_store.store import Store
from tests.end_to_end.gateway_server import serving
from tests.end_to_end.processes import until
from tests.integration.test_admission import limit


def request(custom_id: str, text: object, model: str = "embedding") -> str:
    body = {"model": model, "input": text}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/embeddings", "body": body})


def accepted(store: Store, *lines: str, left_s: float = 3600.0, tenant: str = "ours") -> str:
    """Accept a batch of a tenant, as a gateway that dies right after; return its id."""
    file = StoredFile(id=f"file-{new_id()}", tenant=tenant, name="in.jsonl", purpose="batch", created_at=1.0)
    content = "\n".join(lines).encode()
    store.files.begin(file)
    store.files.append(file.id, 0, content)
    store.files.finish(file.id, size=len(content), at=1.0)
    detail: dict[str, Any] = {"endpoint": "/v1/embeddings", "input_file_id": file.id, "metadata": None}
    counts = {"total": 0, "completed": 0, "failed": 0}
    detail |= {"expires_at": time.time() + left_s, "counts": counts}
    batch = FileBatch(id=f"batch_{new_id()}", tenant=tenant, detail=detail, created_at=time.time())
    store.file_batches.add(batch)
    return batch.id


def ended(broker_url: str, store_url: str, id_: str) -> tuple[openai.types.Batch, list[dict[str, Any]]]:
    """Return the batch once a gateway has ended it, and the lines of its error file."""
    with (
        serving(broker_url, store_url) as served,
        openai.OpenAI(base_url=f"{served.url}/v1", api_key=served.key("ours"), max_retries=0) as client,
    ):
        batch = until(lambda: found if (found := client.batches.retrieve(id_)).status in ENDED else None)
        told = client.files.content(str(batch.error_file_id)).text.splitlines() if batch.error_file_id else []
        return batch, [json.loads(line) for line in told]


ENDED = ("completed", "failed", "cancelled", "expired")


def test_a_batch_ends_with_its_window_though_no_worker_comes(broker_url: str, store_url: str, store: Store) -> None:
    """Every request is told of once, under its own id, and the job's counts agree."""
    strange = 'é\ud800"\u0000'
    id_ = accepted(
        store, request("a", ["x", "y"]), request("wrong", ""), request(strange, "z"), request("b", "x"), left_s=-61.0
    )
    batch, told = ended(broker_url, store_url, id_)

    assert batch.status == "expired"
    assert batch.request_counts is not None
    assert batch.request_counts.to_dict() == {"total": 4, "completed": 0, "failed": 4}
    assert [(line["custom_id"], line["error"] and line["error"]["code"]) for line in told] == [
        ("a", "batch_expired"),
        ("wrong", None),
        ('é\ufffd"\u0000', "batch_expired"),
        ("b", "batch_expired"),
    ]
    assert [line["response"] is None for line in told] == [True, False, True, True]
    assert told[1]["response"]["status_code"] == 400
    assert told[1]["response"]["body"]["error"]["code"] == "InvalidInput"
    assert told[1]["response"]["body"]["error"]["param"] == "input"
    job = store.job(batch.to_dict()["job"])  # type: ignore[arg-type]
    assert (job.items, job.total, job.failed, job.expired, job.finished_at is not None) == (5, 5, 1, 4, True)


def test_a_batch_that_was_cancelled_before_it_was_submitted(broker_url: str, store_url: str, store: Store) -> None:
    """Nothing of it is submitted any more, and each request says so."""
    id_ = accepted(store, request("a", "x"), request("b", ["x", "y"]))
    store.file_batches.note(id_, {"cancelling_at": time.time()})
    batch, told = ended(broker_url, store_url, id_)

    assert batch.status == "cancelled"
    assert [(line["custom_id"], line["error"]["code"]) for line in told] == [
        ("a", "batch_cancelled"),
        ("b", "batch_cancelled"),
    ]
    assert store.depth() == []
    job = store.job(batch.to_dict()["job"])  # type: ignore[arg-type]
    assert (job.items, job.total, job.cancelled) == (3, 3, 3)


def test_a_batch_whose_requests_are_all_refused(broker_url: str, store_url: str, store: Store) -> None:
    """It is completed: its job holds the refusals."""
    id_ = accepted(store, request("a", "x", model="gpt-17"), request("b", "x", model="gpt-17"))
    batch, told = ended(broker_url, store_url, id_)

    assert (batch.status, batch.output_file_id) == ("completed", None)
    assert [line["response"]["status_code"] for line in told] == [404, 404]
    assert [line["error"] for line in told] == [None, None]
    assert told[0]["response"]["body"]["error"]["code"] == "model_not_found"
    job = store.job(batch.to_dict()["job"])  # type: ignore[arg-type]
    assert (job.items, job.failed, job.tenant, job.name) == (2, 2, "ours", id_)


def test_a_batch_whose_file_is_gone(broker_url: str, store_url: str, store: Store) -> None:
    """It fails as a whole, with the reason."""
    id_ = accepted(store, request("a", "x"))
    found = store.file_batches.find(id_, tenant=None)
    assert found is not None
    store.files.remove(found.detail["input_file_id"])
    batch, _ = ended(broker_url, store_url, id_)

    assert batch.status == "failed"
    assert batch.errors is not None
    assert [one.code for one in batch.errors.data or []] == ["file_not_found"]


def test_a_tenant_at_its_limit_holds_up_no_other(broker_url: str, store_url: str, store: Store) -> None:
    """Its batches wait for places among its own items, however many they are."""
    limit(store, "greedy", max_in_flight=1)
    lines = [request(name, "x") for name in ("a", "b", "c")]
    held = [accepted(store, *lines, tenant="greedy") for _ in range(2 * batch_duty.OF_A_TENANT + 1)]
    id_ = accepted(store, *lines)
    with (
        serving(broker_url, store_url) as served,
        openai.OpenAI(base_url=f"{served.url}/v1", api_key=served.key("ours"), max_retries=0) as client,
    ):
        until(lambda: client.batches.retrieve(id_).status == "in_progress")
    states = [store.file_batches.find(one, tenant="greedy") for one in held]
    assert {batch.status for batch in states if batch} == {"in_progress", "validating"}
