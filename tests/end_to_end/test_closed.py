"""A fleet that `argosy up` starts, with its gateway, keeps to itself: no look-ups, files for its user, no secrets in
child processes, no inputs in logs, and no remote control but Flower's questions.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2 as httpx
import msgspec
import psutil
import pytest
from celery import Celery
from playwright.sync_api import expect
from redis import Redis

from producers.wire.connection import LocalFleet
from producers.wire.messages import Priority, new_id
from producers.wire.queues import redis_key, refused_messages
from tests.conftest import free_port
from tests.end_to_end.chromium import chromium, tab
from tests.end_to_end.processes import until
from workers.consumer.app import create_app

ROOT = Path(__file__).parents[2]

FLEET = """
[worker]
models = ["scripted", "language"]
[models.scripted]
class = "tests.scripted_model:ScriptedModel"
source = { path = "tests" }
[models.scripted.tasks.echo]
kind = "text-classification"
[models.language.tasks.tongue]
kind = "language-identification"
""".replace('"tests"', f'"{ROOT / "tests"}"')

#: Stands in each secret variable of the fleet's environment.
PASSWORD = "only-the-worker-may-have-this"

#: Stands in each input, and in each header of a message that is refused.
WORD = "swordfish"

#: The programs of the fleet, by words of their command lines.
PROGRAMS = {
    "up": "producers.commands.main up",
    "worker": "producers.commands.main worker",
    "device": "workers.device.fork_server",
    "flower": "celery flower",
    "gateway": "producers.commands.main gateway",
    "valkey": "valkey-server",
}


@dataclass(frozen=True)
class Closed:
    """The running fleet: its environment, its home, and the addresses of its services."""

    environment: dict[str, str]
    home: Path
    gateway_url: str
    processes: list[psutil.Process]
    gateway_log: Path

    @property
    def fleet(self) -> LocalFleet:
        return msgspec.json.decode((self.home / "fleet.json").read_bytes(), type=LocalFleet)

    @property
    def notes(self) -> list[tuple[str, str]]:
        """The notes of tests/end_to_end/quiet_processes: a command line and an event each."""
        lines = Path(self.environment["ARGOSY_QUIET"]).read_text("utf-8").splitlines()
        return [(command, event) for command, _, event in (line.partition("\t") for line in lines)]

    def run(self, *command: str) -> str:
        ran = subprocess.run(
            [sys.executable, *command], env=self.environment, cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    def process(self, program: str) -> psutil.Process:
        """Return the running process of a program."""

        def find() -> list[psutil.Process]:
            family = [*self.processes, *(child for one in self.processes for child in one.children(recursive=True))]
            return [process for process in family if PROGRAMS[program] in " ".join(process.cmdline())]

        return until(find)[0]

    def answers(self, text: str) -> Any:
        """Return the answer to an item, by a client in a process of its own."""
        code = (
            f"from producers import Client\nwith Client() as c: print(c.submit('echo', {text!r}).result(timeout_s=60))"
        )
        return self.run("-c", code)


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Closed]:
    """Started as by a user whose files others may read, in a home that others may enter."""
    folder = tmp_path_factory.mktemp("closed")
    home, log, port = folder / "home", folder / "gateway.log", free_port()
    home.mkdir()
    home.chmod(0o755)
    (home / "old.txt").touch(0o644)
    for name in ("user", "temporary"):
        (folder / name).mkdir()
    (folder / "fleet.toml").write_text(FLEET, encoding="utf-8")
    secrets = ("ARGOSY_BLOB_KEY", "PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "ARGOSY_GATEWAY_PASSWORD")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ARGOSY_")}
    environment |= dict.fromkeys(secrets, PASSWORD) | {
        "ARGOSY_HOME": str(home),
        "HOME": str(folder / "user"),
        "TMPDIR": str(folder / "temporary"),
        "ARGOSY_FLEET": str(folder / "fleet.toml"),
        "ARGOSY_QUIET": str(folder / "notes"),
        "PYTHONPATH": f"{Path(__file__).parent / 'quiet_processes'}{os.pathsep}{ROOT}",
    }
    command = [sys.executable, "-m", "producers.commands.main"]
    started = []
    try:
        with (folder / "up.log").open("wb") as said:
            up = subprocess.Popen([*command, "up"], env=environment, cwd=ROOT, stdout=said, stderr=said, umask=0o022)
        started.append(up)
        until(lambda: (home / "fleet.json").exists() or up.poll() is not None, 120)
        assert up.poll() is None, (folder / "up.log").read_text("utf-8")
        with log.open("wb") as said:
            serve = [*command, "gateway", "--no-auth", "--port", str(port)]
            started.append(subprocess.Popen(serve, env=environment, cwd=ROOT, stdout=said, stderr=said))
        url = f"http://127.0.0.1:{port}"
        found = Closed(environment, home, url, [psutil.Process(one.pid) for one in started], log)
        for page in (f"{url}/readyz", found.fleet.flower_url):
            until(lambda page=page: _status(page) == 200)  # type: ignore[misc]
        yield found
    finally:
        for one in reversed(started):
            one.send_signal(signal.SIGINT)
            one.wait(60)


def _status(url: str) -> int:
    try:
        return httpx.get(url, timeout=10).status_code
    except httpx.HTTPError:
        return 0


def test_no_name_is_looked_up_and_nobody_is_called(closed: Closed) -> None:
    """From the start of each process to the answers of a built-in model, the gateway and Flower."""
    client = "from producers import Client\nwith Client() as c: c.submit('tongue', 'une phrase').result(timeout_s=60)"
    closed.run("-c", client)
    body = {"task": "tongue", "input": "a sentence", "wait_s": 60}
    assert httpx.post(f"{closed.gateway_url}/api/items", json=body, timeout=90).status_code == 200
    for path in ("/", "/api/jobs", "/api/fleet", "/api/dead", "/openapi.json"):
        assert _status(f"{closed.gateway_url}{path}") == 200
    for path in ("/", "/tasks", "/broker", "/workers"):
        assert _status(f"{closed.fleet.flower_url}{path}") == 200
    started = [command for command, event in closed.notes if event == "started"]
    for program in ("up", "worker", "device", "flower", "gateway"):
        assert any(PROGRAMS[program] in command for command in started), program
    assert [note for note in closed.notes if note[1] != "started"] == []
    # seen, if there were any
    closed.run("-c", "import contextlib, socket\nwith contextlib.suppress(OSError): socket.getaddrinfo('a.invalid', 1)")
    notes = Path(closed.environment["ARGOSY_QUIET"])
    assert "socket.getaddrinfo ('a.invalid'" in closed.notes[-1][1]
    notes.write_text("".join(f"{command}\t{event}\n" for command, event in closed.notes[:-1]), "utf-8")


def test_all_files_are_their_users_own(closed: Closed) -> None:
    """Store, write-ahead log, append-only file, logs, ready files and passwords, whatever the user's umask."""
    closed.answers("so that there are rows")
    found = [path for path in closed.home.rglob("*") if not path.is_symlink()]
    names = {path.name for path in found}
    assert {"store.db", "store.db-wal", "valkey.log", "worker-cpu.log", "worker-cpu.ready", "fleet.json"} <= names
    assert [path.name for path in found if path.stat().st_mode & 0o077] == ["old.txt"]
    assert "other users can read 1 files" in (closed.home.parent / "up.log").read_text("utf-8")


