"""An item's trace from an `openai` client to the commit, as a real OTLP receiver gets it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.request import urlopen

import openai
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from producers import Client
from producers.wire.publisher import message
from producers.wire.queues import TASK
from producers.wire.tracing import exporting
from tests.conftest import free_port
from tests.end_to_end.processes import fleet_in, until
from tests.integration.rows import new_envelope
from workers.consumer.app import create_app
from workers.fleet.local import LocalFleet

pytestmark = pytest.mark.monitoring

TRACE, SECRET = "0af7651916cd43dd8448eb211c80319c", "a film that nobody may read of"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


class Receiver:
    """What an OTLP collector would get, over HTTP."""

    def __init__(self) -> None:
        self.raw: list[bytes] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                receiver.raw.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def spans(self) -> list[tuple[str, Any]]:
        """Return all spans, each with the name of its service."""
        found = []
        for raw in [*self.raw]:
            for resource in ExportTraceServiceRequest.FromString(raw).resource_spans:
                names = {one.key: one.value.string_value for one in resource.resource.attributes}
                found += [(names["service.name"], span) for scope in resource.scope_spans for span in scope.spans]
        return found

    def of(self, trace: str) -> dict[str, tuple[str, Any]]:
        """Return the spans of a trace by their names."""
        return {span.name: (service, span) for service, span in self.spans() if span.trace_id.hex() == trace}


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{receiver.server.server_port}")
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
        yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()


@pytest.fixture(scope="module")
def fleet(receiver: Receiver, tmp_path_factory: pytest.TempPathFactory, pulled_models: object) -> Iterator[LocalFleet]:
    with fleet_in(tmp_path_factory.mktemp("traced"), '[worker]\nmodels = ["text"]\n') as fleet:
        yield fleet


@pytest.fixture(scope="module")
def gateway(fleet: LocalFleet) -> Iterator[str]:
    """The address of a gateway without keys."""
    port = free_port()
    command = [sys.executable, "-m", "producers.commands.main", "gateway", "--no-auth", "--port", str(port)]
    with subprocess.Popen(command) as process:
        until(lambda: answers(f"http://127.0.0.1:{port}/healthz"))
        yield f"http://127.0.0.1:{port}"
        process.terminate()


def answers(url: str) -> bool:
    with suppress(OSError), urlopen(url) as found:
        return bool(found.status == 200)
    return False


def test_one_trace_from_the_request_to_the_commit(gateway: str, receiver: Receiver) -> None:
    """Each part under the one before; the batch links to the envelope; no span holds the text."""
    with openai.OpenAI(base_url=f"{gateway}/v1", api_key="none", max_retries=0) as client:
        client.embeddings.create(model="embedding", input=SECRET, extra_headers={"traceparent": PARENT})
    until(lambda: {"process argosy.text", "wait", "compute", "store"} <= receiver.of(TRACE).keys())
    spans = until(lambda: (found := receiver.of(TRACE)) and "POST /v1/embeddings" in found and found)
    way = ["POST /v1/embeddings", "argosy submit", "process argosy.text"]
    assert [spans[name][0] for name in way] == ["argosy-gateway", "argosy-gateway", "argosy-worker"]
    parents = [spans[name][1].parent_span_id.hex() for name in way]
    assert parents == ["b7ad6b7169203331", *(spans[name][1].span_id.hex() for name in way[:-1])]
    run = spans["process argosy.text"][1]
    parts = [spans[name][1] for name in ("wait", "compute", "store")]
    assert {part.parent_span_id for part in parts} == {run.span_id}
    ends = [run.start_time_unix_nano, *(part.end_time_unix_nano for part in parts)]
    assert ends == sorted(ends)
    assert abs(ends[-1] - run.end_time_unix_nano) < 1e9
    said = {one.key: one.value.string_value or one.value.int_value for one in run.attributes}
    assert (said["argosy.results.succeeded"], said["argosy.model"]) == (1, "text")
    batches = [span for service, span in receiver.spans() if span.name == "batch text"]
    assert run.span_id in {link.span_id for span in batches for link in span.links}
    assert SECRET.encode() not in b"".join(receiver.raw)


def test_a_trace_of_another_celery_application(fleet: LocalFleet, receiver: Receiver) -> None:
    """OpenTelemetry's instrumentation of Celery writes the same header. One that is none is no trace."""
    app = create_app(fleet.broker_url, ["argosy.text"], concurrency=1, result_backend=f"argosy+{fleet.store_url}")
    envelope = {"model": "text", "items": [{"seq": 0, "input": "a fine film", "tasks": ["sentiment"]}]}
    trace = "1" * 32
    for parent in (f"00-{trace}-{'2' * 16}-01", "nonsense"):
        sent = app.send_task(TASK, [envelope], queue="argosy.text", headers={"traceparent": parent})
        assert sent.get(timeout=60)["succeeded"] == 1
    assert until(lambda: receiver.of(trace))["process argosy.text"][1].parent_span_id.hex() == "2" * 16


def test_a_failure_is_told_by_its_class_alone(fleet: LocalFleet, receiver: Receiver) -> None:
    """The message of an error may hold a part of an input."""
    app = create_app(fleet.broker_url, ["argosy.text"], concurrency=1, result_backend=f"argosy+{fleet.store_url}")
    trace = "3" * 32
    header = {"traceparent": f"00-{trace}-{'4' * 16}-01"}
    sent = app.send_task(TASK, [{"model": SECRET, "items": []}], queue="argosy.text", headers=header)
    with pytest.raises(Exception, match=SECRET):
        sent.get(timeout=60)
    failed = until(lambda: receiver.of(trace))["process argosy.text"][1]
    assert (failed.status.message, len(failed.events)) == ("InvalidMessage", 0)
    assert SECRET.encode() not in b"".join(receiver.raw)


def test_a_program_without_traces_sends_none(fleet: LocalFleet, receiver: Receiver) -> None:
    """Neither a header in its messages nor anything to the receiver."""
    with Client(fleet.broker_url, fleet.store_url) as client:
        before = len([service for service, _ in receiver.spans() if service == "argosy-"])
        assert client.submit("sentiment", "a fine film").result(timeout_s=60)
    assert len([service for service, _ in receiver.spans() if service == "argosy-"]) == before
    assert b"traceparent" not in message(new_envelope("a"))[1]


@pytest.mark.parametrize(
    ("environment", "warning"),
    [
        ({}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "zipkin"}, "not by zipkin"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "otlp, grpc"),
    ],
)
def test_what_cannot_be_sent_is_said(
    environment: dict[str, str], warning: str, caplog: pytest.LogCaptureFixture
) -> None:
    exporting.begin("argosy-test", environment)
    assert warning in caplog.text
    assert bool(warning) == bool(caplog.text)
