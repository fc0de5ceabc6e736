"""compose.yaml for real: containers, health checks, volumes, networks; used from outside through the published
ports.
"""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from producers import Client, ItemFailed
from producers.client.handles import Job
from producers.wire.queues import TASK
from tests.end_to_end.processes import until
from tests.monitoring.prometheus import ask, queries
from tests.stack.stack import LONG_RUNNING, Stack

TASKS = ("sentiment", "topic", "spam")
TEXTS = 120


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[Client]:
    with Client(stack.broker_url, stack.store_url) as outside:
        yield outside


@pytest.fixture(scope="module")
def job(client: Client) -> Job:
    """A finished job: texts of many lengths, three tasks each."""
    text = "The film was a quiet triumph, and the cinema was full on a wet Tuesday evening. "
    submitted = client.submit_many(TASKS, [f"{n}. {text * (1 + n % 7)}" for n in range(TEXTS)], name="from outside")
    status = submitted.wait(timeout_s=180)
    assert (status.succeeded, status.failed) == (TEXTS * len(TASKS), 0)
    return submitted


def test_the_job_stands_in_postgresql_once_each(stack: Stack, job: Job) -> None:
    """What the client was told is what SQL says: one row an item and task, all of them computed by the one worker."""
    with psycopg.connect(stack.store_url) as connection:
        rows = connection.execute(
            "SELECT task, state, count(*), count(DISTINCT seq) FROM item_results WHERE job = %s GROUP BY 1, 2 ORDER BY 1",
            [job.id],
        ).fetchall()
        devices = connection.execute("SELECT DISTINCT device, worker FROM batches").fetchall()
    assert rows == [(task, "succeeded", TEXTS, TEXTS) for task in sorted(TASKS)]
    assert len(devices) == 1
    assert devices[0][0] == "cpu"


def test_an_image_travels_as_bytes(client: Client) -> None:
    """MessagePack, the second model and the pulled weights: a photograph sent from outside gets its name."""
    photograph = resources.files("sklearn.datasets.images").joinpath("china.jpg").read_bytes()
    labels = client.submit("image-classification", photograph, priority="interactive").result(timeout_s=60)
    assert labels[0]["label"] == "palace"


def test_flower_has_every_envelope(stack: Stack, job: Job) -> None:
    """The operator sees each envelope of the job by its name and id, succeeded."""
    with psycopg.connect(stack.store_url) as connection:
        rows = connection.execute("SELECT id FROM envelopes WHERE job = %s", [job.id]).fetchall()
    envelopes = {envelope for (envelope,) in rows}
    user = f"argosy:{stack.variables['FLOWER_PASSWORD']}"

    def all_finished() -> bool:
        seen = _flower(stack, f"/api/tasks?taskname={TASK}&state=SUCCESS", user)
        return envelopes <= set(seen)

    assert envelopes
    until(all_finished)  # its events come after the client's notice


def test_prometheus_finds_every_figure_of_the_dashboards(stack: Stack, client: Client) -> None:
    """Profile `monitoring`, but for Grafana: it scrapes the gateway as it is mounted and set up, all series of one fleet."""
    stack.compose("up", "--detach", "prometheus")
    stack.wait_until_healthy("prometheus")
    missing = queries()

    def found_all() -> bool:
        """Give the fleet some work of each kind, and try the queries that found nothing yet."""
        client.submit_many(TASKS, [f"text {n}" for n in range(16)]).wait(timeout_s=60)
        with pytest.raises(ItemFailed):
            client.submit("image-classification", b"no picture", priority="interactive").result(timeout_s=60)
        with pytest.raises(urllib.error.HTTPError, match="401"):  # a request to count
            urllib.request.urlopen(f"{stack.gateway_url}/api/tasks", timeout=10)
        missing[:] = [query for query in missing if not ask(stack.prometheus_url, query)]
        return not missing

    try:
        until(found_all, 300)
    finally:
        assert missing == []
    assert ask(stack.prometheus_url, "up") == [1.0]
    assert ask(stack.prometheus_url, "argosy_workers") == [1.0]


@pytest.mark.parametrize("credentials", [None, "argosy:wrong", "argosy:"])
def test_flower_refuses_strangers(stack: Stack, credentials: str | None) -> None:
    """Flower can stop workers: without the credentials of .env there is nothing to see or do."""
    with pytest.raises(urllib.error.HTTPError, match="401"):
        _flower(stack, "/api/workers", credentials)