def test_no_file_is_left_anywhere_else(closed: Closed) -> None:
    """Beside the fleet's home: what was measured of models, and the folder that torch makes when it is imported."""
    closed.answers("so that all libraries are imported")
    folder = closed.home.parent
    found = {
        path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and closed.home not in path.parents
    }
    own = {Path("fleet.toml"), Path("notes"), Path("up.log"), Path("gateway.log")}
    assert [path for path in found - own if not path.is_relative_to("user/.cache/argosy")] == []
    assert {path.name.partition("_")[0] for path in (folder / "temporary").iterdir()} <= {"torchinductor"}


def test_child_processes_have_only_the_secrets_that_they_need(closed: Closed) -> None:
    """Models are loaded, events are shown and messages are kept without the passwords of store and blob storage."""
    broker = urlsplit(closed.fleet.broker_url).password
    assert broker

    def environment(program: str) -> str:
        return "\n".join(f"{name}={value}" for name, value in closed.process(program).environ().items())

    assert PASSWORD in environment("worker")
    for program in ("device", "flower"):  # Valkey writes its title over its environment: test_embedded_broker.py
        assert PASSWORD not in environment(program), program
        assert closed.environment["ARGOSY_QUIET"] in environment(program), "other variables stay"
    assert broker not in environment("device")
    assert "ARGOSY_STORE" not in environment("flower")
    assert not [process for process in psutil.process_iter() if broker in " ".join(_command_line(process))]


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def message(*, body: bytes | None = None, **changes: Any) -> dict[str, Any]:
    """Return a Celery message as anybody could push it, with `changes` by path: ``headers__eta``."""
    call = [[{"version": 99, "input": WORD}], {}, {}]
    found: dict[str, Any] = {
        "body": base64.b64encode(json.dumps(call).encode() if body is None else body).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"task": "argosy.envelope", "id": new_id(), "argsrepr": WORD, "kwargsrepr": WORD, WORD: WORD},
        "properties": {"delivery_tag": new_id(), "body_encoding": "base64", "priority": 0, "delivery_info": {}},
    }
    for path, value in changes.items():
        *outer, last = path.replace("content_", "content-").split("__")
        inner = found
        for name in outer:
            inner = inner[name]
        inner[last] = value
    return found


REFUSED: dict[str, dict[str, Any]] = {
    "an envelope of no version": {},
    "a task that there is not": {"headers__task": "nobody's"},
    "no JSON": {"body": WORD.encode()},
    "JSON of another form": {"body": json.dumps({WORD: WORD}).encode()},
    "text that is no UTF-8": {"body": WORD.encode() + b"\xff"},
    "an encoding that there is not": {"content_encoding": WORD},
    "a content type that is refused": {"content_type": f"application/{WORD}"},
    "pickle": {"content_type": "application/x-python-serialize", "content_encoding": "binary"},
    "MessagePack that is none": {"content_type": "application/x-msgpack", "content_encoding": "binary"},
    "a body that is no base64": {"properties__body_encoding": WORD},
    "a priority that is no number": {"properties__priority": WORD},
    "a time that is none": {"headers__eta": WORD},
    "an expiry that is none": {"headers__expires": WORD},
    "a time limit that is none": {"headers__timelimit": [WORD, WORD]},
    "stamps that are none": {"headers__stamped_headers": WORD, "headers__stamps": {WORD: WORD}},
    "compressed": {"headers__compression": WORD},
    "a callback without a queue's name": {
        "body": json.dumps([[WORD], {}, {"callbacks": [{"task": WORD, "options": {"queue": f"\n{WORD}"}}]}]).encode()
    },
    "a callback that is none": {"body": json.dumps([[WORD], {}, {"errbacks": [{WORD: WORD}]}]).encode()},
    "celery.map of a task that there is not": {
        "headers__task": "celery.map",
        "body": json.dumps([[{"task": WORD}, [WORD]], {}, {}]).encode(),
    },
    "celery.group of what is none": {"headers__task": "celery.group", "body": json.dumps([[WORD], {}, {}]).encode()},
    "keywords that the task has not": {"body": json.dumps([[], {WORD: WORD}, {}]).encode()},
    "items that are none": {"body": json.dumps([[{"model": "scripted", "items": WORD}], {}, {}]).encode()},
    "a model that is not served": {"body": json.dumps([[{"model": "nobody's", "items": [WORD]}], {}, {}]).encode()},
    "an item of a wrong form": {
        "body": json.dumps([[{"model": "scripted", "items": [{"seq": WORD, "input": WORD}]}], {}, {}]).encode()
    },
}