def test_redis_and_postgresql_refuse_strangers(stack: Stack) -> None:
    """A published port is not an open one."""
    with pytest.raises(redis.AuthenticationError):
        redis.Redis.from_url(stack.broker_url.replace(stack.variables["REDIS_PASSWORD"], "wrong")).ping()
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(stack.store_url.replace(stack.variables["POSTGRES_PASSWORD"], "wrong"))


def test_ports_are_on_the_loopback_address_alone(stack: Stack) -> None:
    """Docker's port rules go past a host's firewall, so the address is what keeps others out."""
    for service in (*LONG_RUNNING, "prometheus"):
        bound = json.loads(stack.inspect(service, "{{json .HostConfig.PortBindings}}")) or {}
        assert {binding["HostIp"] for port in bound.values() for binding in port} <= {"127.0.0.1"}


def test_the_worker_has_no_rights_it_does_not_need(stack: Stack) -> None:
    """It reads what strangers send: not root, no capabilities, nothing but its temporary folder to write to."""
    worker = stack.container("worker")
    status = stack.engine.run("docker", "exec", worker, "cat", "/proc/1/status").splitlines()
    facts = dict(line.split(":\t", 1) for line in status if ":\t" in line)
    assert facts["Uid"].split() == ["10001"] * 4
    assert int(facts["CapEff"], 16) == 0
    assert not stack.engine.succeeds("docker", "exec", worker, "touch", "/opt/argosy/here")
    assert not stack.engine.succeeds("docker", "exec", worker, "touch", "/var/lib/argosy/cache/here")


def test_redis_keeps_its_queues_over_a_restart(stack: Stack) -> None:
    """Append-only file on a volume: what was queued is there again, and full memory refuses instead of evicting."""
    with redis.Redis.from_url(stack.broker_url) as broker:
        broker.rpush("kept", "over a restart")
    stack.compose("restart", "redis")
    stack.wait_until_healthy("redis")
    with redis.Redis.from_url(stack.broker_url) as broker:
        assert broker.lrange("kept", 0, -1) == [b"over a restart"]
        assert broker.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        broker.delete("kept")


def test_a_killed_worker_comes_back_and_works(stack: Stack, client: Client) -> None:
    """`restart: unless-stopped` and the reconciler together: no hand is needed after a crash."""
    # from inside, as a crash would be: what is killed by `docker kill` stays dead by Docker's own rule
    stack.engine.run(
        "docker", "exec", stack.container("worker"), "sh", "-c", "kill -KILL $(cat /proc/1/task/1/children)"
    )
    labels = client.submit("sentiment", "What a lovely morning.", priority="interactive").result(timeout_s=120)
    assert labels[0]["label"] == "positive"


SITE = """
[worker]
models = ["text"]
tune_at_start = false
[edge]
site = "harbour"
centre = "https://centre.invalid"
key_file = "centre.key"
[edge.tasks.sentiment]
threshold = 0.5
"""


def test_a_site_in_a_container_answers_without_its_centre(stack: Stack) -> None:
    """Profile `edge`, an image of its own: within its bound of memory, and it ends when it is told to."""
    folder = Path(stack.variables["ARGOSY_SITE"])
    (folder / "fleet.toml").write_text(SITE, "utf-8")
    (folder / "centre.key").write_text("argosy-none-of-this-fleet\n", "utf-8")
    stack.compose("up", "--detach", "--build", "edge")
    stack.wait_until_healthy("edge", 600)
    assert stack.inspect("edge", "{{.HostConfig.Memory}}") == str(2**30)
    submit = "echo 'A fine, moving film.' | argosy submit - --task sentiment --watch"
    stack.compose("exec", "-T", "edge", "sh", "-c", submit)

    def counted() -> dict[str, int]:
        told = stack.compose("exec", "-T", "edge", "argosy", "edge", "status", "--json")
        return dict(json.loads(told)["counted"])

    until(lambda: counted().get("by site") == 1)
    assert "by centre" not in counted()
    stack.compose("stop", "edge")
    assert stack.inspect("edge", "{{.State.ExitCode}}") == "0"


def test_stopping_the_worker_is_clean(stack: Stack) -> None:
    """SIGTERM reaches the worker, and it ends by itself within its grace period."""
    stack.compose("stop", "worker")
    assert stack.inspect("worker", "{{.State.ExitCode}}") == "0"


def _flower(stack: Stack, path: str, credentials: str | None) -> Any:
    request = urllib.request.Request(f"{stack.flower_url}{path}")
    if credentials is not None:
        request.add_header("Authorization", f"Basic {base64.b64encode(credentials.encode()).decode()}")
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)