#: Those that run: Celery's own tasks, which fail, and an envelope whose item gets a row.
RUN = (
    "keywords that the task has not",
    "celery.map of a task that there is not",
    "celery.group of what is none",
    "an item of a wrong form",
)


def test_logs_hold_no_inputs(closed: Closed) -> None:
    """Neither of messages that are refused, whatever is wrong with them, nor of items that fail."""
    key = redis_key("scripted", Priority.INTERACTIVE)
    raw = [json.dumps(message(**changes)) for changes in REFUSED.values()]
    raw += [WORD, f'"{WORD}"', f'{{"{WORD}": 1}}', f'["{WORD}"]', f'{{"headers": {{}}, "properties": "{WORD}"}}']
    with Redis.from_url(closed.fleet.broker_url) as redis:
        redis.lpush(key, *raw)
        for exchange in ("/0.celery.pidbox", "/0.celeryev"):
            redis.publish(exchange, WORD)
            redis.publish(exchange, json.dumps({WORD: WORD}))
            redis.publish(exchange, json.dumps(message()))
        until(lambda: not redis.llen(key) and not redis.hlen("unacked"))
        until(lambda: len(refused_messages(redis)) >= len(raw) - len(RUN))
        noted = redis.lrange("argosy:refused", 0, -1)
        assert WORD.encode() not in b"".join(noted)
    for failing in (f"refuse {WORD}", f"bug {WORD}", f"raise {WORD}"):
        code = f"from producers import Client\nwith Client() as c: c.submit_many(['echo'], [{failing!r}]).wait(timeout_s=60)"
        closed.run("-c", code)
    logs = [*closed.home.rglob("*.log"), closed.gateway_log]
    assert len(logs) == 5
    for log in logs:
        assert [line for line in log.read_text("utf-8").splitlines() if WORD in line] == [], log
    assert WORD not in closed.run("-m", "producers.commands.main", "dead")


COMMANDS: dict[str, dict[str, Any]] = {
    "shutdown": {},
    "revoke": {"task_id": "x", "terminate": True, "signal": "KILL"},
    "revoke_by_stamped_headers": {"headers": {"a": "b"}, "terminate": True},
    "terminate": {"task_id": "x", "signal": "KILL"},
    "rate_limit": {"task_name": "argosy.envelope", "rate_limit": "1/h"},
    "time_limit": {"task_name": "argosy.envelope", "hard": 1, "soft": 1},
    "pool_grow": {"n": 1000},
    "pool_shrink": {"n": 1000},
    "pool_restart": {},
    "autoscale": {"max": 1, "min": 1},
    "add_consumer": {"queue": "another"},
    "cancel_consumer": {"queue": "argosy.scripted"},
    "disable_events": {},
    "election": {"id": "x", "topic": "y"},
    "hello": {"from_node": "x", "revoked": {"y": 1}},
    "objgraph": {},
    "memdump": {},
    "nothing of the kind": {},
}


@pytest.fixture
def control(closed: Closed) -> Iterator[Celery]:
    """What a Celery application can send."""
    app = create_app(closed.fleet.broker_url, [], concurrency=1)
    yield app
    app.close()


def test_remote_control_only_answers_flower(closed: Closed, control: Celery) -> None:
    """Each command of Celery's is refused by name, with a remedy, to the sender and in the log; nothing changes."""
    worker = closed.process("worker").pid
    for name, arguments in COMMANDS.items():
        ((_, answer),) = control.control.broadcast(name, arguments, reply=True, timeout=20, limit=1)[0].items()
        assert name in answer["error"]
        assert "refused" in answer["error"]
    log = (closed.home / "logs" / "worker-cpu.log").read_text("utf-8")
    assert log.count("'revoke' is refused") == 1
    assert "argosy cancel" in log
    (asked,) = control.control.inspect(timeout=20, limit=1)._request("registered", taskinfoitems=["app"]).values()
    assert "no argument 'taskinfoitems'" in asked["error"]
    inspect = control.control.inspect(timeout=20, limit=1)
    for name in ("stats", "active_queues", "registered", "scheduled", "active", "reserved", "revoked", "conf", "ping"):
        (answer,) = getattr(inspect, name)().values()
        assert "error" not in answer, name
    (queues,) = inspect.active_queues().values()
    assert {queue["name"] for queue in queues} >= {"argosy.scripted", "argosy.language"}
    assert "another" not in {queue["name"] for queue in queues}
    assert closed.process("worker").pid == worker
    assert "crc" in closed.answers("after all commands")


def test_odd_broadcasts_change_nothing(closed: Closed, control: Celery) -> None:
    """A thousand of them: the same worker answers, and each kind is logged once."""
    worker = closed.process("worker").pid
    asks = {"method": "ping", "arguments": {}, "destination": None}
    bodies: list[Any] = [None, [], {}, 5, "x", {"method": []}, {"method": "ping", "arguments": 5}, {"method": "ping"}]
    bodies += [asks | {"destination": value} for value in (5, "x", {}, [1], [[]])]
    bodies += [asks | {"pattern": "(a+)+$", "matcher": "pcre"}, asks | {"matcher": []}, asks | {"ticket": 5}]
    bodies += [asks | {"reply_to": value} for value in (5, [], {}, {"exchange": "x" * 9999, "routing_key": "y"})]
    bodies += [asks | {"reply_to": {"exchange": "reply.celery.pidbox", "routing_key": "\0" * 300}}]
    bodies += [
        {"method": method, "arguments": {"state": 1, "x": 2}} for method in ("ping", "stats", "shutdown", "__init__")
    ]
    sent = [json.dumps(message(body=json.dumps(body).encode())) for body in bodies]
    sent += [json.dumps(message(body=json.dumps(asks).encode(), **changes)) for changes in ODD]
    sent += ["", "x", "[]", "null", "5", "{}", "[" * 100_000, '{"headers": null, "properties": null}', "\udcff"]
    with Redis.from_url(closed.fleet.broker_url) as redis:
        raw = [text.encode("utf-8", "surrogateescape") for text in sent]
        for number in range(1000):
            redis.publish("/0.celery.pidbox", raw[number % len(raw)])
        for channel in ("/0.celery.pidbox/x", "/0.celery.pidboxes", "/0."):
            redis.publish(channel, raw[0])
    (answer,) = control.control.inspect(timeout=30, limit=1).ping().values()
    assert answer == {"ok": "pong"}
    log = (closed.home / "logs" / "worker-cpu.log").read_text("utf-8")
    assert 5 <= log.count("dropped a broadcast") <= len(sent)
    assert "Traceback" not in log.partition("takes envelopes")[2].partition("dropped a broadcast")[2]
    assert closed.process("worker").pid == worker
    assert "crc" in closed.answers("after all broadcasts")


ODD: list[dict[str, Any]] = [
    {"headers": None},
    {"headers": []},
    {"headers__clock": "x"},
    {"headers__clock": 10**300},
    {"headers__compression": "zlib"},
    {"properties": None},
    {"properties__priority": []},
    {"properties__body_encoding": "x"},
    {"content_type": "application/x-python-serialize"},
    {"content_encoding": "x"},
    {"content_type": []},
]


@pytest.mark.long
def test_flower_shows_names_as_text(closed: Closed) -> None:
    """The arguments and the id of a stranger's message, in its list and on its page: no script runs."""
    hostile = '<img src=x onerror="window.hacked = 1"><script>window.hacked = 2</script>'
    headers = {"headers__id": '\'"><svg onload="window.hacked = 3">', "headers__argsrepr": hostile}
    with Redis.from_url(closed.fleet.broker_url) as redis:
        redis.lpush(redis_key("scripted", Priority.INTERACTIVE), json.dumps(message(**headers)))
    with chromium() as browser, tab(browser, closed.fleet.flower_url) as page:
        until(lambda: page.goto("/tasks", wait_until="networkidle") and page.locator("tbody", has_text="svg").count())
        page.locator("tbody a", has_text="svg").first.click()
        expect(page.locator("body")).to_contain_text("window.hacked = 1")
        assert page.evaluate("window.hacked") is None
